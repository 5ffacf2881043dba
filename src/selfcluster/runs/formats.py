"""The format of a run folder: its number, and how an older one is brought to today's.

Format 1 (version 0.1): settings, values and tensors have American names; a checkpoint holds the settings it was made
with. Format 0 is what was written before the format had a number.
A converter takes a format to the next. What a run folder of format 0 lacks takes the default of its setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

FORMAT = 1

# old names of settings, and of their values; the command line accepts both for one release
RENAMED = {
    "centring": "centering",
    "centre_momentum": "center_momentum",
    "num_optimisations": "num_optimizations",
}
RENAMED_VALUES = {"centering": {"centre": "center"}, "augment": {"colour": "color"}}
_RENAMED_TENSORS = (("centring", "centering"), ("centre", "center"))
T = TypeVar("T")


class FormatError(ValueError):
    """A run folder that a newer version wrote, or whose format is no number."""


def with_modern_names(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return settings under today's names, and named values as they are called today."""
    modern = {RENAMED.get(name, name): value for name, value in settings.items()}
    for name, values in RENAMED_VALUES.items():
        if isinstance(modern.get(name), str):
            modern[name] = values.get(modern[name], modern[name])
    return modern


def modern_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return a run's configuration in today's format; raise FormatError for a newer one."""
    about = config.get("about")
    number = about.get("format", 0) if isinstance(about, Mapping) else 0
    return _upgrade(config, number, (with_modern_names,))


def modern_meta(meta: Mapping[str, object]) -> dict[str, object]:
    """Return the JSON of a checkpoint in today's format; raise FormatError for a newer one."""
    return _upgrade(meta, meta.get("format", 0), (_meta_to_1,))


def modern_tensors(tensors: dict[str, T], written: object) -> dict[str, T]:
    """Return the tensors of a checkpoint of the format `written` under today's names."""
    if written:
        return tensors
    return {_tensor_to_1(name): tensor for name, tensor in tensors.items()}


def _upgrade(
    value: Mapping[str, object],
    number: object,
    converters: tuple[Callable[[Mapping[str, object]], dict[str, object]], ...],
) -> dict[str, object]:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise FormatError(f"format {number!r} is not a whole number of 0 or more")
    if number > FORMAT:
        raise FormatError(f"it has format {number}, and this version reads formats up to {FORMAT}: update selfcluster")
    for convert in converters[number:]:
        value = convert(value)
    return dict(value)


def _meta_to_1(meta: Mapping[str, object]) -> dict[str, object]:
    modern = {"reassignment" if name == "renewal" else name: value for name, value in meta.items()}
    layout = modern.get("layout")
    if isinstance(layout, Mapping):
        modern["layout"] = {"in_memory" if name == "resident" else name: value for name, value in layout.items()}
    return modern


def _tensor_to_1(name: str) -> str:
    for old, new in _RENAMED_TENSORS:
        name = name.replace(old, new)
    return name
