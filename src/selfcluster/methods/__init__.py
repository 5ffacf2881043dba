"""The methods, one paper a file. `METHODS` maps a name to its class and imports the file on look-up.

Methods of other packages join by `register_method`, or by an entry point of the group `selfcluster.methods` whose value
is `MODULE:CLASS`.
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

_BUILT_IN = {
    "byol": "BYOL",
    "clusterfit": "ClusterFit",
    "deepcluster": "DeepCluster",
    "deepcluster_v2": "DeepClusterV2",
    "deepercluster": "DeeperCluster",
    "dino": "DINO",
    "jigsaw": "Jigsaw",
    "moco_v2": "MoCoV2",
    "npid": "NPID",
    "odc": "ODC",
    "rotnet": "RotNet",
    "sela": "SeLa",
    "sela_v2": "SeLaV2",
    "simclr": "SimCLR",
    "supervised": "Supervised",
    "swav": "SwAV",
}
NAMES = tuple(_BUILT_IN)
_REGISTERED: dict[str, type] = {}


def register_method(name: str, method: type) -> None:
    """Make a method of another package known under `name`, to `train` and to the command line.

    Args:
        name: lower case, with underscores.
        method: a subclass of `selfcluster.methods.base.Method`.

    Raises:
        ValueError: the name is taken, or it is not a lower-case identifier.
    """
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"{name!r} is not a lower-case name with underscores")
    if _REGISTERED.get(name, method) is not method or name in _BUILT_IN:
        raise ValueError(f"a method named {name!r} exists already; choose another name")
    _REGISTERED[name] = method


@functools.cache
def _entry_points() -> dict[str, str]:
    found = importlib.metadata.entry_points(group="selfcluster.methods")
    return {entry.name: entry.value for entry in found if entry.name not in _BUILT_IN}


def names() -> tuple[str, ...]:
    """Return the names of all methods: those of this package, then those of others."""
    return tuple(dict.fromkeys((*NAMES, *_REGISTERED, *_entry_points())))


def canonical(name: str) -> str:
    """Return the name in lower case with underscores; raise KeyError for an unknown one, naming the nearest."""
    plain = name.lower().replace("-", "_")
    if plain not in _BUILT_IN and plain not in names():
        near = difflib.get_close_matches(plain, names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise KeyError(f"no method named {name!r}: {hint}Methods: {', '.join(names())}")
    return plain


def located(name: str) -> type | tuple[Path, str]:
    """Return where a method is declared: the file and the class's name, or the class itself if it was registered."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in _BUILT_IN:
        return Path(__file__).with_name(f"{name}.py"), _BUILT_IN[name]
    module, _, class_name = _entry_points()[name].partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise KeyError(f"the method {name!r} is declared as {module}:{class_name}, but {module} is not installed")
    return Path(spec.origin), class_name


class _Methods(Mapping[str, Any]):
    def __getitem__(self, name: str) -> Any:
        plain = canonical(name)
        if plain in _REGISTERED:
            return _REGISTERED[plain]
        if plain in _BUILT_IN:
            return getattr(importlib.import_module(f"selfcluster.methods.{plain}"), _BUILT_IN[plain])
        module, _, class_name = _entry_points()[plain].partition(":")
        return getattr(importlib.import_module(module), class_name)

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())


METHODS: Mapping[str, Any] = _Methods()
