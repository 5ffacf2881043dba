"""Results of several runs in one table. A row is a run, or a group of runs that differ only in their seed.

A column is a number of one protocol with the same settings and images. Numbers under other conditions get a column of
their own. A cell also holds the scores of the untrained network and of the start, if the run folder has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from selfcluster.evaluation.protocol import read_results
from selfcluster.settings.files import deciding, run_config

ROLES = ("untrained", "start")


@dataclass(frozen=True)
class Cell:
    """A number of a row: its mean, the standard deviation over `runs` runs (None for one), and the baselines."""

    mean: float
    spread: float | None
    runs: int
    untrained: float | None = None
    start: float | None = None


@dataclass(frozen=True)
class Column:
    """A number of a protocol under `conditions`, the settings and images that every result in it shares."""

    protocol: str
    number: str
    conditions: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A group of runs. `cells` has one cell per column, or None if no run has the number."""

    name: str
    runs: tuple[str, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Columns and rows, in the order in which the runs were named."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def compare_runs(runs: Sequence[Path], protocol: str | None = None) -> Comparison:
    """Return the kept results of runs in one table.

    Args:
        runs: run folders.
        protocol: show this protocol only; None: all.

    Raises:
        ValueError: no run has a result to show; the message says how to make one.
    """
    found: dict[Path, list[dict[str, Any]]] = {}
    for run in runs:
        results = read_results(run)
        found[run] = [r for r in results if protocol in (None, r["protocol"]) and _main_number(r) is not None]
    keys: dict[str, Column] = {}
    for run, results in found.items():
        for result in results:
            keys.setdefault(_key(result, run), Column(result["protocol"], *_column(result, run)))
    if not keys:
        what = "no result" if protocol is None else f"no result of {protocol}"
        names = ", ".join(str(run) for run in runs)
        raise ValueError(
            f"{names}: there is {what} to compare. Add --protocol knn --train DATA, or run: selfcluster evaluate knn "
            f"{runs[0]}"
        )
    rows = []
    for members in _groups(runs):
        cells = [_cell(members, found, key, keys[key].number) for key in keys]
        rows.append(Row(_name(members), tuple(str(run) for run in members), tuple(cells)))
    return Comparison(tuple(keys.values()), tuple(rows))


def _groups(runs: Sequence[Path]) -> list[list[Path]]:
    """Group runs whose settings differ only in the seed, in the order in which they were named."""
    groups: dict[str, list[Path]] = {}
    for run in dict.fromkeys(runs):
        config = run_config(run)
        same = {k: v for k, v in deciding(config).items() if k != "seed"}
        key = json.dumps([config.get("method"), config.get("data"), same], sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _name(members: Sequence[Path]) -> str:
    names = [run.resolve().name for run in members]
    if len(names) == 1:
        return names[0]
    length = next((i for i, letters in enumerate(zip(*names)) if len(set(letters)) > 1), min(map(len, names)))
    return names[0][:length].rstrip("-_. ") or ", ".join(names)


def _main_number(result: Mapping[str, Any]) -> str | None:
    """Return the name of the first float: protocols put their score first."""
    return next((name for name, value in result["numbers"].items() if isinstance(value, float)), None)


def _column(result: Mapping[str, Any], run: Path) -> tuple[str, dict[str, object]]:
    subject = {k: v for k, v in (result.get("subject") or {}).items() if k not in ("model", "seed", "role")}
    subject["train"] = subject.get("train") or run_config(run).get("data")
    conditions = {**(result.get("settings") or {}), **subject}
    return str(_main_number(result)), {k: v for k, v in conditions.items() if v is not None}


def _key(result: Mapping[str, object], run: Path) -> str:
    number, conditions = _column(result, run)
    size = run_config(run).get("image_size")
    same = {name: value for name, value in conditions.items() if (name, value) != ("image_size", size)}
    return json.dumps([result["protocol"], number, with_whole_paths(same)], sort_keys=True, default=str)


def with_whole_paths(conditions: Mapping[str, object]) -> dict[str, object]:
    """Return a result's conditions with absolute paths of images: `photos` and `/home/ann/photos` may be the same."""
    places = {
        name: str(Path(word).resolve())
        for name in ("train", "test")
        if isinstance(word := conditions.get(name), str) and Path(word).exists()
    }
    return {**conditions, **places}


def _cell(members: Sequence[Path], found: Mapping[Path, Any], key: str, number: str) -> Cell | None:
    """The mean over runs of each run's mean over its evaluation seeds; of one seed the newest result counts."""
    scores: dict[str, list[float]] = {role: [] for role in ("run", *ROLES)}
    for run in members:
        own: dict[str, dict[object, float]] = {}
        for result in found[run]:
            if _key(result, run) == key:
                subject = result.get("subject") or {}
                of_role = own.setdefault(subject.get("role", "run"), {})
                of_role[subject.get("seed")] = float(result["numbers"][number])
        for role, values in own.items():
            scores[role].append(mean(values.values()))
    if not scores["run"]:
        return None
    of_runs = scores["run"]
    spread = stdev(of_runs) if len(of_runs) > 1 else None
    untrained, start = (mean(scores[role]) if scores[role] else None for role in ROLES)
    return Cell(mean(of_runs), spread, len(of_runs), untrained, start)
