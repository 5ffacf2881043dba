"""Nearest centroids on CUDA: the product and the arg-max in one Triton kernel, so that scores never reach memory.

A first kernel rounds the rows to float16 and computes the bound on the error of their scores. In the second, a block
of rows stays on the chip while blocks of centroids stream past it. A score is u.v - |v|^2 / 2, as `assign.py` defines
it. To save comparisons, the kernel keeps only the largest score of each group of four centroids. Per row it stores the
best group and the second-best score. A third kernel compares the four centroids of the best group in float32. If
float32 decides between the four, and the best two groups differ by more than the bound, the label is exact. The other
rows are listed. The last kernel computes their scores again and compares the candidates within the bound in float64.
The list and its length stay on the device: no step waits for the host.
The layout (rows resident, centroids streamed) follows flash-kmeans (arXiv 2603.09229).

Scales: float16 has a short range, so each row is divided by a power of two of its own and all centroids by another.
Powers of two round nothing. With u = 2^a u' and v = 2^b v' a score is 2^(a + b) (u'.v' - 2^(b - a) |v'|^2 / 2). The
second term is part of the product: 16 additional columns hold 2^(b - a) for a row, and for a centroid -|v'|^2 / 2 as
the sum of three float16 numbers.
Packing: the last bits of a score are replaced by the number of its group, so that a maximum is an arg-max, too.

Letters: n rows, d dimensions, k centroids; d is padded with zeros to a power of two.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
# Triton's types say `constexpr` where its launcher takes plain numbers.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile of scores and the warps that compute it; half as many of all above `_WIDE` dimensions, or it does not fit.
# Of 15 tiles tried on an H200 (docs/LOG.md) this was the fastest: the more rows, the less often centroids are loaded.
_ROWS, _CENTROIDS, _WARPS = 256, 64, 16
_WIDE = 256
_STAGES = 2  # tiles of centroids in flight
_PREPARED = 16  # rows that one program rounds
_CHOSEN = 8  # rows whose best group one program compares
_LISTED, _SETTLED = 16, 64  # listed rows and centroids in a tile of the exact kernel: few rows keep all programs busy
_EXACT_DIMENSIONS = 64  # of a step in float64
_WORKERS = 1056  # programs of the exact kernel; each takes every `_WORKERS`-th tile of listed rows
_MOST_DIMENSIONS = 512  # a row tile of more does not fit on the chip
_EPS32 = 2.0**-24  # unit roundoff of float32
_EPS = 2.0**-22  # of one addition: tensor cores do not round to nearest, so four times as much
_PACKED = 2.0**-19  # what a score loses, relative to itself, when its last 4 bits are replaced
_APART = tl.constexpr(14)  # the two powers of two differ by at most this
_MORE = tl.constexpr(16)  # additional columns: the last makes the score of no centroid smaller than any other
_NOTHING = -3e38  # a score before the first


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
    x, centroids = x.contiguous(), centroids.contiguous()
    middle = centroids.mean(dim=0, dtype=torch.float64).float()  # (d,)
    shifted = centroids.double() - middle.double()  # (k, d)
    power = torch.frexp(shifted.abs().max().float()).exponent.reshape(1)  # b
    shifted = torch.ldexp(shifted, -power)
    width = max(16, triton.next_power_of_2(d))
    padded = -(-k // _CENTROIDS) * _CENTROIDS  # so that the kernel loads without masks
    low = torch.zeros(padded, width, dtype=torch.float16, device=x.device)
    low[:k, :d] = shifted
    more = torch.zeros(padded, _MORE.value, dtype=torch.float16, device=x.device)
    more[k:, -1] = -60000
    bias = shifted.square().sum(dim=1).div_(-2)
    for part in range(3):
        more[:k, part] = bias
        bias = bias - more[:k, part]
    longest = torch.linalg.vector_norm(shifted, dim=1).max().float().reshape(1)
    rounding = torch.linalg.vector_norm(shifted - low[:k, :d], dim=1).max().float().reshape(1)
    rows = torch.empty(n, width, dtype=torch.float16, device=x.device)
    factors = torch.empty(n, _MORE.value, dtype=torch.float16, device=x.device)
    bound = torch.empty(n, device=x.device)
    _prepare[(triton.cdiv(n, _PREPARED),)](
        x, middle, power, longest, rounding, rows, factors, bound, n, d,
        BLOCK_N=_PREPARED, BLOCK_D=width, EPS=_EPS, PACKED=_PACKED,
    )  # fmt: skip
    group = torch.empty(n, dtype=torch.int32, device=x.device)
    best, second = torch.empty(2, n, device=x.device)
    tile = 1 if width <= _WIDE else 2
    _propose[(triton.cdiv(n, _ROWS // tile),)](
        rows, low, factors, more, group, best, second, n, padded,
        BLOCK_N=_ROWS // tile, BLOCK_K=_CENTROIDS // tile,
        BLOCK_D=width, NOTHING=_NOTHING, WIDEN=not x.is_cuda, num_warps=_WARPS // tile, num_stages=_STAGES,
    )  # fmt: skip
    labels = torch.empty(n, dtype=torch.int64, device=x.device)
    distances = torch.empty(n, device=x.device)
    listed = torch.empty(n, dtype=torch.int32, device=x.device)
    count = torch.zeros(1, dtype=torch.int32, device=x.device)
    _choose[(triton.cdiv(n, _CHOSEN),)](
        x, centroids, group, best, second, bound, labels, distances, listed, count, n, d, k,
        BLOCK_N=_CHOSEN, BLOCK_K=_CENTROIDS // tile, BLOCK_D=width, EPS32=_EPS32,
    )  # fmt: skip
    _settle[(min(triton.cdiv(n, _LISTED), _WORKERS),)](
        x, centroids, rows, low, factors, more, bound, labels, distances, listed, count, d, k, padded,
        BLOCK_N=_LISTED, BLOCK_K=_SETTLED, BLOCK_D=width, PART=min(width, _EXACT_DIMENSIONS),
        WIDEN=not x.is_cuda, num_stages=1,
    )  # fmt: skip
    return labels, distances


@triton.jit
def _prepare(
    x, middle, power, longest, rounding, rows, factors, bound, n, d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EPS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Write the shifted, scaled rows and their additional columns in float16, and for each the bound on the error of
    the difference of two of its scores (`assign.py`)."""
    numbers = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    inside = (numbers < n)[:, None] & (columns < d)[None, :]
    u = tl.load(x + numbers[:, None] * d + columns[None, :], mask=inside, other=0.0)
    u = tl.where(inside, u - tl.load(middle + columns, mask=columns < d, other=0.0)[None, :], 0.0)
    # the exponent's bits of the largest number. A row much longer than the centroids may overflow: nothing is sure then
    bits = tl.max(tl.abs(u), axis=1).to(tl.int32, bitcast=True) >> 23
    b = tl.load(power)
    a = tl.minimum(tl.maximum(bits - 127, tl.maximum(b - _APART, -120)), tl.minimum(b + _APART, 120))
    up = ((127 - a) << 23).to(tl.float32, bitcast=True)  # 2^-a
    u = u * up[:, None]
    rounded = u.to(tl.float16)
    gap = u - rounded.to(tl.float32)
    lost = tl.sqrt(tl.sum(gap * gap, axis=1))
    length = tl.sqrt(tl.sum(u * u, axis=1))
    scale = tl.exp2((b - a).to(tl.float32))
    # what rounding both factors, adding d products and packing can change in a score, for the best and for the second
    most = tl.load(longest)
    size = length * most + scale * most * most
    error = ((d + 8) * EPS + PACKED) * size + lost * most + (length + lost) * tl.load(rounding)
    tl.store(rows + numbers[:, None] * BLOCK_D + columns[None, :], rounded, mask=(numbers < n)[:, None])
    extra = tl.arange(0, _MORE)[None, :]
    values = tl.where(extra < 3, scale[:, None], tl.where(extra == _MORE - 1, 32768.0, 0.0)).to(tl.float16)
    tl.store(factors + numbers[:, None] * _MORE + extra, values, mask=(numbers < n)[:, None])
    tl.store(bound + numbers, 2 * error, mask=numbers < n)


@triton.jit
def _two_largest(first, second, other_first, other_second):
    low = tl.maximum(second, other_second)
    return tl.maximum(first, other_first), tl.maximum(low, tl.minimum(first, other_first))


@triton.jit
def _scores(u, row, low, more, start, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr):
    """Scores (rows, K) in float32 of the centroids from `start`. `row`: the additional columns of the rows u."""
    places = start + tl.arange(0, BLOCK_K)[:, None]
    v = tl.load(low + places * BLOCK_D + tl.arange(0, BLOCK_D)[None, :])
    term = tl.load(more + places * _MORE + tl.arange(0, _MORE)[None, :])
    if WIDEN:  # Triton's interpreter has no float16 product; products of two float16 are exact in float32
        offset = tl.dot(row.to(tl.float32), tl.trans(term.to(tl.float32)))
        return tl.dot(u.to(tl.float32), tl.trans(v.to(tl.float32)), offset)
    return tl.dot(u, tl.trans(v), tl.dot(row, tl.trans(term)))


@triton.jit
def _two_best_groups(scores, best, second, label, start, NOTHING: tl.constexpr):
    """Update the best score, the second and the best group of rows with a tile of scores (N, K)."""
    N: tl.constexpr = scores.shape[0]
    K: tl.constexpr = scores.shape[1]
    groups: tl.constexpr = K // 4
    left, right = tl.split(tl.permute(tl.reshape(scores, (N, 2, K // 2)), (0, 2, 1)))
    left, right = tl.split(tl.reshape(tl.maximum(left, right), (N, groups, 2)))
    four = tl.maximum(left, right).to(tl.int32, bitcast=True)
    packed = ((four & -groups) | tl.arange(0, groups)[None, :]).to(tl.float32, bitcast=True)
    top, after = tl.reduce((packed, tl.full((N, groups), NOTHING, tl.float32)), 1, _two_largest)
    second = tl.maximum(tl.maximum(second, after), tl.minimum(best, top))
    label = tl.where(top > best, start // 4 + (top.to(tl.int32, bitcast=True) & (groups - 1)), label)
    return tl.maximum(best, top), second, label


@triton.jit
def _propose(
    rows, low, factors, more, group, largest, other, n, padded,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    NOTHING: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Write the best group of each row by the float16 product, its score, and the score of the second best group.

    Of a tile's columns 0 to K - 1, group j has 2j, 2j + 1, K / 2 + 2j and K / 2 + 2j + 1: one thread holds all four.
    """
    numbers = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    here = numbers < n
    u = tl.load(rows + numbers[:, None] * BLOCK_D + columns[None, :], mask=here[:, None], other=0.0)
    row = tl.load(factors + numbers[:, None] * _MORE + tl.arange(0, _MORE)[None, :], mask=here[:, None], other=0.0)
    best = tl.full((BLOCK_N,), NOTHING, tl.float32)
    second = tl.full((BLOCK_N,), NOTHING, tl.float32)
    label = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, padded, BLOCK_K):
        scores = _scores(u, row, low, more, start, BLOCK_K, BLOCK_D, WIDEN)
        best, second, label = _two_best_groups(scores, best, second, label, start, NOTHING)
    tl.store(group + numbers, label, mask=here)
    tl.store(largest + numbers, best, mask=here)
    tl.store(other + numbers, second, mask=here)


@triton.jit
def _choose(
    x, centroids, group, largest, other, bound, labels, distances, listed, count, n, d, k,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, EPS32: tl.constexpr,
):  # fmt: skip
    """Label each row with the nearest of its best group, by float32 differences, and list the rows that are not sure.
    `bound` becomes the least score that a true nearest centroid can have."""
    numbers = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    here = numbers < n
    inside = here[:, None] & (columns < d)[None, :]
    u = tl.load(x + numbers[:, None] * d + columns[None, :], mask=inside, other=0.0)
    number = tl.load(group + numbers, mask=here, other=0)
    first = number // (BLOCK_K // 4) * BLOCK_K + 2 * (number % (BLOCK_K // 4))
    closest = tl.full((BLOCK_N,), float("inf"), tl.float32)
    following = tl.full((BLOCK_N,), float("inf"), tl.float32)
    label = tl.zeros((BLOCK_N,), tl.int32)
    for member in tl.static_range(4):
        candidate = first + member % 2 + member // 2 * (BLOCK_K // 2)
        valid = here & (candidate < k)
        at = centroids + candidate[:, None].to(tl.int64) * d + columns[None, :]
        gap = u - tl.load(at, mask=valid[:, None] & (columns < d)[None, :], other=0.0)
        distance = tl.where(valid, tl.sum(tl.where(inside, gap * gap, 0.0), axis=1), float("inf"))
        following = tl.minimum(following, tl.maximum(closest, distance))
        label = tl.where(distance < closest, candidate, label)
        closest = tl.minimum(closest, distance)
    # a score, a distance or a bound that is not finite proves nothing
    best = tl.load(largest + numbers, mask=here, other=0.0)
    error = tl.load(bound + numbers, mask=here, other=0.0)
    apart = (best - tl.load(other + numbers, mask=here, other=0.0) > error) & (tl.abs(best) < float("inf"))
    sure = apart & (following * (1 - 4 * (d + 4) * EPS32) > closest)
    tl.store(labels + numbers, label.to(tl.int64), mask=here)
    tl.store(distances + numbers, closest, mask=here)
    tl.store(bound + numbers, best - error, mask=here)
    # each listed row takes the next free place; the order of the list does not matter
    wanted = (here & (sure == 0)).to(tl.int32)
    place = tl.atomic_add(count, tl.sum(wanted, axis=0))
    tl.store(listed + place + tl.cumsum(wanted, axis=0) - 1, numbers.to(tl.int32), mask=wanted != 0)


@triton.jit
def _settle(
    x, centroids, rows, low, factors, more, least, labels, distances, listed, count, d, k, padded,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PART: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Compare each listed row in float64 with the centroids whose score is `least` or more, or is not a number; the
    lowest number wins among equals."""
    total = tl.load(count)
    columns = tl.arange(0, BLOCK_D)
    parts = tl.arange(0, PART)
    for tile in range(tl.program_id(0), tl.cdiv(total, BLOCK_N), tl.num_programs(0)):
        places = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        here = places < total
        numbers = tl.load(listed + places, mask=here, other=0).to(tl.int64)
        u = tl.load(rows + numbers[:, None] * BLOCK_D + columns[None, :], mask=here[:, None], other=0.0)
        row = tl.load(factors + numbers[:, None] * _MORE + tl.arange(0, _MORE)[None, :], mask=here[:, None], other=0.0)
        enough = tl.load(least + numbers, mask=here, other=0.0)
        closest = tl.full((BLOCK_N,), float("inf"), tl.float64)
        label = tl.zeros((BLOCK_N,), tl.int64)
        for start in range(0, padded, BLOCK_K):
            candidates = start + tl.arange(0, BLOCK_K)
            scores = _scores(u, row, low, more, start, BLOCK_K, BLOCK_D, WIDEN)
            below = (scores < enough[:, None]).to(tl.int32)  # of what is not a number: 0
            open_ = tl.where(here[:, None] & (candidates < k)[None, :], 1 - below, 0)
            while tl.max(tl.max(open_, axis=1), axis=0) > 0:
                chosen = tl.min(tl.where(open_ == 1, candidates[None, :], padded), axis=1)  # each row's first
                valid = chosen < padded
                distance = tl.zeros((BLOCK_N,), tl.float64)
                for first in range(0, d, PART):
                    mask = valid[:, None] & (first + parts < d)[None, :]
                    at = first + parts[None, :]
                    gap = tl.load(x + numbers[:, None] * d + at, mask=mask, other=0.0).to(tl.float64)
                    gap -= tl.load(centroids + chosen[:, None].to(tl.int64) * d + at, mask=mask, other=0.0)
                    distance += tl.sum(gap * gap, axis=1)
                closer = valid & (distance < closest)
                label = tl.where(closer, chosen.to(tl.int64), label)
                closest = tl.where(closer, distance, closest)
                open_ = tl.where(candidates[None, :] == chosen[:, None], 0, open_)
        tl.store(labels + numbers, label, mask=here)
        tl.store(distances + numbers, closest.to(tl.float32), mask=here)
