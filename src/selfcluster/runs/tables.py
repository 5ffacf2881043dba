"""The tables a user takes away: `embeddings.parquet` (id, path, vector) and `clusters.parquet` with its CSV twin.

A Parquet file carries the hash of its own content, and the hash of its twin where it has one.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from selfcluster.data.sources import Source
from selfcluster.files import reason_of, write_atomically, write_together
from selfcluster.runs.folder import RunError, check_run
from selfcluster.runs.vectors import read_matrix, read_npy

EMBEDDINGS, CLUSTERS = "embeddings.parquet", "clusters.parquet"
_BLOCK = 1 << 22  # numbers that are read or written at once
_CONTENT, _TWIN = b"selfcluster.sha256", b"selfcluster.twin.sha256"

log = logging.getLogger("selfcluster.runs")


@dataclass(frozen=True)
class EmbeddingTable:
    """`ids` and `paths` (n,) in manifest order and their `vectors` (n, F) float32."""

    ids: list[str]
    paths: list[str]
    vectors: np.ndarray


@dataclass(frozen=True)
class ClusterTable:
    """`ids`, `paths` (n,), the `clusters` (n,) int64 and the `distances` (n,) float32 to their centers."""

    ids: list[str]
    paths: list[str]
    clusters: np.ndarray
    distances: np.ndarray

    def by_id(self) -> dict[str, int]:
        """Return the cluster of each image by its id; -1: none."""
        return dict(zip(self.ids, self.clusters.tolist(), strict=True))


def write_embeddings(path: Path, ids: Sequence[str], paths: Sequence[str], vectors: np.ndarray) -> None:
    """Write the table; it appears under its name when complete."""
    dim = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    table = pa.table({"id": list(ids), "path": list(paths), "vector": pa.FixedSizeListArray.from_arrays(flat, dim)})
    table = table.replace_schema_metadata({_CONTENT: _digest(table)})
    path.parent.mkdir(parents=True, exist_ok=True)
    block = max(
        1, _BLOCK // max(1, dim)
    )  # the writer holds a row group, and more of it where it looks for equal values

    def write(temporary: Path) -> None:
        pq.write_table(table, temporary, row_group_size=block, use_dictionary=False)

    write_atomically(path, write, size=table.nbytes)


def read_embeddings(path: Path) -> EmbeddingTable:
    """Read the table (Parquet with id and vector), or a .npy file (N, F) whose rows have their numbers as ids.

    Raises:
        ValueError: a column is missing, or a vector cannot be used; the message names the row (see `vectors.py`).
    """
    if path.suffix.lower() == ".npy":
        ids, matrix = read_npy(path)
        return EmbeddingTable(ids, ids, matrix)
    with _opened(path, {"id", "vector"}) as file:
        names = [name for name in ("id", "path") if name in file.schema_arrow.names]
        table = file.read(names)
        ids = [str(value) for value in table["id"].to_pylist()]
        matrix = read_matrix(file, "vector", ids, str(path))
    return EmbeddingTable(ids, table["path"].to_pylist() if "path" in names else ids, matrix)


def table_name(out: str | os.PathLike[str] | None, default: object, *endings: str) -> Any:
    """Where a table goes, a Path; raises ValueError for a name that does not end as what is written there."""
    if out is None:
        return default
    if Path(out).suffix not in endings:
        raise ValueError(f"--out {out}: the file name must end in {' or '.join(endings)}")
    return Path(out)


def write_clusters(path: Path, table: ClusterTable) -> None:
    """Write `path` (Parquet) and the same as CSV beside it: either both are new, or a reader can tell."""
    columns = {"id": table.ids, "path": table.paths, "cluster": table.clusters, "distance": table.distances}
    arrow = pa.table(columns)
    text = _csv(arrow)
    twin = hashlib.sha256(text).hexdigest()
    arrow = arrow.replace_schema_metadata({_CONTENT: _digest(arrow), _TWIN: twin})
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {path: lambda temporary: pq.write_table(arrow, temporary), path.with_suffix(".csv"): text}
    write_together(contents, size=arrow.nbytes)


def read_clusters(path: Path) -> ClusterTable:
    """Read what `write_clusters` wrote; warn where its CSV twin is another table's."""
    table = _read(path, {"id", "cluster", "distance"})
    if wrong_twin(path, table):
        log.warning(
            "%s differs from %s: it was edited, or a command was interrupted. `selfcluster cluster` writes both again",
            path.with_suffix(".csv"),
            path,
        )
    ids = table["id"].to_pylist()
    paths = table["path"].to_pylist() if "path" in table.column_names else ids
    return ClusterTable(ids, paths, np.array(table["cluster"]), np.array(table["distance"]))


def embeddings_of(run: Path) -> EmbeddingTable:
    """Return a run's embeddings; raise RunError where it has none."""
    if not (run / EMBEDDINGS).is_file():
        check_run(run)
        raise RunError(f"{run} has no {EMBEDDINGS}; make it with: selfcluster embed {run}")
    return read_embeddings(run / EMBEDDINGS)


def clusters_of(run: Path) -> ClusterTable:
    """Return a run's clusters; raise RunError where it has none."""
    if not (run / CLUSTERS).is_file():
        if not (run / EMBEDDINGS).is_file():  # `cluster` takes a folder that holds embeddings and nothing else
            check_run(run)
        raise RunError(f"{run} has no {CLUSTERS}; make it with: selfcluster cluster {run}")
    return read_clusters(run / CLUSTERS)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet or CSV, by the file's ending."""
    if path.suffix == ".parquet":
        write_atomically(path, lambda temporary: pq.write_table(table, temporary), size=table.nbytes)
    else:
        write_atomically(path, _csv(table))


def image_names(source: Source, index: Sequence[int] | np.ndarray) -> tuple[list[str], list[str]]:
    """The ids of these images, and where they are, for people and other tools.

    Paths begin at the root of the file system; what is no file has its id in place of a path.
    """
    ids = [source.ids[i] for i in index]
    root = source.root
    return ids, ids if root is None else [os.path.join(root, name) for name in ids]


def is_parquet(path: Path) -> bool:
    """A file is known by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def wrong_twin(path: Path, table: pa.Table) -> bool:
    """Whether a table's CSV twin is there and is not the one that was written with it."""
    expected, twin = (table.schema.metadata or {}).get(_TWIN), path.with_suffix(".csv")
    if expected is None or not twin.is_file():
        return False
    with twin.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode() != expected


def check_table(path: Path) -> str:
    """Return what is wrong with a Parquet table and its twin, in words; empty where nothing is.

    A table that another program wrote has no hash: it can only be read.
    """
    try:
        table = pq.read_table(path)
        expected = (table.schema.metadata or {}).get(_CONTENT)
        if expected is not None and _digest(table).encode() != expected:
            return "its values are not those that were written"
    except (OSError, pa.ArrowException, ValueError) as error:
        return f"cannot be read ({reason_of(error)})"
    return f"{path.with_suffix('.csv').name} beside it has other values" if wrong_twin(path, table) else ""


def has_hash(path: Path) -> bool:
    """Whether a Parquet table carries the hash of its values."""
    return _CONTENT in (pq.read_schema(path).metadata or {})


def _csv(table: pa.Table) -> bytes:
    text = io.BytesIO()
    pyarrow.csv.write_csv(table, text)
    return text.getvalue()


def _digest(table: pa.Table) -> str:
    """SHA-256 of names and values, however the table is divided and stored."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table[name]
        kind, chunks = column.type, column.chunks  # one after the other: combining them would copy all vectors
        digest.update(f"{name}:{len(column)};".encode())
        if pa.types.is_fixed_size_list(kind):  # its type's text changes on the way through a file
            kind, chunks = kind.value_type, [chunk.flatten() for chunk in chunks]
        digest.update(f"{kind}:{sum(map(len, chunks))};".encode())
        for chunk in chunks:
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                for text in chunk.to_pylist():
                    value = text.encode("utf-8", "surrogatepass")
                    digest.update(len(value).to_bytes(8, "little") + value)
            else:
                digest.update(np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False)).view(np.uint8).data)
    return digest.hexdigest()


def _read(path: Path, needed: set[str]) -> pa.Table:
    with _opened(path, needed) as file:
        return file.read()


@contextmanager
def _opened(path: Path, needed: set[str]) -> Iterator[pq.ParquetFile]:
    """A Parquet file that has these columns; an error of reading it becomes a ValueError that names the file."""
    try:
        # pre-buffering would hold the whole file in memory, beside what is made of it
        with pq.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            missing = needed - set(names)
            if missing:
                raise ValueError(f"{path}: has no column {', '.join(sorted(missing))}; it has {', '.join(names)}")
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: not a Parquet table ({error})") from error
