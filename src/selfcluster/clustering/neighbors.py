"""Exact nearest neighbors by chunked matrix products: the k best of M rows for each query, never the N x M matrix.

A tile of scores (some queries x some database rows) is reduced to the maxima of groups of rows; the k best groups hold
the k best rows, so only their members are compared again. More than k candidates are kept and scored again in
float32 from the rows. If the hardware multiplies bfloat16, the tiles are bfloat16 products. If the k-th neighbor of a
query is not ahead of the last candidate by twice the observed error, the query is searched again in float32, then in
float64. On a CPU a compiled kernel, if available, takes large sets of queries: 8-bit products with a proven error bound
choose candidates, float64 decides, and of equals the lowest number wins (native_neighbors.cpp).
Letters: N queries, M database rows, D features, k neighbors, q queries and m rows of a tile, c candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfcluster import distributed
from selfcluster.clustering import native
from selfcluster.devices import multiplies_bfloat16

_QUERIES = 256  # q
_TILE = 1 << 23  # q * m: 32 MB of float32 scores
_TILE_CUDA = 1 << 28
_GROUP = 32  # rows reduced to one maximum
_HELD = 1 << 25  # numbers of queries, and of candidates' rows, held at a time: 128 MB
_MANY = 128  # from this many queries on, rounding the database to 8 bits saves time
_MOST_NEIGHBORS = 1024  # largest k for which the compiled kernel is faster
_WIDE = ("float64", "int32", "int64", "uint32", "uint64")
_METRICS = ("inner_product", "l2")


class Neighbors(NamedTuple):
    """`values` (N, k) float32 and `indices` (N, k) int64, best first: inner products, or *squared* distances (l2)."""

    values: Any
    indices: Any


@torch.no_grad()
def nearest(
    queries: np.ndarray | Tensor,
    database: np.ndarray | Tensor,
    k: int,
    *,
    metric: str = "inner_product",
    exclude_self: bool = False,
    precision: str = "auto",
) -> Neighbors:
    """Return the k nearest database rows of every query.

    Memory: about 300 MB on a CPU in addition to the arguments and the result, for any N and M, because the function
    holds only one tile of scores and some rows at a time. Under `torch.distributed` each rank passes its slice of the
    queries *and* of the database; the slices in rank order form the whole. Each rank gets the neighbors of its queries
    in the whole database. The indices count over the whole database.

    Args:
        queries: (N, D) tensor, NumPy array or memory-mapped file; the result has the same type.
        database: (M, D), of the same kinds; the computation runs on a tensor's device.
        k: number of neighbors.
        metric: "inner_product", largest first (the cosine for rows of length 1); "l2", smallest distance first.
        exclude_self: `queries` is `database`, and row i must not be its own neighbor. Another row with the same values
            may be its neighbor.
        precision: "float32", "bfloat16", or "auto": the compiled kernel, or bfloat16 if the hardware supports it. Each
            gives the exact result for rows rounded to float32. With l2, float64 rows are first shifted by one common
            row, which changes no distance. Rows with equal scores may come in any order.

    Raises:
        ValueError: wrong shapes, k, metric or precision; rows that are not finite or whose squares overflow.

    >>> nearest(np.eye(3, dtype="float32"), np.array([[1, 0, 0], [0, 2, 0]], dtype="float32"), 1).indices[:2].ravel()
    array([0, 1])
    """
    _check(queries, database, metric, precision)
    lengths = distributed.gather_objects(len(database))
    offset, total = sum(lengths[: distributed.rank()]), sum(lengths)
    if not 1 <= k <= total - exclude_self:
        raise ValueError(f"k={k} must be between 1 and the {total - exclude_self} rows a query can have as neighbors")
    if exclude_self and len(queries) != len(database):
        raise ValueError(f"exclude_self needs queries that are the database: {len(queries)} and {len(database)} rows")
    shift = _shift(queries, database) if metric == "l2" else None
    search = _Search(database, k + exclude_self, metric, precision, shift)
    size = max(1, _HELD // max(1, queries.shape[1]) // distributed.world_size())
    rounds = max(distributed.gather_objects(-(-len(queries) // size)))  # all ranks gather equally often
    values = [torch.empty(0, k, device=search.device)]
    indices = [torch.empty(0, k, dtype=torch.int64, device=search.device)]
    for i in range(rounds):
        block = search.rows(slice(i * size, (i + 1) * size), queries)
        value, index = _over_ranks(search, block, offset)
        if exclude_self:
            value, index = _without(value, index, offset + i * size)
        values.append(value)
        indices.append(index)
    value, index = torch.cat(values), torch.cat(indices)
    if (index < 0).any():
        raise ValueError("rows are too long: their squares overflow float32; divide all of them by the same number")
    if metric == "l2":
        value = value.neg_()
    if isinstance(queries, Tensor):
        return Neighbors(value.to(queries.device), index.to(queries.device))
    return Neighbors(value.cpu().numpy(), index.cpu().numpy())


def _check(queries: np.ndarray | Tensor, database: np.ndarray | Tensor, metric: str, precision: str) -> None:
    if metric not in _METRICS:
        raise ValueError(f'metric={metric!r} must be "inner_product" or "l2"')
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f'precision={precision!r} must be "auto", "float32" or "bfloat16"')
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        shapes = f"queries {tuple(queries.shape)} and database {tuple(database.shape)}"
        raise ValueError(f"{shapes} must be (N, D) and (M, D)")


def _over_ranks(search: _Search, block: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Return the best rows of all ranks' databases for this rank's queries. Every rank searches all queries."""
    world = distributed.world_size()
    if world == 1:
        return search(block)
    lengths = distributed.gather_objects(len(block))
    value, index = search(distributed.all_gather(block))
    missing = search.k - value.shape[1]  # of a rank with fewer rows than k: padded, so that the parts stack
    value = F.pad(value, (0, missing), value=float("-inf"))
    index = F.pad(index + offset, (0, missing), value=-1)
    start = sum(lengths[: distributed.rank()])
    value, index = (
        distributed.all_gather(x).view(world, -1, search.k)[:, start : start + len(block)].transpose(0, 1).flatten(1)
        for x in (value, index)
    )
    return _best(value, index, search.k)


def _without(value: Tensor, index: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Drop each query's own row; if duplicates have pushed it out of the best, drop the last row instead."""
    drop = index == torch.arange(first, first + len(index), device=index.device)[:, None]
    drop[:, -1] |= ~drop.any(dim=1)
    shape = len(value), value.shape[1] - 1
    return value[~drop].view(shape), index[~drop].view(shape)


class _Search:
    """Prepares a database once, then answers any number of queries. Scores: x.y, or -|x - y|^2.

    In bfloat16 tiles, and for l2, the database's mean is subtracted: this changes all scores of a query by the
    same amount (inner product) or not at all (l2, because the queries are shifted too), and improves the precision.
    """

    def __init__(
        self, database: np.ndarray | Tensor, k: int, metric: str, precision: str, shift: Tensor | None
    ) -> None:
        self.database, self.k, self.l2, self.shift = database, k, metric == "l2", shift
        self.device = database.device if isinstance(database, Tensor) else torch.device("cpu")
        self.auto = precision == "auto"
        self.low = precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(self.device))
        self.m = (_TILE_CUDA if self.device.type == "cuda" else _TILE) // _QUERIES
        self.mean = self._mean() if self.low or self.l2 else torch.zeros(database.shape[1], device=self.device)

    def rows(self, part: slice | Tensor, data: np.ndarray | Tensor | None = None) -> Tensor:
        return _rows(self.database if data is None else data, part, self.device, self.shift)

    def __call__(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(S, D) to values and indices (S, min(k, M)), best first."""
        if not len(self.database) or not len(queries):
            k = min(self.k, len(self.database))
            return queries.new_empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64).to(self.device)
        if self.auto and len(queries) >= _MANY and self.k <= _MOST_NEIGHBORS and native.takes(queries):
            return self._compiled(queries)
        with torch.autocast(self.device.type, enabled=False):
            return self._search(queries, torch.bfloat16 if self.low else torch.float32)

    def _compiled(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        shape = len(queries), min(self.k, len(self.database))
        value = torch.full(shape, float("-inf"), dtype=torch.float64)
        index = torch.full(shape, -1)
        step = max(1, _HELD // max(1, queries.shape[1]))
        for start in range(0, len(self.database), step):
            rows = self.rows(slice(start, start + step))
            native.improve_neighbors(queries, rows, start, value, index, inner_product=not self.l2)
        return value.float(), index

    def _search(self, queries: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # in 200,000 rows of 384 features a bfloat16 score displaces a neighbor by a few places, a float32 one by none
        keep = min(2 * self.k + 16 if dtype == torch.bfloat16 else self.k + 4, len(self.database))
        rough, index = self._candidates(queries, keep, dtype)
        exact = self._score(queries, index)
        value, found = _best(exact, index, self.k)
        if dtype != torch.float64 and keep < len(self.database):
            if self.l2:
                rough = 2 * rough
            elif dtype == torch.bfloat16:
                rough = rough + queries @ self.mean[:, None]
            error = (rough - exact).abs().amax(dim=1)
            doubtful = (rough[:, -1] + 2 * error > value[:, -1]).nonzero().squeeze(1)
            if len(doubtful):
                finer = torch.float32 if dtype == torch.bfloat16 else torch.float64
                value[doubtful], found[doubtful] = self._search(queries[doubtful], finer)
        return value, found

    def _candidates(self, queries: Tensor, keep: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The `keep` best rows of every query by products in `dtype`: scores x.y, or -|x - y|^2 / 2."""
        held = torch.float64 if dtype == torch.float64 else torch.float32
        rough = torch.full((len(queries), keep), float("-inf"), dtype=held, device=self.device)
        index = torch.zeros(len(queries), keep, dtype=torch.int64, device=self.device)
        left = self._factor(queries, dtype, query=True)
        # one buffer for all tiles: memory touched anew for each would cost as much as its maxima
        tile = torch.empty(min(_QUERIES, len(queries)) * min(self.m, len(self.database)), dtype=dtype).to(self.device)
        for start in range(0, len(self.database), self.m):
            right = self._factor(self.rows(slice(start, start + self.m)), dtype, query=False)
            for i in range(0, len(left), _QUERIES):
                part, b = left[i : i + _QUERIES], slice(i, i + _QUERIES)
                scores = torch.mm(part, right.t(), out=tile[: len(part) * len(right)].view(len(part), len(right)))
                value, column = _top(scores, keep)
                both = torch.cat([rough[b], value.to(held)], dim=1), torch.cat([index[b], column + start], dim=1)
                rough[b], index[b] = _best(*both, keep)
        return rough, index

    def _factor(self, rows: Tensor, dtype: torch.dtype, *, query: bool) -> Tensor:
        """Rows whose products are the scores. For l2, -|x|^2 / 2 and -|y|^2 / 2 enter as columns against ones, each
        in three parts that together keep float32's bits in `dtype`."""
        if not self.l2 and (query or dtype != torch.bfloat16):
            return rows.to(dtype)
        rows = (rows.double() if dtype == torch.float64 else rows) - self.mean
        if not self.l2:
            return rows.to(dtype)
        half = rows.square().sum(dim=1, keepdim=True).div_(-2)
        parts = []
        for _ in range(3):
            parts.append(half.to(dtype))
            half = half - parts[-1].to(half.dtype)
        norms, ones = torch.cat(parts, dim=1), rows.new_ones(len(rows), 3).to(dtype)
        return torch.cat([rows.to(dtype), *((norms, ones) if query else (ones, norms))], dim=1)

    def _score(self, queries: Tensor, index: Tensor) -> Tensor:
        """Float32 scores (S, c) of candidates, from the rows themselves."""
        value = torch.empty(index.shape, device=self.device)
        step = max(1, _HELD // 4 // (index.shape[1] * max(1, queries.shape[1])))
        for i in range(0, len(queries), step):
            x, chosen = queries[i : i + step], index[i : i + step]
            y = self.rows(chosen.flatten()).view(*chosen.shape, -1)  # (step, c, D)
            if self.l2:
                value[i : i + step] = (y - x[:, None]).square_().sum(dim=2).neg_()
            else:
                value[i : i + step] = torch.bmm(y, x[:, :, None]).squeeze(2)
        return value

    def _mean(self) -> Tensor:
        total = torch.zeros(self.database.shape[1], dtype=torch.float64, device=self.device)
        for start in range(0, len(self.database), self.m):
            total += self.rows(slice(start, start + self.m)).sum(dim=0).double()
        return (total / max(1, len(self.database))).float()


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best (or all, if fewer) of each row of (q, m), and their columns; unsorted."""
    q, m = scores.shape
    groups = -(-m // _GROUP)
    if groups <= k:
        value, column = scores.topk(min(k, m), dim=1, sorted=False)
        return value, column
    if m % _GROUP:
        scores = F.pad(scores, (0, groups * _GROUP - m), value=float("-inf"))
    # column j belongs to group j % groups: maxima then run over whole vectors, not within them
    chosen = scores.view(q, _GROUP, groups).amax(dim=1).topk(k, dim=1, sorted=False).indices  # (q, k)
    members = torch.arange(_GROUP, device=scores.device)[:, None] * groups
    column = (chosen[:, None] + members).flatten(1)  # (q, 32 k)
    value, place = scores.gather(1, column).topk(k, dim=1, sorted=False)
    return value, column.gather(1, place)


def _best(value: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, largest first, with their indices."""
    value, order = value.topk(min(k, value.shape[1]), dim=1)
    return value, index.gather(1, order)


def _shift(queries: np.ndarray | Tensor, database: np.ndarray | Tensor) -> Tensor | None:
    """(D,) float64, a row that is subtracted from all where float32 would round away what differs; None for float32."""
    wide = any(str(x.dtype).rpartition(".")[2] in _WIDE for x in (queries, database))
    if not any(distributed.gather_objects(wide)):
        return None
    own = torch.as_tensor(database[:1]) if len(database) else None
    first = [row for row in distributed.gather_objects(None if own is None else own.double().cpu()) if row is not None]
    return first[0][0]


def _rows(data: np.ndarray | Tensor, part: slice | Tensor, device: torch.device, shift: Tensor | None) -> Tensor:
    """Some rows in float32; slices, which see every row once, refuse NaN and infinity."""
    if isinstance(data, Tensor):
        rows = data[part].detach()
    else:
        chosen = data[part if isinstance(part, slice) else part.cpu().numpy()]
        # rows of a file are read once; rows in memory are used where they are
        in_place = not isinstance(chosen, np.memmap) and chosen.flags.writeable and chosen.flags.c_contiguous
        rows = torch.from_numpy(chosen if in_place else np.array(chosen))
    if shift is not None:
        rows = rows.double() - shift.to(rows.device)
    rows = rows.to(device, torch.float32)
    if isinstance(part, slice) and not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
        bad = part.start + int((~torch.isfinite(rows).all(dim=1)).nonzero()[0])
        raise ValueError(f"row {bad} of {tuple(data.shape)} holds NaN or infinity")
    return rows
