"""Nearest centroids on CUDA: the product and the arg-max in one Triton kernel, so that scores never reach memory.

A block of rows stays on the chip while blocks of centroids stream past it. For each row the kernel keeps the two
largest scores u.v - |v|^2 / 2 of the bfloat16 product, as `assign.py` defines them. Where the two differ by more than
the error bound of the product, the label is the true one. The other rows are listed, and a second kernel compares
them with every centroid in float64. The list and its length stay on the device: no step waits for the host.
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

_ROWS, _CENTROIDS = 128, 128  # a tile of scores
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
    width = max(16, -(-d // 16) * 16)
    low = torch.zeros(k, width, dtype=torch.bfloat16, device=x.device)
    low[:, :d] = shifted
    bias = (shifted.double().square().sum(dim=1) / -2).float()  # (k,)
    longest = shifted.norm(dim=1).max().reshape(1)
    rounding = (shifted - low[:, :d].float()).norm(dim=1).max().reshape(1)
    labels = torch.empty(n, dtype=torch.int64, device=x.device)
    listed = torch.empty(n, dtype=torch.int32, device=x.device)
    count = torch.zeros(1, dtype=torch.int32, device=x.device)
    x, centroids = x.contiguous(), centroids.contiguous()
    padded = triton.next_power_of_2(width)
    _propose[(triton.cdiv(n, _ROWS),)](
        x, middle, low, bias, longest, rounding, labels, listed, count,
        n, d, k, width, BLOCK_N=_ROWS, BLOCK_K=_CENTROIDS, BLOCK_D=padded, EPS32=_EPS32,
        WIDEN=not x.is_cuda, num_warps=8,
    )  # fmt: skip
    _settle[(min(n, _WORKERS),)](
        x, centroids, labels, listed, count, d, k, BLOCK_K=_EXACT_CENTROIDS, BLOCK_D=_EXACT_DIMENSIONS
    )
    gap = torch.index_select(centroids, 0, labels).sub_(x)
    return labels, torch.linalg.vector_norm(gap, dim=1).square_()


@triton.jit
def _propose(
    x, middle, low, bias, longest, rounding, labels, listed, count,
    n, d, k, width,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, EPS32: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Label a block of rows by the bfloat16 product, and list the rows whose two best scores are too close."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    u = tl.load(x + rows[:, None] * d + columns[None, :], mask=inside, other=0.0)
    u = tl.where(inside, u - tl.load(middle + columns, mask=columns < d, other=0.0)[None, :], 0.0)
    rounded = u.to(tl.bfloat16)
    lost = tl.sqrt(tl.sum((u - rounded.to(tl.float32)) * (u - rounded.to(tl.float32)), axis=1))
    length = tl.sqrt(tl.sum(u * u, axis=1))
    best = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    second = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    label = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, k, BLOCK_K):
        numbers = start + tl.arange(0, BLOCK_K)
        known = numbers < k
        v = tl.load(
            low + numbers[None, :] * width + columns[:, None],
            mask=known[None, :] & (columns < width)[:, None],
            other=0.0,
        )
        offset = tl.load(bias + numbers, mask=known, other=-float("inf"))
        if WIDEN:  # Triton's interpreter has no bfloat16 product; products of two bfloat16 are exact in float32
            scores = tl.dot(rounded.to(tl.float32), v.to(tl.float32)) + offset[None, :]
        else:
            scores = tl.dot(rounded, v) + offset[None, :]
        top = tl.max(scores, axis=1)
        place = tl.argmax(scores, axis=1)
        others = tl.where(tl.arange(0, BLOCK_K)[None, :] == place[:, None], -float("inf"), scores)
        second = tl.maximum(tl.maximum(second, tl.max(others, axis=1)), tl.minimum(best, top))
        label = tl.where(top > best, start + place, label)
        best = tl.maximum(best, top)
    # the bound of `assign.py`: what rounding both factors and adding d products can change in a score
    most, rest = tl.load(longest), tl.load(rounding)
    error = (d + 8) * EPS32 * (length * most + most * most) + lost * most + (length + lost) * rest
    close = (best - second <= 2 * error) | (error != error) | (best != best) | (best == float("inf"))
    close = close | (best == -float("inf"))
    here = rows < n
    tl.store(labels + rows, label.to(tl.int64), mask=here)
    # each listed row takes the next free place; the order of the list does not matter
    wanted = (close & here).to(tl.int32)
    first = tl.atomic_add(count, tl.sum(wanted, axis=0))
    tl.store(listed + first + tl.cumsum(wanted, axis=0) - 1, rows.to(tl.int32), mask=close & here)


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
