"""The results of `selfcluster evaluate` for the page: numbers as text, tables, and curves of tables in an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfcluster.reporting.curves import table_curve

_MOST_ROWS = 200


def shown_results(results: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Return protocol, numbers, settings that are not null, and the table's columns, rows and curve of each result."""
    shown = []
    for number, result in enumerate(results):
        numbers = {name: _text(value) for name, value in result["numbers"].items()}
        settings, subject = (
            part if isinstance(part := result.get(key), dict) else {} for key in ("settings", "subject")
        )
        chosen = {k: v for k, v in {**settings, **subject}.items() if v is not None and k != "model"}
        rows_kept = result.get("table")  # a file that anyone may have edited
        table = [row for row in rows_kept if isinstance(row, dict)] if isinstance(rows_kept, list) else []
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
