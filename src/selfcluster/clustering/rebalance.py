"""Refill small clusters: empty them, then give each one half of the largest cluster.

Zhan et al. 2020, arXiv 2006.10645, section 3.2. N samples, K clusters, D features.
Departs: the small clusters of a round are emptied together, so that no sample moves twice in it; the number of
rounds is limited, because halves may be small again; a cluster of equal rows is halved at random.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from selfcluster import distributed, randomness
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.memory import CentroidMemory

_HALVES = ("random", "second")


@torch.no_grad()
def rebalance(
    rows: Tensor,
    labels: Tensor,
    centroids: CentroidMemory,
    min_size: int,
    *,
    metric: str = "l2",
    half: str = "random",
    rounds: int = 10,
    seed: int = 0,
) -> int:
    """Refill every cluster of fewer than `min_size` samples, in place.

    Its samples go to the nearest cluster that is large enough; then the largest cluster is split by k-means and the
    small one gets a half. `labels` and `centroids` change; all arguments are equal on all ranks, and stay so.

    Args:
        rows: (N, D), the samples.
        labels: (N,) int64, -1 = none; written to.
        centroids: its counts are those of `labels`; its rows and counts are written to.
        min_size: smallest number of samples of a cluster that is not refilled.
        metric: of "nearest", see `CentroidMemory.nearest`.
        half: which half a small cluster gets: "random" (the paper) or always the "second" (as released).
        rounds: how often to look again whether a cluster is small.
        seed: of the splits.

    Returns:
        The number of refilled clusters; 0 if all clusters are small, because then no cluster can take their images.

    >>> rows, labels = torch.tensor([[0.0], [0.1], [9.0], [9.1], [5.0]]), torch.tensor([0, 0, 0, 0, 1])
    >>> centroids = CentroidMemory(2, 1)
    >>> centroids.recompute(rows, labels)
    >>> rebalance(rows, labels, centroids, min_size=2), sorted(centroids.counts.tolist())
    (1, [2, 3])
    """
    if half not in _HALVES:
        raise ValueError(f"half={half!r} must be {' or '.join(map(repr, _HALVES))}")
    refilled = 0
    for turn in range(rounds):
        small = centroids.counts < min_size
        emptied: list[int] = small.nonzero().flatten().tolist()  # one host read per call; mostly no cluster is small
        if not emptied or len(emptied) == len(small):
            break
        _empty(rows, labels, centroids, small, metric)
        for cluster in emptied:
            _split_largest(rows, labels, centroids, cluster, half, randomness.key(seed, "split", turn, cluster) >> 33)
        refilled += len(emptied)
    return refilled


def _empty(rows: Tensor, labels: Tensor, centroids: CentroidMemory, small: Tensor, metric: str) -> None:
    """Send the samples of the `small` (K,) clusters to the nearest of the others."""
    members = (small[labels.clamp(min=0)] & (labels >= 0)).nonzero().flatten()
    before = labels[members]
    counts = centroids.counts.clone()
    centroids.counts.masked_fill_(small, 0)  # the nearest non-empty one is then a large one
    after = distributed.all_gather(centroids.nearest(rows[members[distributed.share(len(members))]], metric))
    centroids.counts.copy_(counts)
    labels[members] = after
    centroids.move(before, after)


def _split_largest(rows: Tensor, labels: Tensor, centroids: CentroidMemory, cluster: int, half: str, seed: int) -> None:
    """Give the empty `cluster` a half of the largest one."""
    largest = int(centroids.counts.argmax())
    members = (labels == largest).nonzero().flatten()
    if len(members) < 2:
        return
    generator = torch.Generator().manual_seed(seed)
    which = 1 if half == "second" else int(torch.randint(2, (), generator=generator))
    taken = members[_halves(rows, members, generator, seed) == which]
    labels[taken] = cluster
    centroids.recompute(rows, labels, torch.tensor([cluster, largest], device=labels.device))


def _halves(rows: Tensor, members: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """(n,) of 0 and 1: the halves by k-means of `rows[members]`."""
    kmeans: Any = KMeans(2, max_iter=20, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # equal rows need no warning here
        found = kmeans.fit(rows[members[distributed.share(len(members))]])
    halves = distributed.all_gather(found.labels_)
    if 0 < int(halves.sum()) < len(members):
        return halves
    return (torch.randperm(len(members), generator=generator) % 2).to(members.device)
