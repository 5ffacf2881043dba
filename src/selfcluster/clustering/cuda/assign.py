"""Nearest centroids on CUDA: the product and the arg-max in one Triton kernel, so that scores never reach memory.

A first kernel rounds the rows to bfloat16 and computes the bound on the error of their scores. In the second, a block
of rows stays on the chip while blocks of centroids stream past it. For each row it keeps the two largest scores
u.v - |v|^2 / 2, as `assign.py` defines them. Where the two differ by more than the bound, the label is the true one.
The other rows are listed, and a third kernel compares them with every centroid in float64. The list and its length
stay on the device: no step waits for the host.
The layout (rows resident, centroids streamed, the bias in the accumulator) follows flash-kmeans (arXiv 2603.09229).

Letters: n rows, d dimensions, k centroids; d is padded with zeros to a multiple of 16 numbers.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton's types say `constexpr` where its launcher takes plain numbers.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _CENTROIDS = 128, 128  # a tile of scores; half as many of both above `_WIDE` dimensions, or it does not fit
_WIDE = 256
_STAGES = 2  # tiles of centroids in flight
_PREPARED = 16  # rows that one program rounds
_EXACT_CENTROIDS = 64  # centroids that one step of the exact kernel compares with a row
_EXACT_DIMENSIONS = 64
_WORKERS = 4096  # programs of the exact kernel; each takes every `_WORKERS`-th listed row
_MOST_DIMENSIONS = 512  # a row tile of more does not fit on the chip
_EPS32 = 2.0**-24  # unit roundoff of float32


def takes(x: Tensor) -> bool:
    """Whether the kernels can take the rows x (n, d): float32 of at most 512 dimensions."""
    return x.dtype == torch.float32 and 0 < x.shape[1] <= _MOST_DIMENSIONS and len(x) > 0


@torch.no_grad()
def nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each row and its squared distance; labels equal float64's.

    Args:
        x: (n, d) float32, contiguous rows.
        centroids: (k, d) float32 on the same device.

    Returns:
        Labels (n,) int64 and distances (n,) float32. Among equal distances the lowest number wins.
    """
    n, d = x.shape
    k = len(centroids)
    middle = centroids.double().mean(dim=0).float()  # (d,)
    shifted = (centroids.double() - middle.double()).float()  # (k, d)
    width = max(16, triton.next_power_of_2(d))
    padded = -(-k // _CENTROIDS) * _CENTROIDS  # so that the kernel loads without masks
    low = torch.zeros(padded, width, dtype=torch.bfloat16, device=x.device)
    low[:k, :d] = shifted
    bias = torch.full((padded,), -torch.inf, device=x.device)
    bias[:k] = (shifted.double().square().sum(dim=1) / -2).float()
    longest = shifted.norm(dim=1).max().reshape(1)
    rounding = (shifted - low[:k, :d].float()).norm(dim=1).max().reshape(1)
    x, centroids = x.contiguous(), centroids.contiguous()
    rows = torch.empty(n, width, dtype=torch.bfloat16, device=x.device)
    bound = torch.empty(n, device=x.device)
    _prepare[(triton.cdiv(n, _PREPARED),)](
        x, middle, longest, rounding, rows, bound, n, d, BLOCK_N=_PREPARED, BLOCK_D=width, EPS32=_EPS32
    )
    labels = torch.empty(n, dtype=torch.int64, device=x.device)
    listed = torch.empty(n, dtype=torch.int32, device=x.device)
    count = torch.zeros(1, dtype=torch.int32, device=x.device)
    tile = 1 if width <= _WIDE else 2
    _propose[(triton.cdiv(n, _ROWS // tile),)](
        rows, low, bias, bound, labels, listed, count, n, padded,
        BLOCK_N=_ROWS // tile, BLOCK_K=_CENTROIDS // tile,
        BLOCK_D=width, WIDEN=not x.is_cuda, num_warps=8, num_stages=_STAGES,
    )  # fmt: skip
    _settle[(min(n, _WORKERS),)](
        x, centroids, labels, listed, count, d, k, BLOCK_K=_EXACT_CENTROIDS, BLOCK_D=_EXACT_DIMENSIONS
    )
    gap = torch.index_select(centroids, 0, labels).sub_(x)
    return labels, torch.linalg.vector_norm(gap, dim=1).square_()


@triton.jit
def _prepare(
    x, middle, longest, rounding, rows, bound, n, d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EPS32: tl.constexpr,
):  # fmt: skip
    """Write the shifted rows in bfloat16, and for each the bound of `assign.py` on the error of two scores."""
    numbers = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    inside = (numbers < n)[:, None] & (columns < d)[None, :]
    u = tl.load(x + numbers[:, None] * d + columns[None, :], mask=inside, other=0.0)
    u = tl.where(inside, u - tl.load(middle + columns, mask=columns < d, other=0.0)[None, :], 0.0)
    rounded = u.to(tl.bfloat16)
    gap = u - rounded.to(tl.float32)
    lost = tl.sqrt(tl.sum(gap * gap, axis=1))
    length = tl.sqrt(tl.sum(u * u, axis=1))
    # what rounding both factors and adding d products can change in a score, for the best and for the second
    most = tl.load(longest)
    error = (d + 8) * EPS32 * (length * most + most * most) + lost * most + (length + lost) * tl.load(rounding)
    tl.store(rows + numbers[:, None] * BLOCK_D + columns[None, :], rounded, mask=(numbers < n)[:, None])
    tl.store(bound + numbers, 2 * error, mask=numbers < n)


@triton.jit
def _propose(
    rows, low, bias, bound, labels, listed, count, n, padded,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Label a block of rows by the bfloat16 product, and list the rows whose two best scores are too close."""
    numbers = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    here = numbers < n
    u = tl.load(rows + numbers[:, None] * BLOCK_D + columns[None, :], mask=here[:, None], other=0.0)
    best = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    second = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    label = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, padded, BLOCK_K):
        candidates = start + tl.arange(0, BLOCK_K)
        v = tl.load(low + candidates[:, None] * BLOCK_D + columns[None, :])
        if WIDEN:  # noqa: SIM108
            # Triton's interpreter has no bfloat16 product; products of two bfloat16 are exact in float32
            scores = tl.dot(u.to(tl.float32), tl.trans(v.to(tl.float32)))
        else:
            scores = tl.dot(u, tl.trans(v))
        scores += tl.load(bias + candidates)[None, :]
        top = tl.max(scores, axis=1)
        place = tl.argmax(scores, axis=1)
        others = tl.where(tl.arange(0, BLOCK_K)[None, :] == place[:, None], -float("inf"), scores)
        second = tl.maximum(tl.maximum(second, tl.max(others, axis=1)), tl.minimum(best, top))
        label = tl.where(top > best, start + place, label)
        best = tl.maximum(best, top)
    # a score or a bound that is not finite proves nothing
    sure = (best - second > tl.load(bound + numbers, mask=here, other=0.0)) & (tl.abs(best) < float("inf"))
    tl.store(labels + numbers, label.to(tl.int64), mask=here)
    # each listed row takes the next free place; the order of the list does not matter
    wanted = (here & (sure == 0)).to(tl.int32)
    first = tl.atomic_add(count, tl.sum(wanted, axis=0))
    tl.store(listed + first + tl.cumsum(wanted, axis=0) - 1, numbers.to(tl.int32), mask=wanted != 0)


@triton.jit
def _settle(x, centroids, labels, listed, count, d, k, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """Compare each listed row with every centroid in float64; the lowest number wins among equals."""
    total = tl.load(count)
    for position in range(tl.program_id(0), total, tl.num_programs(0)):
        row = tl.load(listed + position).to(tl.int64)
        least = tl.full((), float("inf"), tl.float64)
        label = tl.zeros((), tl.int64)
        for start in range(0, k, BLOCK_K):
            numbers = start + tl.arange(0, BLOCK_K)
            distance = tl.zeros((BLOCK_K,), tl.float64)
            for first in range(0, d, BLOCK_D):
                columns = first + tl.arange(0, BLOCK_D)
                u = tl.load(x + row * d + columns, mask=columns < d, other=0.0).to(tl.float64)
                mask = (numbers < k)[:, None] & (columns < d)[None, :]
                v = tl.load(centroids + numbers[:, None].to(tl.int64) * d + columns[None, :], mask=mask, other=0.0)
                gap = tl.where(mask, v.to(tl.float64) - u[None, :], 0.0)
                distance += tl.sum(gap * gap, axis=1)
            distance = tl.where(numbers < k, distance, float("inf"))
            nearest_here = tl.min(distance, axis=0)
            place = tl.min(tl.where(distance == nearest_here, numbers, k), axis=0)
            closer = nearest_here < least
            label = tl.where(closer, place.to(tl.int64), label)
            least = tl.where(closer, nearest_here, least)
        tl.store(labels + row, label)
