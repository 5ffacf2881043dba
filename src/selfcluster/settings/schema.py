"""A method's settings and its paper's training, read from the source: a help text must not wait for torch.

`Settings` is a dataclass of literals and `paper` a call with literal arguments, so `ast` sees all there is to know.
"""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcluster.methods import canonical


@dataclass(frozen=True)
class Setting:
    """One hyper-parameter: its name, its type as written, the paper's value, and the comment behind it."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Schema:
    """All that the command line needs to know of a method."""

    name: str
    summary: str
    settings: tuple[Setting, ...]
    paper: dict[str, Any]  # the arguments of Training(...); "crops" holds those of Crops(...)
    supports_accumulation: bool
    small: dict[str, Any]  # flags for small images and short runs
    advice: str | None  # what helps where nothing is learned; None: the base's


@functools.cache
def read_schema(method: str) -> Schema:
    """Read the method's file; raises KeyError for an unknown name."""
    name = canonical(method)
    source = (Path(__file__).parent.parent / "methods" / f"{name}.py").read_text()
    tree = ast.parse(source)
    comments = _comments(source)
    settings: tuple[Setting, ...] = ()
    paper: dict[str, Any] = {}
    supports_accumulation = False
    small: dict[str, Any] = {}
    advice: str | None = None
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        if node.name.endswith("Settings"):
            settings = tuple(
                Setting(field.target.id, ast.unparse(field.annotation), _value(field.value), comments[field.lineno])
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value
            )
            continue
        for field in node.body:
            if isinstance(field, ast.Assign) and isinstance(field.targets[0], ast.Name):
                target = field.targets[0].id
                if target == "paper":
                    paper = _value(field.value)
                elif target == "supports_accumulation":
                    supports_accumulation = _value(field.value)
                elif target == "small":
                    small = _value(field.value)
                elif target == "advice":
                    advice = _value(field.value)
    docstring = ast.get_docstring(tree) or ""
    return Schema(name, docstring.split("\n")[0], settings, paper, supports_accumulation, small, advice)


@functools.cache
def training_defaults(kind: str) -> dict[str, Any]:
    """The fields of `types.Training` or `types.Crops` with their defaults, read without importing torch."""
    tree = ast.parse((Path(__file__).parent.parent / "types.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == kind:
            return {
                field.target.id: _value(field.value)
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value
            }
    raise KeyError(kind)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):  # Training(...) or Crops(...)
        return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    return ast.literal_eval(node)


def _comments(source: str) -> dict[int, str]:
    lines = dict.fromkeys(range(1, source.count("\n") + 2), "")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = token.string.lstrip("# ").strip()
    return lines
