"""Targets for a batch that prevent collapse: balanced codes (Sinkhorn), and centered, sharpened outputs (DINO).

`sinkhorn` scales the rows and columns of exp(scores / epsilon) in turn until every cluster has an equal share of the
batch (Caron et al. 2020, arXiv 2006.09882, eq. 3 and 4; Cuturi 2013). Letters: B samples of this rank, Q extra
samples, K clusters, R rows this rank works on.

The matrix is written once and only two vectors change: with M = exp(scores / epsilon), u = 1 / (M^T v) and
v = 1 / (M u), starting from v = 1, the code of sample b is the row M_b * u over its sum. The constants 1/K and 1/B of
the paper's marginals are factors of all of u or v and cancel in that division; so does the sum over the whole matrix.
A row's own maximum is subtracted before exponentiating, so that no row vanishes in float32. This changes the starting
point, and so the result of few iterations. To compensate, v starts at exp(row maximum / epsilon).

On a CPU the memory's speed limits this. So a compiled kernel computes M from the scores in every pass. An iteration
takes one pass, because the part of a row in the column sums depends only on that row and u. One more pass writes the
codes.

Departs: scores more than 60 epsilon below the maximum of their row, and row maxima as far below the largest one, are
raised to this limit, so that nothing underflows. Cosines reach it only if epsilon is below 0.034. With an outlier and
few iterations the result then differs from exact arithmetic. Float64 scores are scaled on logarithms, where nothing
underflows: that is slower and exact for every epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfcluster import distributed
from selfcluster.annotations import ArrayLike
from selfcluster.clustering import native
from selfcluster.devices import has_triton

# Smallest exponent kept: no entry, and so no sum, is ever zero, and no quotient of two of them leaves float32.
# Cosines at epsilon = 0.05 span 40; entries beyond 60 have e^-60 = 9e-27 of their row's largest.
_LOWEST = -60.0
_LEAST_LOGARITHM = -1e300  # in float64, for scores of -inf
_BLOCK = 1 << 20  # entries of a block of rows: 4 MB stay in cache, and threads meet seldom enough on a busy machine


@torch.no_grad()
def sinkhorn(
    scores: ArrayLike,
    epsilon: float = 0.05,
    iterations: int = 3,
    extra: ArrayLike | None = None,
    *,
    check_finite: bool = True,
) -> Any:
    """Codes that use all clusters equally over the batch: entropic optimal transport with uniform marginals.

    Under `torch.distributed` the batch consists of the samples of all ranks. The result equals that of one process on
    the concatenated scores. Each iteration costs an all-reduce of K numbers; the call costs one more, of one number.
    The computation is in float32, also under autocast, and in float64 on logarithms for float64 scores, which costs two
    all-reduces an iteration. It passes no gradient.

    Args:
        scores: (B, K), similarity of this rank's samples to the prototypes, a tensor or an array. B may differ between
            ranks and may be 0.
        epsilon: entropy weight in the unit of the scores; smaller values give sharper codes.
        iterations: number of rounds; each normalizes the columns (clusters), then the rows (samples).
        extra: (Q, K), scores of queued samples that take part in the balancing; the same on every rank, counted once.
        check_finite: raise an error if a score is NaN or +inf, because one such score makes all codes NaN. On a GPU
            the check costs a pass and a wait for the device. A training loop that checks its loss can skip it.

    Returns:
        (B, K), a tensor if `scores` is one: rows sum to 1; columns to about B / K (exactly, as `iterations` grows).

    Raises:
        ValueError: wrong shapes, epsilon or iterations, or scores that are NaN or +inf.

    >>> sinkhorn(torch.tensor([[0.9, 0.1], [0.8, 0.1]]), iterations=10).argmax(dim=1)
    tensor([0, 1])
    """
    if not isinstance(scores, Tensor):
        queued = None if extra is None else torch.from_numpy(np.ascontiguousarray(extra))
        tensor = torch.from_numpy(np.ascontiguousarray(scores))
        return sinkhorn(tensor, epsilon, iterations, queued, check_finite=check_finite).numpy()
    extra = extra if extra is None else torch.as_tensor(extra, device=scores.device)
    _check(scores, epsilon, iterations, extra)
    checked = {"scores": scores, "extra": extra} if check_finite else {}
    parts = [scores] if extra is None else [scores, extra[distributed.share(len(extra))]]
    if all(native.takes_scores(part) for part in parts):
        return _compiled([part.detach() for part in parts], epsilon, iterations, checked)
    for name, part in checked.items():
        _check_finite(name, part)
    if scores.dtype == torch.float64:
        return _on_logarithms(parts, epsilon, iterations)
    if scores.is_cuda and has_triton():
        from selfcluster.clustering.cuda import sinkhorn as cuda

        if all(cuda.takes(part) for part in parts):
            if distributed.world_size() == 1 and parts[0].dtype == parts[-1].dtype and len(scores):
                return cuda.codes([part.detach() for part in parts], epsilon, _LOWEST, iterations)
            made = [cuda.Exponentials(part.detach(), epsilon, _LOWEST) for part in parts if len(part)]
            return balanced(made, scores, epsilon, iterations)
    with torch.autocast(scores.device.type, enabled=False):
        kernel, v = _kernel([p.detach() for p in parts], epsilon)  # (R, K), (R,)
        blocks = _blocks(kernel)
        u = _columns(((block, v[rows]) for rows, block in blocks), kernel)
        for _ in range(iterations - 1):
            u = _columns(((block, torch.mv(block, u).reciprocal_()) for _, block in blocks), kernel)
        for rows, block in blocks:
            if rows.start < len(scores):
                block.mul_(u).div_(block.sum(dim=1, keepdim=True))
    return kernel[: len(scores)]


def batch_softmax(scores: Tensor, epsilon: float = 0.05, extra: Tensor | None = None) -> Tensor:
    """The one-step form: a softmax over the batch, then rows scaled to sum 1 (DINO, arXiv 2104.14294, appendix D).

    Arguments and result are `sinkhorn`'s, which this is with one iteration; scores are not checked.
    """
    return sinkhorn(scores, epsilon, 1, extra, check_finite=False)


class Centering(nn.Module):
    """DINO's target: softmax((outputs - center) / temperature), the center a moving average of the outputs' mean.

    The center prevents one cluster from taking all samples; the low temperature prevents uniform targets
    (arXiv 2104.14294, eq. 4; algorithm 1 subtracts the center). The center is all zero at first.

    Args:
        num_prototypes: K.
        momentum: share of the old center that is kept at an update.

    >>> Centering(3)(torch.zeros(2, 3), temperature=0.04).sum(dim=1)
    tensor([1., 1.])
    """

    center: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, outputs: Tensor, temperature: float) -> Tensor:
        """(B, K) outputs to (B, K) float32 targets, rows summing to 1; at temperature 0 the largest takes all."""
        centered = outputs.float() - self.center
        if temperature == 0:
            return nn.functional.one_hot(centered.argmax(dim=1), centered.shape[1]).float()
        return torch.softmax(centered / temperature, dim=1)

    @torch.no_grad()
    def update(self, outputs: Tensor) -> None:
        """Move the center towards the mean of `outputs` (B, K) over all ranks; B may differ between them."""
        total = torch.cat([outputs.float().sum(dim=0), self.center.new_tensor([len(outputs)])])  # (K + 1,)
        total = distributed.all_reduce(total)
        self.center.lerp_(total[:-1] / total[-1], 1 - self.momentum)


def _check(scores: Tensor, epsilon: float, iterations: int, extra: Tensor | None) -> None:
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; it must be (samples, clusters)")
    if extra is not None and (extra.ndim != 2 or extra.shape[1] != scores.shape[1]):
        raise ValueError(f"extra has shape {tuple(extra.shape)}; with these scores it must be (Q, {scores.shape[1]})")
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon} must be above 0")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")


def _check_finite(name: str, scores: Tensor | None) -> None:
    if scores is None or scores.sum(dtype=torch.float32).isfinite():  # NaN or +inf would make the sum one of these
        return
    bad = int((scores.isnan() | scores.isposinf()).sum())
    if bad:
        raise ValueError(f"{name} has {bad} values that are NaN or +inf; one of them would make all codes NaN")


def _compiled(parts: list[Tensor], epsilon: float, iterations: int, checked: Mapping[str, Tensor | None]) -> Tensor:
    """The same with a compiled kernel that computes M anew in every pass rather than hold it.

    `checked`, by their names: scores that are refused if one of them is NaN or +inf. The first pass tells.
    """
    codes = _empty((len(parts[0]), parts[0].shape[1]), parts[0].device)
    made = [native.Exponentials(part, epsilon, _LOWEST) for part in parts if len(part)]
    starts = [m.start() for m in made]
    if not all(total.isfinite().all() for total, _ in starts):
        for name, part in checked.items():
            _check_finite(name, part)
    highest = torch.tensor([-torch.inf, *(top for _, top in starts)]).max()
    if distributed.world_size() > 1:
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    sums = []
    for m, (total, reference) in zip(made, starts, strict=True):
        if (highest - m.top.min()) / epsilon > -_LOWEST:  # some v is raised, which `start` does not do
            sums.append(m.columns(v=((m.top - highest) / epsilon).clamp_(min=_LOWEST).exp_()))
        else:
            sums.append(total * ((reference - highest.double()) / epsilon).exp())
    u = _scaled(sums, codes)
    for _ in range(iterations - 1):
        u = _scaled([m.columns(u=u) for m in made], codes)
    if len(codes):
        made[0].codes(u, codes)
    return codes


def balanced(made: list[Any], scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (B, K) of the first of the matrices `made`, one pass over each matrix an iteration. No step waits for the
    host. A matrix has `top`, `columns` and `codes`, as `native.Exponentials` and its CUDA twin do."""
    codes = torch.empty(scores.shape, device=scores.device)
    highest = torch.cat([*(m.top for m in made), codes.new_full((1,), -torch.inf)]).max()
    if distributed.world_size() > 1:
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    u = _scaled([m.columns(v=((m.top - highest) / epsilon).clamp_(min=_LOWEST).exp_()) for m in made], codes)
    for _ in range(iterations - 1):
        u = _scaled([m.columns(u=u) for m in made], codes)
    if len(codes):
        made[0].codes(u, codes)
    return codes


def _scaled(sums: list[Tensor], codes: Tensor) -> Tensor:
    """`_columns` of this rank's sums (k,) float64."""
    total = sum(sums, codes.new_zeros(codes.shape[1], dtype=torch.float64))
    total = distributed.all_reduce(total.float())
    return total.min() / total


def _on_logarithms(parts: list[Tensor], epsilon: float, iterations: int) -> Tensor:
    """The same in float64, with the logarithms of M, u and v."""
    m = torch.cat([part.detach().double() for part in parts]).div_(epsilon).clamp_(min=_LEAST_LOGARITHM)  # (R, K)
    u, v = m.new_zeros(m.shape[1]), m.new_zeros(len(m))
    for _ in range(iterations):
        weighted = m + v[:, None]
        top = torch.cat([weighted, weighted.new_full((1, len(u)), -torch.inf)]).amax(dim=0)
        if distributed.world_size() > 1:
            dist.all_reduce(top, dist.ReduceOp.MAX)
        u = -distributed.all_reduce((weighted - top).exp_().sum(dim=0)).log_() - top
        v = -torch.logsumexp(m + u, dim=1)
    return torch.softmax(m[: len(parts[0])] + u, dim=1)


def _kernel(parts: list[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """M with a maximum of 1 in each row (R, K), and the v (R,) at which it means exp(scores / epsilon)."""
    top = torch.cat([p.amax(dim=1) for p in parts]).float()  # (R,)
    highest = torch.cat([top, top.new_full((1,), -torch.inf)]).max()  # of no rows: -inf
    if distributed.world_size() > 1:
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    kernel = _empty((len(top), parts[0].shape[1]), parts[0].device)
    start = 0
    for part in parts:
        mine = kernel[start : start + len(part)]
        for rows, block in _blocks(mine):
            shift = top[start + rows.start : start + rows.start + len(block), None]
            torch.sub(part[rows], shift, out=block).mul_(1 / epsilon).clamp_(min=_LOWEST).exp_()
        start += len(part)
    return kernel, ((top - highest) / epsilon).clamp_(min=_LOWEST).exp_()


def _columns(pairs, kernel: Tensor) -> Tensor:
    """u = 1 / (M^T v) over all ranks, scaled so that its largest is 1 (the scale cancels, and 1 is exact)."""
    total = kernel.new_zeros(kernel.shape[1])
    for block, v in pairs:
        total.addmv_(block.t(), v)
    total = distributed.all_reduce(total)
    return total.min() / total


def _blocks(matrix: Tensor) -> list[tuple[slice, Tensor]]:
    """The matrix cut into blocks of rows: all of it on an accelerator, what fits a core's cache on a CPU."""
    size = max(1, _BLOCK // matrix.shape[1]) if matrix.device.type == "cpu" else max(1, len(matrix))
    return [(slice(i, i + size), matrix[i : i + size]) for i in range(0, len(matrix), size)]


def _empty(shape: tuple[int, int], device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    # NumPy asks the kernel for huge pages, torch does not: touching 49 MB anew is two to three times quicker
    return torch.from_numpy(np.empty(shape, np.float32))
