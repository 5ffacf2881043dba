"""Sums of the rows of each cluster on CUDA: rows are sorted by label, and no two programs add to one number.

A float64 `index_add_` needs an atomic addition for each number. Here a program owns a cluster and a block of
dimensions and reads the cluster's rows in their sorted order, so that the sums are equal from run to run.
The sorted order follows flash-kmeans (arXiv 2603.09229, "sort-inverse update").

Letters: n rows, d dimensions, k clusters.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# Triton's types say `constexpr` where its launcher takes plain numbers.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _DIMENSIONS = 64, 64  # a tile of one step


@torch.no_grad()
def add_rows(sums: Tensor, x: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
    """sums[labels[i]] += weight[i] x[i] in float64.

    Args:
        sums: (k, d) float64, changed in place.
        x: (n, d) float32 rows.
        labels: (n,) int64 in [0, k).
        weight: (n,) of each row; None counts every row 1.
    """
    k, d = sums.shape
    ordered, order = torch.sort(labels.int(), stable=True)  # a sort of 32 bits takes half as long as one of 64
    # `bincount` would wait for the device
    ends = torch.searchsorted(ordered, torch.arange(k, dtype=torch.int32, device=x.device), right=True)  # (k,)
    weights = x.new_ones(1) if weight is None else weight.to(torch.float64)
    _add[(k, triton.cdiv(d, _DIMENSIONS))](
        sums, x.contiguous(), order, ends, weights, d, WEIGHTED=weight is not None, BLOCK_N=_ROWS, BLOCK_D=_DIMENSIONS
    )


@triton.jit
def _add(sums, x, order, ends, weights, d, WEIGHTED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Add the rows of one cluster in one block of dimensions."""
    cluster = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    end = tl.load(ends + cluster)
    start = tl.load(ends + cluster - 1, mask=cluster > 0, other=0)
    total = tl.zeros((BLOCK_D,), tl.float64)
    for first in range(start, end, BLOCK_N):
        places = first + tl.arange(0, BLOCK_N)
        rows = tl.load(order + places, mask=places < end, other=0)
        mask = (places < end)[:, None] & (columns < d)[None, :]
        tile = tl.load(x + rows[:, None] * d + columns[None, :], mask=mask, other=0.0).to(tl.float64)
        if WEIGHTED:
            tile = tile * tl.load(weights + rows, mask=places < end, other=0.0)[:, None]
        total += tl.sum(tile, axis=0)
    where = sums + cluster.to(tl.int64) * d + columns
    tl.store(where, tl.load(where, mask=columns < d, other=0.0) + total, mask=columns < d)
