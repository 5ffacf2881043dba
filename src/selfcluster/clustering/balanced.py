"""Balanced assignment of a whole set: optimal transport between N samples and K clusters of given sizes (SeLa).

Asano et al. 2020, arXiv 1911.05371, eq. 5 and 6; the plan is Q_nk = a_n exp(sharpness * scores_nk) b_k with rows of
1/N and columns of `marginals`. Sinkhorn-Knopp in the log domain: with log b = f, a row's plan is the softmax of
sharpness * scores_n + f, its column sums are compared with the marginals, and f moves by the log of their ratio. Only f
(K) and one number per row are stored, so the scores may be a memory-mapped file or be computed block by block.
Letters: N samples (this rank's share), K clusters.

Departs: the paper raises softmax probabilities to the power 25, its sharpness. The softmax's denominator is a factor
of the whole row and cancels, so logits give the same result. The first half-step is over rows, in the released code
over columns; the fixed point is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from selfcluster import distributed
from selfcluster.annotations import ArrayLike

_BLOCK = 1 << 22  # scores worked on at a time
_LEAST = 1e-40  # a column sum below this is float32 underflow: its potential moves by what is known, 92 nats


Scores: TypeAlias = np.ndarray | Tensor | Callable[[], object]  # rows, or a function that yields their blocks


@dataclass(frozen=True)
class Balanced:
    """The result of `balanced_assignment`.

    `labels` (N,) int64: this rank's samples. `codes` (N, K) or None: the soft plan, rows summing to 1. `potentials`
    (K,) float64: `softmax(sharpness * scores + potentials)` is the plan of any sample. `counts` (K,): samples with each
    label over all ranks. `row_error`, `iterations`, `converged`: how the iteration ended.
    """

    labels: Tensor
    codes: Tensor | None
    potentials: Tensor
    counts: Tensor
    row_error: float
    iterations: int
    converged: bool


@torch.no_grad()
def balanced_assignment(
    scores: Scores,
    *,
    sharpness: float = 25.0,
    marginals: ArrayLike | None = None,
    tolerance: float = 0.1,
    max_iter: int = 1000,
    soft: bool = False,
    potentials: Tensor | None = None,
) -> Balanced:
    """Assign every sample so that cluster k receives the share `marginals[k]` of all samples.

    The soft plan matches the marginals. The hard labels are its arg-max, as in the released SeLa; they match the
    marginals closely if the plan is sharp. Under `torch.distributed` each rank passes its share of the samples and gets
    their labels. Each iteration costs one all-reduce of K + 1 numbers.

    Args:
        scores: (N, K) tensor, NumPy array or memory-mapped file; or a function without arguments that yields the blocks
            (n, K) of a pass, in the same order each time it is called.
        sharpness: SeLa's lambda, 1 / epsilon of `sinkhorn`. 25 for log-probabilities or logits, 20 for cosines.
        marginals: (K,) positive shares, scaled to sum 1; None: all equal.
        tolerance: stop if the row error is below this. The row error is the sum over all samples of
            |row sum * N - 1| after the columns were corrected, as in the released SeLa.
        max_iter: maximum number of passes over the scores; 100 for SeLa-v2.
        soft: also return the plan (N, K) of this rank.
        potentials: (K,), the potentials of an earlier call, to start from.

    Raises:
        ValueError: wrong shapes, marginals or sharpness, or scores that are not finite.

    >>> found = balanced_assignment(torch.tensor([[0.9, 0.8], [0.7, 0.1], [0.6, 0.5], [0.9, 0.2]]))
    >>> found.labels
    tensor([1, 0, 1, 0])
    """
    if not sharpness > 0:
        raise ValueError(f"sharpness={sharpness} must be above 0")
    if max_iter < 1:
        raise ValueError(f"max_iter={max_iter} must be at least 1")
    passes = _passes(scores)
    k, device = _width(passes)
    target = _marginals(marginals, k).to(device)
    f = torch.zeros(k, dtype=torch.float64, device=device)
    if potentials is not None:
        f = torch.as_tensor(potentials).detach().to(device, torch.float64, copy=True)
    if f.shape != (k,):
        raise ValueError(f"potentials has shape {tuple(f.shape)}; with these scores it must be ({k},)")
    previous: Tensor | None = None
    error, iteration = float("inf"), 0
    while True:
        mass, logs = _pass(passes, sharpness, f)
        # the last correction of f changed this row's sum from 1 to exp(now - before): SeLa's c / c'
        moved = logs.new_full((1,), float("inf")) if previous is None else (logs - previous).expm1().abs().sum().view(1)
        total = distributed.all_reduce(torch.cat([mass, moved]))
        if not torch.isfinite(total[:k]).all():
            raise ValueError("the scores contain NaN or infinite values")
        error = float(total[-1])
        if error < tolerance or iteration == max_iter:
            break
        # shares of their own sum, which float32 brings near N only: the difference would count as an error of every row
        f += target.log() - (total[:k] / total[:k].sum()).clamp(min=_LEAST).log()
        # a shift of all of f changes no plan, and adds a constant to every row's log
        shift = f.mean()
        f -= shift
        previous = logs - shift
        iteration += 1
    labels, codes = _read(passes, sharpness, f, soft)
    counts = distributed.all_reduce(torch.bincount(labels, minlength=k))
    return Balanced(labels, codes, f, counts, error, iteration, error < tolerance)


def balanced_labels(num_samples: int, num_clusters: int, generator: torch.Generator | None = None) -> Tensor:
    """Return (N,) random labels with cluster sizes that differ by at most one. SeLa starts with them.

    >>> balanced_labels(5, 2).bincount().tolist()
    [3, 2]
    """
    return torch.arange(num_samples)[torch.randperm(num_samples, generator=generator)] % num_clusters


def _passes(scores: Scores) -> Callable[[], Iterator[Tensor]]:
    """Return a function that yields the blocks of one pass over the scores."""
    if callable(scores):
        return lambda: (torch.as_tensor(block) for block in _iterable(scores()))
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; it must be (samples, clusters)")
    size = max(1, _BLOCK // scores.shape[1])
    starts = range(0, max(1, len(scores)), size)  # one empty block if a rank has no samples
    if isinstance(scores, Tensor):
        return lambda: (scores[i : i + size].detach() for i in starts)
    return lambda: (torch.from_numpy(scores[i : i + size].copy()) for i in starts)  # copied: a map may be read-only


def _iterable(blocks: object) -> Iterable[object]:
    if not isinstance(blocks, Iterable):
        raise ValueError(f"scores() returned {type(blocks).__name__}; it must yield the blocks of a pass")
    return blocks


def _width(passes: Callable[[], Iterator[Tensor]]) -> tuple[int, torch.device]:
    for block in passes():
        return block.shape[1], block.device
    raise ValueError("scores() yielded no block; a rank without samples yields one of shape (0, clusters)")


def _marginals(marginals: ArrayLike | None, k: int) -> Tensor:
    if marginals is None:
        return torch.full((k,), 1 / k, dtype=torch.float64)
    target = torch.as_tensor(marginals).double()
    if target.shape != (k,):
        raise ValueError(f"marginals has shape {tuple(target.shape)}; with these scores it must be ({k},)")
    if not (torch.isfinite(target) & (target > 0)).all():
        raise ValueError(f"marginals must be positive and finite; the smallest is {float(target.min())}")
    return target / target.sum()


def _logits(block: Tensor, sharpness: float, f: Tensor) -> Tensor:
    dtype = torch.float64 if block.dtype == torch.float64 else torch.float32
    return torch.add(f.to(dtype), block.to(dtype), alpha=sharpness)  # (n, K)


def _pass(passes: Callable[[], Iterator[Tensor]], sharpness: float, f: Tensor) -> tuple[Tensor, Tensor]:
    """Column sums (K,) of the plan with rows of 1, and each row's log normalizer (N,), in float64."""
    mass, logs = torch.zeros_like(f), [f.new_zeros(0)]
    for block in passes():
        x = _logits(block, sharpness, f)
        top = x.amax(dim=1, keepdim=True)
        x = x.sub_(top).exp_()
        sums = x.sum(dim=1)
        mass += (x.t() @ sums.reciprocal()).double()
        logs.append(top.squeeze(1).double() + sums.double().log())
    return mass, torch.cat(logs)


def _read(
    passes: Callable[[], Iterator[Tensor]], sharpness: float, f: Tensor, soft: bool
) -> tuple[Tensor, Tensor | None]:
    labels, codes = [], []
    for block in passes():
        x = _logits(block, sharpness, f)
        labels.append(x.argmax(dim=1))
        if soft:
            codes.append(torch.softmax(x, dim=1))
    return torch.cat(labels), torch.cat(codes) if soft else None
