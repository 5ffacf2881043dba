"""Lloyd's iterations: assign, average, refill empty clusters; one all-reduce per iteration.

Empty clusters (`split`) take half of a donor: both get the donor's centroid, moved apart by a factor 1 +- perturbation
that alternates over the dimensions. With `split_randomly` the donor's centroid stays, and the empty cluster's
centroid is put beside it: in a random direction, at a distance of `perturbation` times the donor's length (Caron's
thesis, 2021, section 3.2.1, which does not give the distance). `keep` does not move an empty cluster (DeepCluster-v2).
Donors: `uniform` among the non-empty (Caron et al. 2018, section 3), `size` with odds (size - 1) / (N - k) (faiss),
`largest` (ODC, Zhan et al. 2020).

Letters: n rows of this rank, N of all, d dimensions, k centroids.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfcluster import distributed
from selfcluster.clustering import native
from selfcluster.clustering.assign import nearest_centroid, unit_rows
from selfcluster.clustering.rows import Rows
from selfcluster.clustering.two_level import Regions
from selfcluster.devices import has_triton
from selfcluster.waiting import one_thread

DONORS = ("uniform", "size", "largest")
_SUM_ROWS = 2048  # rows made float64 at once: they stay in cache


class Empty(NamedTuple):
    """How an empty cluster is treated."""

    policy: str = "split"
    donor: str = "uniform"
    perturbation: float = 1 / 1024


class Pass(NamedTuple):
    """One assignment of all rows; `sums` (k, d) and `counts` (k,) are over all ranks, `labels` (n,) this rank's."""

    labels: Tensor
    sums: Tensor
    counts: Tensor
    inertia: float
    moved: int


def assignment_pass(
    rows: Rows, centroids: Tensor, previous: Tensor | None, *, exact: bool = True, approximate: int | None = None
) -> Pass:
    """Assign all rows, and compute what the next centroids need, in one all-reduce.

    `previous` (n,): the labels of the last pass, None at first. `approximate`: seed of a two-level assignment.
    """
    k, d = centroids.shape
    totals = torch.zeros(k * d + k + 2, dtype=torch.float64, device=centroids.device)  # sums | counts | inertia, moved
    sums, counts = totals[: k * d].view(k, d), totals[k * d : k * d + k]
    labels = torch.empty(len(rows), dtype=torch.int64, device=centroids.device)
    regions = None if approximate is None else Regions(centroids, seed=approximate)
    for part, x in rows.blocks():
        last = None if previous is None else previous[part]
        if regions is None:
            found, distances = nearest_centroid(x, centroids, exact=exact)
        else:
            found, distances = regions.nearest(x, last)
        weight = rows.weights(part)
        add_rows(sums, x, found, weight)
        if weight is None:
            counts.index_add_(0, found, totals.new_ones(1).expand(len(found)))  # `bincount` waits for the device
            totals[-2] += distances.sum(dtype=torch.float64)
        else:
            counts.index_add_(0, found, weight.double())
            totals[-2] += (distances.double() * weight).sum()
        totals[-1] += len(found) if last is None else (found != last).sum()
        labels[part] = found
    totals = distributed.all_reduce(totals)
    inertia, moved = totals[-2:].tolist()
    return Pass(labels, totals[: k * d].view(k, d), totals[k * d : k * d + k], inertia, int(moved))


def add_rows(sums: Tensor, x: Tensor, labels: Tensor, weight: Tensor | None) -> None:
    """sums[labels[i]] += weight[i] x[i] in float64: float32 sums of a large cluster are off by 1e-4."""
    if native.takes(x):
        native.add(sums, x, labels, weight)
        return
    if x.is_cuda and has_triton() and x.dtype == torch.float32:
        from selfcluster.clustering.cuda import sums as cuda

        cuda.add_rows(sums, x, labels, weight)
        return
    with one_thread():  # index_add_ is serial, and for blocks this short a second thread costs more time than it saves
        for start in range(0, len(x), _SUM_ROWS):
            part = slice(start, start + _SUM_ROWS)
            wide = x[part].double() if weight is None else x[part].double() * weight[part].double()[:, None]
            sums.index_add_(0, labels[part], wide)


def average(found: Pass, centroids: Tensor, *, spherical: bool, empty: Empty, draw: np.random.Generator) -> Tensor:
    """Return the next centroids (k, d): means (scaled to length 1 if spherical); empty clusters are kept or split.

    If spherical, a cluster with only rows of zeros has no direction and counts as empty.
    """
    counts = found.counts
    if spherical:
        counts = torch.where((found.sums == 0).all(dim=1), 0.0, counts)
    filled = counts > 0
    means = torch.where(filled[:, None], found.sums / counts.clamp(min=torch.finfo(torch.float64).tiny)[:, None], 0.0)
    new = torch.where(filled[:, None], means, centroids.double())
    if spherical:
        new = unit_rows(new)
    if empty.policy in ("split", "split_randomly") and not bool(filled.all()):
        split(new, counts.cpu().numpy().copy(), empty, draw)
        if spherical:
            new = unit_rows(new)
    return new.to(centroids.dtype)


def split(centroids: Tensor, counts: np.ndarray, empty: Empty, draw: np.random.Generator) -> None:
    """Give every empty cluster half of a donor cluster, in place. All ranks draw the same donors."""
    signs = torch.ones(centroids.shape[1], dtype=centroids.dtype, device=centroids.device)
    signs[1::2] = -1
    for target in np.flatnonzero(counts <= 0):
        filled = counts > 0
        if empty.donor == "largest":
            donor = int(counts.argmax())
        else:
            odds = filled.astype(float) if empty.donor == "uniform" else np.maximum(counts - 1, 0.0)
            odds = odds if odds.sum() > 0 else filled.astype(float)
            donor = int(draw.choice(len(odds), p=odds / odds.sum()))
        if empty.policy == "split_randomly":
            drawn = unit_rows(torch.from_numpy(draw.standard_normal((1, len(signs)))).to(signs))[0]
            centroids[target] = centroids[donor] + drawn * (empty.perturbation * centroids[donor].norm())
        else:
            centroids[target] = centroids[donor] * (1 + empty.perturbation * signs)
            centroids[donor] *= 1 - empty.perturbation * signs
        counts[target] = counts[donor] = counts[donor] / 2
