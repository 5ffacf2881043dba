"""Sinkhorn's passes on CUDA: exp(scores / epsilon) is computed anew in each pass and never written.

One pass over the scores makes both half-steps: a program holds whole rows, so that a row's factor 1 / (M u) is known
before the row is added to the column sums. Programs write partial sums that are added in a fixed order, which keeps
the result equal from run to run. In one process one kernel makes all passes; between two of them its programs wait for
each other. With several ranks each pass is a kernel of its own (`Exponentials`), because the ranks exchange the column
sums.

Letters: n rows, k columns; M = exp(max((scores - top) / epsilon, lowest)), as in `sinkhorn.py`.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton's types say `constexpr` where its launcher takes plain numbers.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1 << 14  # entries that a program holds at once
_MOST_COLUMNS = 1 << 13  # a row of more does not fit on the chip beside its products
_PROGRAMS = 512  # at most; each takes every `_PROGRAMS`-th tile of rows
# The kernel of all passes: programs that wait for each other must all run at once, which takes few enough registers.
_EACH, _WARPS, _REGISTERS = 3, 8, 80  # programs for each multiprocessor, their warps, registers of a thread
_SMALL = 1 << 12  # entries that a program holds at once
_PARTS = 64  # partial sums that are added at once
_BASE_2 = 1 / math.log(2)


def takes(scores: Tensor) -> bool:
    """Whether the kernels can take scores (n, k): float32, bfloat16 or float16, at most 8,192 columns."""
    fitting = scores.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return fitting and 0 < scores.shape[1] <= _MOST_COLUMNS


def codes(parts: Sequence[Tensor], epsilon: float, lowest: float, iterations: int) -> Tensor:
    """Codes of the first matrix, balanced over all, in one process.

    Args:
        parts: one or two matrices of scores (n, k) of one dtype on one device.
        epsilon: entropy weight.
        lowest: smallest exponent that is kept.
        iterations: number of rounds, at least 1.

    Returns:
        (n, k) float32 for the first matrix; rows sum to 1.
    """
    scores, extra = (p if p.stride(1) == 1 else p.contiguous() for p in (parts[0], parts[-1]))
    n, k = scores.shape
    q = len(extra) if len(parts) == 2 else 0
    width = triton.next_power_of_2(k)
    rows = max(1, _SMALL // width)
    programs = min(_EACH * _multiprocessors(scores), max(triton.cdiv(n, rows), triton.cdiv(q, rows)))
    out, top = torch.empty(n, k, device=scores.device), torch.empty(n + q, device=scores.device)
    tops, partial, total = top.new_empty(programs), top.new_empty(programs, k), top.new_empty(k)
    arrived = torch.zeros(1, dtype=torch.int32, device=scores.device)
    unit = 4 if (scores.stride(0) | extra.stride(0) | k) % 4 == 0 else 1
    passes = 2 * iterations + 2
    options: dict[str, Any] = {"launch_cooperative_grid": True, "maxnreg": _REGISTERS} if scores.is_cuda else {}
    # the interpreter runs one program after the other, so that none can wait for another: a launch for each pass
    for first, last in [(0, passes)] if scores.is_cuda else [(i, i + 1) for i in range(passes)]:
        _balance[(programs,)](
            scores, scores.stride(0) // unit, extra, extra.stride(0) // unit, out, top, tops, partial, total, arrived,
            n, q, k // unit, _BASE_2 / epsilon, _BASE_2 * lowest, programs, first, last, passes,
            BLOCK_N=rows, BLOCK_K=width, BLOCK_C=triton.next_power_of_2(triton.cdiv(k, programs)),
            BLOCK_P=triton.next_power_of_2(programs), PARTS=_PARTS, EXTRA=q > 0, UNIT=unit, num_warps=_WARPS, **options,
        )  # fmt: skip
    return out


def _multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2


class Exponentials:
    """The passes of Sinkhorn over one matrix of scores.

    Args:
        scores: (n, k), n above 0.
        epsilon: entropy weight.
        lowest: smallest exponent that is kept.
    """

    def __init__(self, scores: Tensor, epsilon: float, lowest: float) -> None:
        self.scores = scores if scores.stride(1) == 1 else scores.contiguous()
        self.top = self.scores.amax(dim=1).float()  # (n,)
        self._scale, self._lowest = _BASE_2 / epsilon, _BASE_2 * lowest
        self._width = triton.next_power_of_2(scores.shape[1])
        self._rows = max(1, _TILE // self._width)

    def columns(self, *, u: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """M^T v (k,) float64 for v (n,) as given, or for v = 1 / (M u) with u (k,)."""
        n, k = self.scores.shape
        programs = min(_PROGRAMS, triton.cdiv(n, self._rows))
        partial = torch.empty(programs, k, device=self.scores.device)
        factor = v if u is None else u
        _sum_columns[(programs,)](
            self.scores, self.scores.stride(0), self.top, factor, partial, n, k, self._scale, self._lowest,
            BY_ROW=u is None, BLOCK_N=self._rows, BLOCK_K=self._width, num_warps=8,
        )  # fmt: skip
        return partial.sum(dim=0, dtype=torch.float64)

    def codes(self, u: Tensor, out: Tensor) -> None:
        """Write the rows of M times u (k,), scaled to sum 1, to `out` (n, k) float32, contiguous."""
        n, k = self.scores.shape
        _write_codes[(triton.cdiv(n, self._rows),)](
            self.scores, self.scores.stride(0), self.top, u, out, n, k, self._scale, self._lowest,
            BLOCK_N=self._rows, BLOCK_K=self._width, num_warps=8,
        )  # fmt: skip


@triton.jit
def _sum_columns(
    scores, stride, top, factor, partial, n, k, scale, lowest,
    BY_ROW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the column sums of this program's rows, each row times its factor."""
    columns = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_K,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK_N), tl.num_programs(0)):
        rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (rows < n)[:, None] & (columns < k)[None, :]
        entries = _entries(scores, stride, top, rows, columns, mask, n, scale, lowest)
        if BY_ROW:
            weight = tl.load(factor + rows, mask=rows < n, other=0.0)
        else:
            u = tl.load(factor + columns, mask=columns < k, other=0.0)
            mass = tl.sum(entries * u[None, :], axis=1)
            weight = tl.where(rows < n, 1 / tl.where(rows < n, mass, 1.0), 0.0)
        total += tl.sum(entries * weight[:, None], axis=0)
    tl.store(partial + tl.program_id(0) * k + columns, total, mask=columns < k)


@triton.jit
def _write_codes(
    scores, stride, top, u, out, n, k, scale, lowest, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Write the codes of a block of rows."""
    columns = tl.arange(0, BLOCK_K)
    factors = tl.load(u + columns, mask=columns < k, other=0.0)
    _tile_of_codes(scores, stride, top, factors, out, tl.program_id(0), n, k, columns, scale, lowest, BLOCK_N)


@triton.jit
def _tile_of_codes(scores, stride, top, u, out, tile, n, k, columns, scale, lowest, BLOCK_N: tl.constexpr):
    """Write the rows of M times u of one tile, scaled to sum 1."""
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows < n)[:, None] & (columns < k)[None, :]
    entries = _entries(scores, stride, top, rows, columns, mask, n, scale, lowest) * u[None, :]
    mass = tl.where(rows < n, tl.sum(entries, axis=1), 1.0)
    tl.store(out + rows[:, None].to(tl.int64) * k + columns[None, :], entries / mass[:, None], mask=mask)


@triton.jit
def _entries(scores, stride, top, rows, columns, mask, n, scale, lowest):
    """Entries of M, 0 outside the matrix."""
    s = tl.load(scores + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(top + rows, mask=rows < n, other=0.0)
    exponent = tl.maximum((s - shift[:, None]) * scale, lowest)
    return tl.where(mask, tl.exp2(exponent), 0.0)


@triton.jit
def _balance(
    scores, stride, extra, extra_stride, out, top, tops, partial, total, arrived,
    n, q, k, scale, lowest, programs, first, last, passes,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    PARTS: tl.constexpr, EXTRA: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Passes `first` to `last` - 1 of `passes`: the rows' maxima; then two an iteration, partial column sums and their
    totals; then the codes. What other programs wrote is read past the multiprocessor's own cache (`.cg`). Strides and k
    come in units of UNIT: if the compiler knows that 4 divides them, it loads 4 numbers at once.
    """
    stride, extra_stride, k = stride * UNIT, extra_stride * UNIT, k * UNIT
    me = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    for number in range(first, last):
        if number == 0:
            mine = _all_maxima(scores, stride, top, me, programs, n, k, columns, BLOCK_N)
            if EXTRA:
                others = _all_maxima(extra, extra_stride, top + n, me, programs, q, k, columns, BLOCK_N)
                mine = tl.maximum(mine, others)
            tl.store(tops + me, mine)
        elif number == passes - 1:
            u = _factors(total, columns, k)
            for tile in range(me, tl.cdiv(n, BLOCK_N), programs):
                _tile_of_codes(scores, stride, top, u, out, tile, n, k, columns, scale, lowest, BLOCK_N)
        elif number % 2 == 0:
            _totals(partial, total, me, programs, k, BLOCK_C, PARTS)
        else:
            highest = 0.0
            u = tl.zeros((BLOCK_K,), tl.float32)
            if number == 1:
                other = tl.arange(0, BLOCK_P)
                maxima = tl.load(tops + other, mask=other < programs, other=-float("inf"), cache_modifier=".cg")
                highest = tl.max(maxima, axis=0)
            else:
                u = _factors(total, columns, k)
            sums = tl.zeros((BLOCK_K,), tl.float32)
            for tile in range(me, tl.cdiv(n, BLOCK_N), programs):
                sums += _weighted(
                    scores, stride, top, tile, n, k, columns, u, highest, number == 1, scale, lowest, BLOCK_N
                )
            if EXTRA:
                for tile in range(me, tl.cdiv(q, BLOCK_N), programs):
                    sums += _weighted(
                        extra, extra_stride, top + n, tile, q, k, columns, u, highest, number == 1, scale, lowest,
                        BLOCK_N,
                    )  # fmt: skip
            tl.store(partial + me * k + columns, sums, mask=columns < k)
        if number + 1 < last:  # wait until all programs have come here
            tl.debug_barrier()
            tl.atomic_add(arrived, 1, sem="acq_rel")
            while tl.atomic_add(arrived, 0, sem="acquire") < (number + 1) * programs:
                pass
            tl.debug_barrier()


@triton.jit
def _all_maxima(scores, stride, top, me, programs, n, k, columns, BLOCK_N: tl.constexpr):
    """Write the maxima of this program's rows; return the largest."""
    largest = tl.full((), -float("inf"), tl.float32)
    for tile in range(me, tl.cdiv(n, BLOCK_N), programs):
        largest = tl.maximum(largest, _maxima(scores, stride, top, tile, n, k, columns, BLOCK_N))
    return largest


@triton.jit
def _totals(partial, total, me, programs, k, BLOCK_C: tl.constexpr, PARTS: tl.constexpr):
    """Add the partial sums of this program's columns, in a fixed order."""
    columns = me * BLOCK_C + tl.arange(0, BLOCK_C)
    whole = tl.zeros((BLOCK_C,), tl.float64)
    for start in range(0, programs, PARTS):
        parts = start + tl.arange(0, PARTS)
        mask = (parts < programs)[:, None] & (columns < k)[None, :]
        numbers = tl.load(partial + parts[:, None] * k + columns[None, :], mask=mask, other=0.0, cache_modifier=".cg")
        whole += tl.sum(numbers.to(tl.float64), axis=0)
    tl.store(total + columns, whole.to(tl.float32), mask=columns < k)


@triton.jit
def _maxima(scores, stride, top, tile, n, k, columns, BLOCK_N: tl.constexpr):
    """Write the maxima of a tile's rows; return the largest."""
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows < n)[:, None] & (columns < k)[None, :]
    at = scores + rows[:, None].to(tl.int64) * stride + columns[None, :]
    maxima = tl.max(tl.load(at, mask=mask, other=-float("inf")).to(tl.float32), axis=1)
    tl.store(top + rows, maxima, mask=rows < n)
    return tl.max(maxima, axis=0)


@triton.jit
def _factors(total, columns, k):
    """u = 1 / the column sums, scaled so that its largest is 1."""
    sums = tl.load(total + columns, mask=columns < k, other=float("inf"), cache_modifier=".cg")
    return tl.min(sums, axis=0) / sums


@triton.jit
def _weighted(
    scores, stride, top, tile, n, k, columns, u, highest, starts, scale, lowest, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Column sums of a tile's rows, each times its v: at the start the factor that its maximum was, else 1 / (M u)."""
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows < n)[:, None] & (columns < k)[None, :]
    entries = _entries(scores, stride, top, rows, columns, mask, n, scale, lowest)
    if starts:
        shift = tl.load(top + rows, mask=rows < n, other=0.0) - highest
        v = tl.exp2(tl.maximum(shift * scale, lowest))
    else:
        v = 1 / tl.where(rows < n, tl.sum(entries * u[None, :], axis=1), 1.0)
    return tl.sum(entries * tl.where(rows < n, v, 0.0)[:, None], axis=0)
