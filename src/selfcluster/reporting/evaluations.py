"""The results of `selfcluster evaluate` for the page: numbers as text, tables, and curves of tables in an order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfcluster.evaluation.protocol import read_results
from selfcluster.reporting.curves import table_curve

_MOST_ROWS = 200


def shown_results(run: Path) -> list[dict[str, object]]:
    """Return protocol, numbers, settings that differ from null, and columns, rows and curve of the table."""
    shown = []
    for number, result in enumerate(read_results(run)):
        numbers = {name: _text(value) for name, value in result["numbers"].items()}
        settings, subject = (result.get(part) or {} for part in ("settings", "subject"))
        chosen = {k: v for k, v in {**settings, **subject}.items() if v is not None and k != "model"}
        table = [row for row in result.get("table") or () if isinstance(row, dict)]
        columns = list(dict.fromkeys(name for row in table for name in row))
        rows = [[_text(row.get(name)) for name in columns] for row in table[:_MOST_ROWS]]
        shown.append(
            {
                "protocol": result["protocol"],
                "numbers": numbers,
                "chosen": chosen,
                "columns": columns,
                "rows": rows,
                "count": len(table),
                "curve": table_curve(table, f"result{number}"),
                "notes": _sentences(result.get("notes")),
            }
        )
    return shown


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _sentences(notes: object) -> Sequence[str]:
    return [str(note) for note in notes] if isinstance(notes, list) else []
