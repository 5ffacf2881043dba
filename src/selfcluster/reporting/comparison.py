"""The table of a comparison, as text and as one HTML file that opens offline."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from selfcluster.evaluation.comparison import Cell, Comparison
from selfcluster.files import write_atomically
from selfcluster.reporting.page import package_file, visible

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def comparison_text(comparison: Comparison) -> str:
    """Return the table with a legend of its columns."""
    letters = _letters(len(comparison.columns))
    heads = ["", *(f"{n} {c.protocol} {c.number}" for n, c in zip(letters, comparison.columns, strict=True))]
    lines = [heads]
    for row in comparison.rows:
        lines.append([row.name, *("–" if cell is None else _score(cell) for cell in row.cells)])
        for k in range(max((len(_beside(cell)) for cell in row.cells if cell), default=0)):
            beside = [_beside(cell)[k : k + 1] if cell else [] for cell in row.cells]
            lines.append(["", *(line[0] if line else "" for line in beside)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    legend = [
        f"{n}: " + ", ".join(f"{name} {value}" for name, value in column.conditions.items())
        for n, column in zip(letters, comparison.columns, strict=True)
    ]
    return "\n".join([*table, "", *legend])


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page; return its path. Names are escaped, and absolute paths keep their last two parts."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    page = environment.from_string(package_file("comparison.html.j2")).render(
        comparison=comparison,
        letters=_letters(len(comparison.columns)),
        score=_score,
        beside=_beside,
        style=Markup(package_file("style.css")),
    )
    write_atomically(path, page.encode("utf-8", "backslashreplace"))
    return path


def _score(cell: Cell) -> str:
    return f"{cell.mean:.3f}" + ("" if cell.spread is None else f" ± {cell.spread:.3f} (n={cell.runs})")


def _beside(cell: Cell) -> list[str]:
    pairs = (("untrained", cell.untrained), ("start", cell.start))
    return [f"{name} {value:.3f}" for name, value in pairs if value is not None]


def _letters(count: int) -> list[str]:
    return [_LETTERS[i] if count <= len(_LETTERS) else str(i + 1) for i in range(count)]
