"""What a run folder holds, read without trust: any file may be missing, cut short or written by somebody else.

N images, F features. Vectors are streamed from disk, so that a million rows need the memory of a sample.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from selfcluster.files import reason_of
from selfcluster.runs.formats import modern_config

_PROJECTIONS = 8  # numbers that stand for a vector when copies are looked for
_CELL = 1e-4  # of a projection's standard deviation: wider than rounding, far narrower than two pictures' difference


T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """A file that the page would have shown: its name, what it would give, why it is not there, what makes it.

    `command` is empty if the run itself will make the file, because it has not finished.
    """

    name: str
    gives: str
    why: str
    command: str


@dataclass(frozen=True)
class Clusters:
    """`ids` and `paths` (N,) Arrow strings; `cluster` (N,) int64, -1 = none; `distance` (N,) float32 to the center."""

    ids: pa.Array
    paths: pa.Array
    cluster: np.ndarray
    distance: np.ndarray


@dataclass
class Contents:
    """A run folder's parts. What could not be read is None or empty, and stands in `missing`."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    clusters: Clusters | None = None
    vectors: Vectors | None = None
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    @property
    def data(self) -> str:
        """Where the images came from, as the settings say; "DATA" where they do not."""
        data = self.config.get("data")
        if isinstance(data, dict):
            data = next((data[key] for key in ("path", "data", "folder", "source") if data.get(key)), None)
        return "DATA" if data is None else str(data)

    @property
    def is_unfinished(self) -> bool:
        """Whether the run is known not to be at its end; other programs have other words for that end."""
        return str(self.status.get("state") or "finished") not in ("finished", "done", "complete", "completed")

    def last(self, key: str) -> float | None:
        """The last finite value of a metric, or None."""
        values = self.metrics[key][1] if key in self.metrics else np.empty(0)
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else None


class Vectors:
    """The vectors of `embeddings.parquet`, read a batch at a time.

    `ids` and `paths` (N,) Arrow strings, `dim` F. `copies` (N,) int64: rows with the same number have the same vector
    (to rounding), so they show the same picture.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        names = pq.read_table(path, columns=["id", "path"])
        self.ids, self.paths = _strings(names["id"]), _strings(names["path"])
        self.dim = 0
        projected = np.empty((len(self.ids), _PROJECTIONS), np.float32)
        directions = np.empty(0)
        for start, batch in self.batches():
            if not self.dim:
                self.dim = batch.shape[1]
                directions = np.random.default_rng(0).standard_normal((self.dim, _PROJECTIONS)).astype(np.float32)
            if batch.shape[1] != self.dim:
                raise ValueError(f"vectors have {self.dim} numbers at first and {batch.shape[1]} from row {start} on")
            projected[start : start + len(batch)] = batch @ directions
        self.copies = _same_rows(projected)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n, F) float32, the vectors at the sorted positions `rows` (n,)."""
        out = np.empty((len(rows), self.dim), np.float32)
        for start, batch in self.batches():
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            out[first:last] = batch[rows[first:last] - start]
        return out

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, (n, F) float32) for all rows in order."""
        start = 0
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=8192, columns=["vector"]):
                if len(batch):
                    yield start, _matrix(batch.column(0), start)
                start += len(batch)


def read_contents(run: Path) -> Contents:
    """Read a run folder.

    Raises:
        FileNotFoundError: `run` is not a folder.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is not a folder; give the run folder that `selfcluster train` wrote")
    contents = Contents(run)
    place = shlex.quote(str(run))  # commands are there to be copied into a shell

    def read(name: str, gives: str, command: str, reader: Callable[[Path], T]) -> T | None:
        try:
            return reader(run / name)
        except FileNotFoundError:
            why = "not there"
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:  # Arrow's errors are among these
            why = f"cannot be read: {reason_of(error)}"
        contents.missing.append(Missing(name, gives, why, command))
        return None

    contents.config = read("config.yaml", "settings and versions", f"train METHOD DATA --out {place}", _mapping) or {}
    data, method = shlex.quote(contents.data), shlex.quote(method_of(contents.config) or "METHOD")
    train = f"train {method} {data} --out {place}"
    contents.status = read("status.json", "how the run ended", train, _status) or {}
    if not is_untrained(contents.config) or (run / "metrics.jsonl").exists():
        contents.metrics = read("metrics.jsonl", "the curves", train, _metrics) or {}
    later = contents.is_unfinished
    embed = "" if later else f"embed {place} {data} --out {shlex.quote(str(run / 'embeddings.parquet'))}"
    contents.vectors = read("embeddings.parquet", "the map", embed, Vectors)
    contents.clusters = read(
        "clusters.parquet", "the gallery of clusters", "" if later else f"cluster {place}", _clusters
    )
    if (run / "quarantine.jsonl").exists():  # no file: nothing was wrong
        contents.quarantine = read("quarantine.jsonl", "the bad files", train, _lines) or []
    return contents


def is_untrained(config: Mapping[str, object]) -> bool:
    """Return whether the images of a run were only embedded, by the network that `model` names."""
    return "model" in config and "method" not in config


def method_of(config: Mapping[str, object]) -> str | None:
    """The method's name in a run's settings."""
    method = config.get("method")
    return str(method.get("name")) if isinstance(method, dict) else None if method is None else str(method)


def _mapping(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(path.read_text("utf-8", "replace"))
    if not isinstance(value, dict):
        raise ValueError(f"it contains a {type(value).__name__}, not settings")
    return modern_config(value)


def _status(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text("utf-8", "replace"))
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """Objects, one a line; a line cut short by a crash is left out."""
    rows = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def _metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every numeric key's steps and values; null stands for a value that was not finite."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for n, row in enumerate(_lines(path)):
        step = row.get("step", n)
        for key, value in row.items():
            value = float("nan") if value is None else value
            if key == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            steps, values = columns.setdefault(key, ([], []))
            steps.append(float(step) if isinstance(step, int | float) else float(n))
            values.append(float(value))
    return {key: (np.array(steps), np.array(values)) for key, (steps, values) in columns.items()}


def _clusters(path: Path) -> Clusters:
    table = pq.read_table(path, columns=["id", "path", "cluster", "distance"])
    cluster = pc.fill_null(table["cluster"].cast(pa.int64()), -1).to_numpy()
    distance = pc.fill_null(table["distance"].cast(pa.float32()), np.nan).to_numpy()
    return Clusters(_strings(table["id"]), _strings(table["path"]), cluster, distance)


def _strings(column: pa.ChunkedArray) -> pa.Array:
    chunks = pc.fill_null(column.cast(pa.large_string()), "")
    return pa.concat_arrays(chunks.chunks) if chunks.num_chunks else pa.array([], pa.large_string())


def _matrix(column: pa.Array, start: int) -> np.ndarray:
    column = column.cast(pa.list_(pa.float32()))  # whichever kind of list it was written as
    values = column.flatten().to_numpy(zero_copy_only=False)
    n = len(column)
    if not len(values) or (np.diff(column.offsets.to_numpy()) * n != len(values)).any():
        raise ValueError(f"vectors in rows {start} to {start + n - 1} differ in length or are empty")
    return values.reshape(n, -1)


def _same_rows(projected: np.ndarray) -> np.ndarray:
    """(N,) numbers, equal where the rows of (N, P) random projections are equal to rounding.

    Where the features have collapsed all rows look alike and nothing follows from it: every row has its own number.
    """
    numbers = np.arange(len(projected))
    finite = np.isfinite(projected).all(axis=1)
    if finite.sum() < 2:
        return numbers
    spread = projected[finite].std(axis=0, dtype=np.float64)
    if (spread <= 1e-5 * np.abs(projected[finite]).max(axis=0)).any():
        return numbers
    cells = np.round(projected[finite] / (spread * _CELL)).astype(np.int64)
    _, first, group = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    numbers[finite] = numbers[finite][first][group.ravel()]
    return numbers
