"""The protocols, one per file. `PROTOCOLS` maps a file's name to its class, and imports the file on first use.

A file here becomes a protocol by declaring a subclass of `Protocol`. Other packages add theirs with
`register_protocol`, or with an entry point of the group `selfcluster.protocols` whose value is `MODULE:CLASS`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfcluster.setting import Option, options_of
from selfcluster.settings.schema import class_with_base, read_declarations

_REGISTERED: dict[str, type] = {}


def register_protocol(name: str, protocol: type) -> None:
    """Make a protocol of another package known under `name`; raise ValueError if the name is taken."""
    if name in _files() or _REGISTERED.get(name, protocol) is not protocol:
        raise ValueError(f"a protocol named {name!r} exists already; choose another name")
    _REGISTERED[name] = protocol


@functools.cache
def _files() -> dict[str, Path]:
    here = Path(__file__).parent
    return {file.stem: file for file in sorted(here.glob("*.py")) if class_with_base(file, "Protocol") is not None}


@functools.cache
def _entry_points() -> dict[str, str]:
    found = importlib.metadata.entry_points(group="selfcluster.protocols")
    return {entry.name: entry.value for entry in found if entry.name not in _files()}


def protocol_names() -> tuple[str, ...]:
    """Return the names of all protocols."""
    return tuple(dict.fromkeys((*_files(), *_REGISTERED, *_entry_points())))


def known(name: str) -> str:
    """Return the name with underscores; raise ValueError with the nearest name if it is unknown."""
    plain = name.lower().replace("-", "_").replace("unlabelled", "unlabeled")
    if plain not in protocol_names():
        near = difflib.get_close_matches(plain, protocol_names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no protocol named {name!r}: {hint}Protocols: {', '.join(protocol_names())}")
    return plain


@functools.cache
def declarations(name: str) -> tuple[str, Mapping[str, Option]]:
    """Return one line on what a protocol measures, and its settings. Protocols of this package are not imported."""
    if name in _REGISTERED:
        protocol = _REGISTERED[name]
        return (protocol.__doc__ or "").split("\n")[0], options_of(protocol.Settings)  # pyright: ignore
    if name in _files():
        return read_declarations(_files()[name], str(class_with_base(_files()[name], "Protocol")))
    module, _, class_name = _entry_points()[name].partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"the protocol {name!r} is declared in {module}, which is not installed")
    return read_declarations(Path(spec.origin), class_name)


class _Protocols(Mapping[str, Any]):
    def __getitem__(self, name: str) -> Any:
        plain = known(name)
        if plain in _REGISTERED:
            return _REGISTERED[plain]
        if plain in _files():
            class_name = str(class_with_base(_files()[plain], "Protocol"))
            return getattr(importlib.import_module(f"{__name__}.{plain}"), class_name)
        module, _, class_name = _entry_points()[plain].partition(":")
        return getattr(importlib.import_module(module), class_name)

    def __iter__(self) -> Iterator[str]:
        return iter(protocol_names())

    def __len__(self) -> int:
        return len(protocol_names())


PROTOCOLS: Mapping[str, Any] = _Protocols()
