"""Every image of a run in the order of the page: cluster by cluster, nearest to the center first.

The thumbnails of a cluster then lie in few sheets, and the page decodes only those that it shows.
N images, F features, D kept dimensions.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfcluster.runs.contents import Contents, Vectors

KEPT = 128  # D: of 1,280 features, 14.9 and 15.5 of the 20 nearest neighbors stay on two sets; 64 keep 12.4 and 13.7
_FITTED = 5_000  # rows that the principal axes are computed from
_STEPS = 127  # of an 8-bit number, on either side of zero


@dataclass(frozen=True)
class Album:
    """`ids` are N texts; `cluster` is (N,) int64, -1 for none; `distance` is (N,) float32 to the center, NaN for none.

    `reduced` is (N, D) float32: the leading principal components of the embeddings at length 1, NaN where there is no
    finite embedding. `table_rows` (N,) are the rows of the table of clusters, -1 for images that it lacks.
    """

    ids: list[str]
    cluster: np.ndarray
    distance: np.ndarray
    reduced: np.ndarray
    table_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def embedded(self) -> np.ndarray:
        """(N,) bool: which images have a finite embedding."""
        if not self.reduced.shape[1]:
            return np.zeros(len(self), bool)
        return np.isfinite(self.reduced[:, 0])


def build_album(contents: Contents) -> Album:
    """Return the images that the tables of a run name, each once."""
    clusters, vectors = contents.clusters, contents.vectors
    parts = [table.ids for table in (clusters, vectors) if table is not None and len(table.ids)]
    ids = pa.concat_arrays(parts).unique() if parts else pa.array([], pa.large_string())
    n = len(ids)
    cluster, distance = np.full(n, -1), np.full(n, np.nan, np.float32)
    table_rows = np.full(n, -1)
    if clusters is not None and len(clusters.ids):
        table_rows = rows_of(ids, clusters.ids)
        cluster = np.where(table_rows >= 0, clusters.cluster[table_rows], -1)
        distance = np.where(table_rows >= 0, clusters.distance[table_rows], np.nan).astype(np.float32)
    reduced = np.empty((n, 0), np.float32)
    if vectors is not None and len(vectors):
        rows = rows_of(ids, vectors.ids)
        principal = reduce(vectors)
        reduced = np.where(rows[:, None] >= 0, principal[rows], np.nan).astype(np.float32)
    order = np.lexsort((distance, np.where(cluster < 0, np.iinfo(np.int64).max, cluster)))
    return Album(ids.take(order).to_pylist(), cluster[order], distance[order], reduced[order], table_rows[order])


def reduce(vectors: Vectors, kept: int = KEPT, seed: int = 0) -> np.ndarray:
    """Return (N, D) float32 principal components of the vectors at length 1; NaN rows where a vector is not finite.

    Args:
        vectors: the embeddings, read a batch at a time.
        kept: D, or fewer where there are fewer features.
        seed: of the sample that the axes are computed from.
    """
    n = len(vectors)
    sample = np.arange(n) if n <= _FITTED else np.sort(np.random.default_rng(seed).permutation(n)[:_FITTED])
    fitted = _unit(vectors.take(sample)).astype(np.float64)
    fitted = fitted[np.isfinite(fitted).all(axis=1)]
    kept = min(kept, vectors.dim)
    out = np.full((n, kept), np.nan, np.float32)
    if not len(fitted):
        return out
    mean = fitted.mean(axis=0)
    covariance = (fitted - mean).T @ (fitted - mean)
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :kept]  # (F, D), largest variance first
    axes = (axes * np.where(axes.sum(axis=0) < 0, -1, 1)).astype(np.float32)  # a sign that every machine agrees on
    for start, batch in vectors.batches():
        out[start : start + len(batch)] = (_unit(batch) - mean.astype(np.float32)) @ axes
    return out


def rows_of(ids: pa.Array, among: pa.Array) -> np.ndarray:
    """(N,) positions of `ids` in `among`, -1 where absent."""
    at = pc.call_function("index_in", [ids], pc.SetLookupOptions(among))
    return pc.fill_null(at, -1).to_numpy(zero_copy_only=False)


def pack(reduced: np.ndarray) -> str:
    """Return (N, D) numbers as N x D signed bytes in base64, all on one scale; rows of NaN become zeros."""
    finite = np.nan_to_num(reduced, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    steps = np.round(finite * (_STEPS / largest)) if largest else np.zeros_like(finite)
    return base64.b64encode(steps.astype(np.int8).tobytes()).decode("ascii")


def _unit(rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
        unit = rows / np.where(length > 0, length, 1)
    return np.where(np.isfinite(unit).all(axis=1, keepdims=True), unit, np.nan)
