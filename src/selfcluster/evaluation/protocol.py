"""The contract of an evaluation protocol, and where its results go.

A protocol is one file in `protocols/`: a class with `Settings`, `needs` and `run`. The command line makes flags of its
settings, and `RUN/evaluations/NAME-HASH.json` holds its result: one JSON object with the keys protocol, numbers,
table (rows, often one per class), settings, subject, notes (where the protocol follows a paper's peculiarities), and
selfcluster (the version). The hash is that of the settings and the subject, so a repeated evaluation replaces its
file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from selfcluster import __version__
from selfcluster.files import COPY_RUN, make_writable, write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from selfcluster.evaluation.subject import Subject

EVALUATIONS = "evaluations"
Need = Literal["features", "layers", "network", "clusters"]
Labels = Literal["none", "single", "multi", "any"]


@dataclass(frozen=True)
class Result(Mapping[str, Any]):
    """The result of a protocol; it can be used as a dict of its numbers.

    `numbers`: by name; accuracies are shares in [0, 1]. `table`: rows with the same keys, often one
    per class. `notes`: sentences about a paper's peculiarities that were kept or left out.
    """

    protocol: str
    numbers: Mapping[str, Any]
    table: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    subject: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def to_pandas(self) -> Any:
        """Return the table as a pandas DataFrame, or the numbers as one row if there is no table."""
        import pandas as pd  # pyright: ignore[reportMissingImports] - used only where the user has it

        return pd.DataFrame(list(self.table) or [dict(self.numbers)])

    def as_json(self) -> dict[str, object]:
        """Return a JSON object that holds everything; numbers that are not finite become null."""
        return _plain({**dataclasses.asdict(self), "selfcluster": __version__})

    def write(self, run: Path) -> Path:
        """Write the result to the run folder; return the file."""
        key = json.dumps(_plain([self.settings, self.subject]), sort_keys=True)
        folder = run / EVALUATIONS
        make_writable(folder, COPY_RUN)
        file = folder / f"{self.protocol}-{hashlib.sha256(key.encode()).hexdigest()[:10]}.json"
        write_atomically(file, json.dumps(self.as_json(), indent=2) + "\n")
        return file


class Protocol:
    """Base of all protocols. The first line of the module's docstring says what the protocol measures."""

    Settings: ClassVar[type]  # frozen keyword-only dataclass, each field declared with `setting`
    needs: ClassVar[tuple[Need, ...]] = ("features",)
    labels: ClassVar[Labels] = "single"

    def run(self, subject: Subject, settings: Any) -> Result:
        """Measure. `settings` is an object of `Settings`, checked."""
        raise NotImplementedError


def result_of(
    protocol: str,
    numbers: Mapping[str, object],
    subject: Subject,
    settings: DataclassInstance,
    *,
    table: tuple[Mapping[str, object], ...] = (),
    notes: tuple[str, ...] = (),
) -> Result:
    """Return a result with its settings, its subject and the subject's own notes."""
    return Result(protocol, numbers, table, dataclasses.asdict(settings), subject.describe(), subject.notes() + notes)


def read_results(run: Path) -> list[dict[str, Any]]:
    """Return the results in a run folder, oldest first. Files that are not results are left out."""
    found = []
    files = (run / EVALUATIONS).glob("*.json") if (run / EVALUATIONS).is_dir() else ()
    for file in sorted(files, key=lambda f: (f.stat().st_mtime_ns, f.name)):
        try:
            value = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and isinstance(value.get("numbers"), dict) and "protocol" in value:
            found.append(value)
    return found


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, np.generic):
        return _plain(value.item())
    return value if isinstance(value, str | int | float | bool | None) else str(value)
