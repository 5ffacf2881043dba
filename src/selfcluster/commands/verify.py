"""`selfcluster verify`: whether the files of a run are what was written."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = "check the files of a run for damage"


class Damaged(RuntimeError):
    """Files of a run are not what was written; `result` has every file's state."""

    def __init__(self, message: str, result: list[dict[str, str]]) -> None:
        super().__init__(message)
        self.result = result


def verify(run: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Check every file of a run by its hash, by comparison with its second copy (CSV and Parquet), or by reading it.

    Nothing is written.

    Args:
        run: a run folder.

    Returns:
        A dict for each file or checkpoint: name; state: "whole" (its hash is right), "read" (it has no hash, but can
        be read) or "damaged"; why.

    Raises:
        RunError: the folder holds no run.
    """
    from selfcluster.runs.verify import verify_run

    return [{"name": each.name, "state": each.state, "why": each.why} for each in verify_run(Path(run))]


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.set_defaults(run_command=run_command)


def run_command(run: str) -> tuple[object, str]:
    rows = verify(run)
    words = {"whole": "whole", "read": "can be read, has no hash", "damaged": "DAMAGED"}
    width = max(len(row["name"]) for row in rows)
    lines = [f"{row['name']:<{width}}  {words[row['state']]}{': ' if row['why'] else ''}{row['why']}" for row in rows]
    damaged = sum(row["state"] == "damaged" for row in rows)
    if damaged:
        raise Damaged("\n".join([*lines, f"{damaged} of {len(rows)} are damaged"]), rows)
    return rows, "\n".join([*lines, f"{len(rows)} checked, none damaged"])
