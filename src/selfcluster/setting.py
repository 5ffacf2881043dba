"""Declared settings: a default, what it means, and the values it may have, as data beside the field.

A method or a protocol declares its settings once, in a frozen dataclass. The command line makes flags of them, and
every value is checked here, wherever it comes from. The declarations can be read from the source, so that a help text
does not import torch.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "pair": "two numbers, the smaller first",
    "numbers": "numbers",
    "switch": "true or false",
}


def setting(
    default: object,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    auto: bool = False,
    repeat: bool = False,
) -> Any:
    """Return a dataclass field that declares a setting.

    The annotation gives the type: int, float, bool, str, or `Literal[...]` for a choice of names. `| None` allows null.

    Args:
        default: the value unless another is given; a constant, or a constant expression such as `14 * 256`.
        help: what the setting means, in a line.
        least: the smallest value allowed; None: any.
        most: the largest value allowed; None: any.
        auto: the recipe `auto` may choose the value.
        repeat: the flag may be given several times; the values are joined by commas.

    >>> @dataclass(frozen=True, kw_only=True)
    ... class Settings:
    ...     queue_length: int = setting(0, "Q, queued features a view; 0: no queue", least=0)
    >>> Settings().queue_length, options_of(Settings)["queue_length"].least
    (0, 0)
    """
    metadata = {"help": help, "least": least, "most": most, "auto": auto, "repeat": repeat}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """A declared setting, or a shared flag.

    `kind` is int, float, str, switch, pair (two numbers) or numbers. Numbers must be finite and within `least` and
    `most`. `auto`: the recipe of that name may choose it. `nullable`: None is a value.
    """

    name: str
    kind: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    auto: bool = False
    least: float | None = None
    most: float | None = None
    repeat: bool = False
    nullable: bool = False

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        return "--" + self.name.replace("_", "-")


def declared(name: str, annotation: str, default: Any, help: str, **bounds: Any) -> Option:
    """Return the option of a field with this annotation, as written in the source."""
    written, _, rest = annotation.partition(" | ")
    nullable = default is None or rest == "None"
    choices: tuple[str, ...] = ()
    if written.startswith("Literal["):
        choices = tuple(ast.literal_eval(f"({written[8:-1]},)"))
    kind = "str" if choices else {"int": "int", "float": "float", "bool": "switch", "str": "str"}[written]
    return Option(name, kind, default, help, choices, nullable=nullable, **bounds)


@functools.cache
def options_of(settings: type) -> Mapping[str, Option]:
    """Return the options that a dataclass of settings declares, by name.

    Raises:
        TypeError: a field is not declared with `setting`.
    """
    options = {}
    for field in dataclasses.fields(settings):
        if "help" not in field.metadata:
            raise TypeError(f"{settings.__name__}.{field.name} is not declared with setting(default, help)")
        options[field.name] = declared(field.name, _written(field.type), field.default, **field.metadata)
    return options


def _written(annotation: object) -> str:
    """An annotation as it stands in the source, also where Python has evaluated it."""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def check_settings(settings: DataclassInstance) -> None:
    """Raise ValueError, naming field and value, where a dataclass of declared settings holds a value out of bounds."""
    for name, option in options_of(type(settings)).items():
        value = getattr(settings, name)
        if value is None and option.nullable:
            continue
        problem = _problem(option, value)
        if problem:
            raise ValueError(f"{name}={value!r}: {problem}")


def check_names(names: Iterable[str], known: Mapping[str, Option]) -> None:
    """Raise ValueError for a name that is no option, with the nearest that is."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"no setting named {name!r}{hint}")


def checked(option: Option, value: object) -> Any:
    """Return the value in the option's type; raise ValueError naming flag, value and the nearest valid value."""
    if value is None:
        if option.nullable or option.default is None:
            return None
        raise ValueError(f"{option.flag}: needs {_WORDS[option.kind]}, not null")
    try:
        converted = _converted(option, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{option.flag} {_shown(value)}: expects {_WORDS[option.kind]}") from error
    problem = _problem(option, converted)
    if problem:
        shown = f"{converted:g}" if isinstance(converted, float) else _shown(value)
        raise ValueError(f"{option.flag} {shown}: {problem}")
    return converted


def _converted(option: Option, value: Any) -> object:
    if option.kind == "int":
        return _whole(value)
    if option.kind == "float":
        return _number(value)
    if option.kind in ("pair", "numbers"):
        if isinstance(value, str | Mapping):
            raise ValueError
        numbers = tuple(_number(part) for part in value)
        if option.kind == "pair" and not (len(numbers) == 2 and numbers[0] <= numbers[1]):
            raise ValueError
        return numbers
    if option.kind == "switch":
        if not isinstance(value, bool):
            raise ValueError
        return value
    if option.repeat and isinstance(value, list | tuple):
        return ",".join(_text(part) for part in value)
    return _text(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or float(value) != int(value):
        raise ValueError
    return int(value)


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | os.PathLike):
        raise ValueError
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _problem(option: Option, value: object) -> str:
    """Return what is wrong with a value of the right type, or ""."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            if not math.isfinite(number):
                return "must be a finite number"
            if option.least is not None and number < option.least:
                return f"must be {option.least:g} or more"
            if option.most is not None and number > option.most:
                return f"must be {option.most:g} or less"
    if option.choices and value not in option.choices:
        near = difflib.get_close_matches(str(value), option.choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"choose from {', '.join(option.choices)}{hint}"
    return ""


def in_words(value: object) -> str:
    """Return a setting's value as a person writes it.

    >>> in_words(True), in_words((0.25, 1.0)), in_words(None), in_words(1e-6)
    ('yes', '0.25 1', 'not given', '1e-06')
    """
    if value is None or isinstance(value, bool):
        return {None: "not given", True: "yes", False: "no"}[value]
    if isinstance(value, list | tuple):
        return " ".join(in_words(part) for part in value) or "none"
    return f"{value:.12g}" if isinstance(value, float) else str(value)  # 1e-07, not 1.0000000000000001e-07


def as_typed(name: str, value: object) -> str:
    """Return the flag that sets a setting to a value.

    >>> as_typed("batch_norm", False), as_typed("global_scale", (0.25, 1.0))
    ('--no-batch-norm', '--global-scale 0.25 1')
    """
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {in_words(value)}"


def _shown(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
