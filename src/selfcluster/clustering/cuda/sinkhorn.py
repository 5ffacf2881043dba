"""Sinkhorn's passes on CUDA: exp(scores / epsilon) is computed anew in each pass and never written.

One pass over the scores makes both half-steps: a program holds whole rows, so that a row's factor 1 / (M u) is known
before the row is added to the column sums. Programs write partial sums that are added in a fixed order, which keeps
the result equal from run to run.

Letters: n rows, k columns; M = exp(max((scores - top) / epsilon, lowest)), as in `sinkhorn.py`.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton's types say `constexpr` where its launcher takes plain numbers.

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1 << 14  # entries that a program holds at once
_MOST_COLUMNS = 1 << 13  # a row of more does not fit on the chip beside its products
_PROGRAMS = 512  # at most; each takes every `_PROGRAMS`-th tile of rows
_BASE_2 = 1 / math.log(2)


def takes(scores: Tensor) -> bool:
    """Whether the kernels can take scores (n, k): float32, bfloat16 or float16, at most 8,192 columns."""
    fitting = scores.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return fitting and 0 < scores.shape[1] <= _MOST_COLUMNS


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
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows < n)[:, None] & (columns < k)[None, :]
    entries = _entries(scores, stride, top, rows, columns, mask, n, scale, lowest)
    entries = entries * tl.load(u + columns, mask=columns < k, other=0.0)[None, :]
    mass = tl.where(rows < n, tl.sum(entries, axis=1), 1.0)
    tl.store(out + rows[:, None].to(tl.int64) * k + columns[None, :], entries / mass[:, None], mask=mask)


@triton.jit
def _entries(scores, stride, top, rows, columns, mask, n, scale, lowest):
    """Entries of M, 0 outside the matrix."""
    s = tl.load(scores + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(top + rows, mask=rows < n, other=0.0)
    exponent = tl.maximum((s - shift[:, None]) * scale, lowest)
    return tl.where(mask, tl.exp2(exponent), 0.0)
