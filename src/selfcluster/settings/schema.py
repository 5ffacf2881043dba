"""What a method declares (its settings, its paper's training, its rules), read from the source without importing torch.

A declaration is a constant, a constant expression, or a call of `setting`, `Training` or `Crops` with such arguments.
Classes that another package registers are already imported, so theirs are read from the class itself.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcluster.methods import canonical, located
from selfcluster.setting import Option, declared, options_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_ADVICE = "Try a lower --learning-rate, or larger batches."  # the base's
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
}
Idle = tuple[tuple[str, ...], str, tuple[Any, ...]]


@dataclass(frozen=True)
class Schema:
    """All that the command line and the recipes need to know of a method.

    `paper`: the arguments of `Training(...)`, with those of `Crops(...)` under "crops". `small`: settings for small
    images and short runs.
    `idle`: settings, another setting, and the values of that under which the first have no effect. `advice`: what to
    try when a run learns nothing.
    """

    name: str
    summary: str
    settings: tuple[Option, ...]
    paper: dict[str, Any]
    supports_accumulation: bool = False
    small: dict[str, Any] = dataclasses.field(default_factory=dict)
    idle: tuple[Idle, ...] = ()
    advice: str = _ADVICE


@functools.cache
def read_schema(method: str) -> Schema:
    """Return the schema of a method; raise KeyError for an unknown name."""
    name = canonical(method)
    place = located(name)
    if isinstance(place, type):
        return schema_of(name, place)
    path, class_name = place
    return _Source(path).schema(name, class_name)


def schema_of(name: str, method: Any) -> Schema:
    """Return the schema of a class that is already imported."""
    paper = _fields(method.paper) | {"crops": _fields(method.paper.crops)}
    lines = (getattr(__import__(method.__module__, fromlist=["x"]), "__doc__", None) or method.__doc__ or "").split(
        "\n"
    )
    own = {key: getattr(method, key) for key in ("supports_accumulation", "small", "idle", "advice")}
    return Schema(name, lines[0], tuple(options_of(method.Settings).values()), paper, **own)


def _fields(value: DataclassInstance) -> dict[str, object]:
    """The fields of a dataclass that differ from their defaults, without nested ones."""
    fields = [f for f in dataclasses.fields(value) if not dataclasses.is_dataclass(f.default)]
    return _unlike({f.name: getattr(value, f.name) for f in fields}, {f.name: f.default for f in fields})


def _unlike(values: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value != defaults[name]}


@functools.cache
def training_defaults(kind: str) -> dict[str, Any]:
    """Return the fields of `types.Training` or `types.Crops` with their defaults, read without importing torch."""
    source = _Source(Path(__file__).parent.parent / "types.py")
    return {name: source.value(node) for name, (_, node) in _annotated(source.classes[kind]).items()}


def read_declarations(path: Path, class_name: str) -> tuple[str, Mapping[str, Option]]:
    """Return a module's first line of documentation, and the settings that one of its classes declares."""
    source = _Source(path)
    return source.summary, source.options(class_name)


@functools.cache
def class_with_base(path: Path, base: str) -> str | None:
    """Return the name of the first class in a file that has a base of this name."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and any(getattr(parent, "id", "") == base for parent in node.bases):
            return node.name
    return None


class _Source:
    """A module's source."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text("utf-8"))
        self.summary = (ast.get_docstring(tree) or "").split("\n")[0]
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.constants: dict[str, Any] = {}
        for name, node in _assigned(tree).items():
            try:
                self.constants[name] = self.value(node)
            except (ValueError, TypeError, KeyError):
                continue  # not a constant

    def options(self, class_name: str) -> dict[str, Option]:
        """The settings of a class, by name."""
        attributes = _assigned(self.classes[class_name])
        settings = self.classes[getattr(attributes["Settings"], "id", class_name)]
        return {field: self.option(field, *parts) for field, parts in _annotated(settings).items()}

    def schema(self, name: str, class_name: str) -> Schema:
        attributes = _assigned(self.classes[class_name])
        options = tuple(self.options(class_name).values())
        known = {f.name for f in dataclasses.fields(Schema)} & attributes.keys() - {"settings", "paper"}
        own = {key: self.value(attributes[key]) for key in known}
        paper = self.value(attributes["paper"])
        crops = _unlike(paper.pop("crops", {}), training_defaults("Crops"))
        return Schema(
            name, self.summary, options, _unlike(paper, training_defaults("Training")) | {"crops": crops}, **own
        )

    def option(self, name: str, annotation: ast.expr, node: ast.expr) -> Option:
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setting"):
            raise TypeError(f"{name} is not declared with setting(default, help)")
        default, help = (self.value(argument) for argument in node.args)
        return declared(name, ast.unparse(annotation), default, help, **self.arguments(node))

    def arguments(self, call: ast.Call) -> dict[str, Any]:
        return {str(keyword.arg): self.value(keyword.value) for keyword in call.keywords}

    def value(self, node: ast.expr | None) -> Any:
        """A constant expression's value; of a call of Training or Crops its arguments."""
        if isinstance(node, ast.Call):
            return self.arguments(node)
        if isinstance(node, ast.Name):
            return self.constants[node.id]
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](self.value(node.left), self.value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand)
        if isinstance(node, ast.Tuple):
            return tuple(self.value(part) for part in node.elts)
        if isinstance(node, ast.Dict):
            return {self.value(key): self.value(part) for key, part in zip(node.keys, node.values, strict=True)}
        return ast.literal_eval(node)  # pyright: ignore[reportArgumentType]


def _assigned(node: ast.Module | ast.ClassDef) -> dict[str, ast.expr]:
    """Names and values of plain assignments, with or without an annotation."""
    found: dict[str, ast.expr] = {}
    for line in node.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = line.value
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            found[line.target.id] = line.value
    return found


def _annotated(node: ast.ClassDef) -> dict[str, tuple[ast.expr, ast.expr]]:
    """Annotations and values of a dataclass's fields that have a default."""
    return {
        line.target.id: (line.annotation, line.value)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None
    }
