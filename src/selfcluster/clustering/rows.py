"""The rows that k-means reads, from a tensor, an array, or a file larger than memory.

Rows are read in blocks. Under `torch.distributed` each rank holds a contiguous slice and the slices in rank order are
the whole; random choices use a row's *global number* (its position in the whole), so they do not depend on the number
of ranks.

Letters: n rows of this rank, N of all, d dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from selfcluster import distributed
from selfcluster.clustering.assign import unit_rows

_BLOCK_ELEMENTS = 1 << 24  # 64 MB of float32 at once
_IN_PLACE = 8
_BLOCK_ELEMENTS_CUDA = 1 << 29  # 2 GB; a kernel over few rows leaves most of a device idle
_DISTINCT_ROWS = 1 << 14  # looked at between two counts
_FLOATS = (torch.float32, torch.float64, np.dtype(np.float32), np.dtype(np.float64))


T = TypeVar("T")


class Rows:
    """(n, d) rows of this rank, `total` of all ranks, this rank's first being number `offset`."""

    def __init__(
        self, data: Any, *, spherical: bool = False, weight: Tensor | None = None, shared: bool = True
    ) -> None:
        self.data, self.spherical, self.weight = data, spherical, weight
        self.index: np.ndarray | None = None  # the rows in use, None: all
        self.is_tensor = isinstance(data, Tensor)
        self.device = data.device if self.is_tensor else torch.device("cpu")
        wide = data.dtype in (torch.float64, torch.int64, torch.int32) or (
            not self.is_tensor and (data.dtype == np.float64 or (data.dtype.kind in "iu" and data.dtype.itemsize >= 4))
        )
        self.dtype = torch.float64 if wide else torch.float32
        self.d = int(data.shape[1])
        self.shared = shared  # whether other ranks hold the rest
        self.has_zeros = False  # whether any rank's rows have no direction where directions count; `check` finds out
        self._count()

    def __len__(self) -> int:
        return len(self.data) if self.index is None else len(self.index)

    def _count(self) -> None:
        lengths = self._gather(len(self))
        self.offset, self.total = sum(lengths[: distributed.rank()]) if self.shared else 0, sum(lengths)

    def _gather(self, value: T) -> list[T]:
        return distributed.gather_objects(value) if self.shared else [value]

    def read(self, part: slice | np.ndarray) -> Tensor:
        """The rows of a slice or of an array of positions, as a contiguous floating-point tensor."""
        if self.index is not None:
            part = self.index[part]
        if self.is_tensor:
            x = self.data[part if isinstance(part, slice) else torch.from_numpy(part).to(self.device)]
        else:
            block = np.ascontiguousarray(self.data[part])
            x = torch.from_numpy(block if block.flags.writeable else block.copy())
        x = x.detach().to(self.dtype).contiguous()
        return unit_rows(x) if self.spherical else x

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, as (where, rows)."""
        # rows in memory that need no work are read in place, so their blocks may be larger
        plain = self.is_tensor or (not isinstance(self.data, np.memmap) and self.data.flags.writeable)
        plain = plain and not self.spherical and self.index is None and self.data.dtype in _FLOATS
        most = _BLOCK_ELEMENTS * (_IN_PLACE if plain else 1)
        step = max(1, (_BLOCK_ELEMENTS_CUDA if self.device.type == "cuda" else most) // max(1, self.d))
        for start in range(0, len(self), step):
            part = slice(start, min(len(self), start + step))
            yield part, self.read(part)

    def weights(self, part: slice) -> Tensor | None:
        """The weights of a slice, or None where every row counts 1."""
        if self.weight is None:
            return None
        return self.weight[part] if self.index is None else self.weight[torch.from_numpy(self.index[part])]

    def numbers(self, numbers: np.ndarray) -> Tensor:
        """The rows with these global numbers, in their order, on every rank: (len(numbers), d)."""
        own = np.flatnonzero((numbers >= self.offset) & (numbers < self.offset + len(self)))
        found = torch.zeros(len(numbers), self.d, dtype=self.dtype, device=self.device)
        if len(own):
            found[torch.from_numpy(own).to(self.device)] = self.read(numbers[own] - self.offset)
        return distributed.all_reduce(found)

    def sample(self, size: int, seed: int) -> Rows:
        """`size` of all ranks' rows, chosen without replacement by global number."""
        chosen = choose(self.total, size, seed)
        return self.take(np.sort(chosen[(chosen >= self.offset) & (chosen < self.offset + len(self))] - self.offset))

    def take(self, own: np.ndarray) -> Rows:
        """The rows of this rank at these positions, which are read when they are needed; all ranks call it."""
        part = object.__new__(Rows)
        part.__dict__.update(self.__dict__)
        part.index = own if self.index is None else self.index[own]
        part._count()
        return part

    def check(self) -> None:
        """Raise an error that names a row with NaN or infinity; warn of rows of zeros if directions count."""
        bad, zero = [], []
        for part, x in self.blocks():
            # a sum is not finite if a term is not; the second look tells the rare overflow of a sum apart
            if not torch.isfinite(x.sum()):
                bad += (part.start + (~torch.isfinite(x).all(dim=1)).nonzero().squeeze(1) + self.offset).tolist()
            if self.spherical:
                zero += (part.start + (x == 0).all(dim=1).nonzero().squeeze(1) + self.offset).tolist()
        found = self._gather((bad[:10], len(bad), zero[:10], len(zero)))
        count = sum(f[1] for f in found)
        if count:
            names = _listed([i for f in found for i in f[0]], count)
            raise ValueError(f"X holds NaN or infinity in {count} of {self.total} rows: {names}. Drop or repair them.")
        count = sum(f[3] for f in found)
        if count:
            self.has_zeros = True
            names = _listed([i for f in found for i in f[2]], count)
            warnings.warn(
                f"{count} of {self.total} rows of X are all zero and have no direction: {names}. "
                "With spherical=True they join a cluster but do not move its center.",
                stacklevel=4,
            )

    def distinct(self, limit: int) -> int:
        """Return the number of distinct rows over all ranks, counted up to `limit`, by their random projections."""
        direction = torch.randn(self.d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        direction = direction.to(self.device)
        seen = torch.empty(0, dtype=torch.float64, device=self.device)
        for _, block in self.blocks():
            for x in block.split(_DISTINCT_ROWS):
                if len(seen) < limit:
                    seen = torch.cat([seen, (x.double() * direction).sum(dim=1)]).unique()[:limit]
        return len(distributed.all_gather(seen).unique()[:limit])


def choose(total: int, size: int, seed: int) -> np.ndarray:
    """`size` different numbers below `total`, in random order: equal on all ranks."""
    return np.random.default_rng(seed).choice(total, size=size, replace=False)


def _listed(numbers: list[int], count: int) -> str:
    shown = ", ".join(str(i) for i in numbers[:10])
    return f"rows {shown}" + (", ..." if count > 10 else "") if count > 1 else f"row {shown}"
