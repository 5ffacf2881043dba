"""Whether the files of a run are what was written: by their hashes and twins, or by reading those that have none.

Nothing is written or repaired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfcluster.files import reason_of
from selfcluster.models.backbones import ARCHITECTURE, WEIGHTS, check_weights, read_description
from selfcluster.runs import checkpoint
from selfcluster.runs.curation import CURATION, read_curation
from selfcluster.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    END,
    METRICS,
    START,
    STATUS,
    RunError,
    check_run,
    read_config,
    read_status,
)
from selfcluster.runs.labels import label_files, read_labels
from selfcluster.runs.tables import CLUSTERS, EMBEDDINGS, check_table, clusters_of, has_hash

State = Literal["whole", "read", "damaged"]  # by its hash; it can be read, there is no hash; not what was written


@dataclass(frozen=True)
class Verified:
    """A file or folder of a run, its name within the run, its state, and what is wrong, in words."""

    name: str
    state: State
    why: str = ""


def verify_run(run: Path) -> list[Verified]:
    """Return the state of every file of a run that can be checked, in a fixed order.

    Raises:
        RunError: the folder holds no run.
    """
    check_run(run)
    found = [_tried(CONFIG, lambda: read_config(run))]
    for name in (STATUS, METRICS, "quarantine.jsonl"):
        if (run / name).exists():
            found.append(_tried(name, lambda file=run / name: _read_lines(file)))
    found += _checkpoints(run)
    found += _networks(run)
    found += _missing(run)
    for table in sorted(run.glob("*.parquet")):
        why = check_table(table)
        found.append(Verified(table.name, "damaged" if why else "whole" if has_hash(table) else "read", why))
    for table in label_files(run).values():
        found.append(_tried(f"{table.parent.name}/{table.name}", lambda table=table: read_labels(table)))
    for result in sorted((run / "evaluations").glob("*.json")):
        found.append(_tried(f"evaluations/{result.name}", lambda file=result: json.loads(file.read_text("utf-8"))))
    if (run / CURATION).exists() and (run / CLUSTERS).is_file():
        found.append(_tried(CURATION, lambda: read_curation(run, clusters_of(run).by_id())))
    return found


def _tried(name: str, read: Callable[[], object]) -> Verified:
    try:
        read()
    except (OSError, ValueError, RuntimeError, RecursionError, KeyError) as error:
        return Verified(name, "damaged", reason_of(error))
    return Verified(name, "read")


def _read_lines(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text("utf-8")]
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {number} is not JSON") from None


def _checkpoints(run: Path) -> Iterator[Verified]:
    folders = (run / CHECKPOINTS, run / "diverged")  # the latter: of a run whose loss was not finite
    for path in sorted(path for each in folders for path in (*each.glob("step-*"), *each.glob("shard-*/step-*"))):
        name = path.relative_to(run).as_posix()
        why = checkpoint.damage(path)
        yield Verified(name, "damaged" if why else "whole", why)


def _networks(run: Path) -> Iterator[Verified]:
    """Of the network that the run keeps, and of those of its start and end."""
    for folder in (run, run / START, run / END):
        if (folder / ARCHITECTURE).exists():
            name = (folder / ARCHITECTURE).relative_to(run).as_posix()
            yield _tried(name, lambda folder=folder: read_description(folder))
        for weights in sorted(folder.glob("*.safetensors")):
            try:
                why = check_weights(weights)
            except ValueError as error:
                why = reason_of(error)
            name = weights.relative_to(run).as_posix()
            yield Verified(name, "damaged" if why else "read" if why is None else "whole", why or "")


def _missing(run: Path) -> Iterator[Verified]:
    """What a finished run has and this one lacks."""
    if read_status(run).get("state") != "finished" or "method" not in _config(run):
        return
    for name in (ARCHITECTURE, WEIGHTS, EMBEDDINGS, CLUSTERS):
        if not (run / name).exists():
            yield Verified(name, "damaged", "missing, though the run is finished")


def _config(run: Path) -> dict[str, object]:
    try:
        return read_config(run)
    except RunError:  # told already
        return {}
