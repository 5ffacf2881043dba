"""The order of an epoch's images: a pure function of (seed, epoch, plan), equal for any number of processes.

N images, B the global batch, S steps, G groups, C clusters. A rank's part of a global batch is a contiguous slice:
put together in rank order, the parts are the batch that one process would have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from selfcluster import randomness

if TYPE_CHECKING:
    from torch import Tensor

    from selfcluster.types import EpochPlan


def shuffled(n: int, seed: int, purpose: str, counter: int = 0) -> np.ndarray:
    """Return (n,) int64: a permutation of range(n), the same on every machine and with every NumPy version.

    It sorts by 48 random bits an element, so that two of a million are rarely equal (equal ones keep their order).
    """
    return np.argsort(_bits(np.arange(n), seed, purpose, counter), kind="stable")


def epoch_order(
    num_samples: int, batch_size: int, steps: int, seed: int, epoch: int, plan: EpochPlan | None = None
) -> np.ndarray:
    """Return which image is used at which place of an epoch.

    Without a plan every image is used at most once. `plan.balance` (N,) labels the images: the clusters' numbers of
    draws differ by at most one, no image is repeated before its whole cluster was drawn, and images labeled -1 are
    never drawn. `plan.replace` draws with replacement. `plan.groups` (N,): every batch has B/G images of each group,
    one group after another, so that the slices of G ranks are the groups; -1 is in no group. Repeats within a cluster
    or a group are spread evenly over its images.

    Args:
        num_samples: N.
        batch_size: B, over all processes.
        steps: S, batches of the epoch.
        seed: the run's seed.
        epoch: the epoch's number.
        plan: how to sample; its tensors may lie on any device.

    Returns:
        (S, B) int64.

    Raises:
        ValueError: fewer than S x B images without a plan, no image to draw, B no multiple of G.

    >>> epoch_order(10, 5, 2, seed=0, epoch=0).shape
    (2, 5)
    """
    balance = _labels(plan.balance, num_samples, "balance") if plan is not None else None
    groups = _labels(plan.groups, num_samples, "groups") if plan is not None else None
    replace = plan is not None and plan.replace
    if groups is None:
        rows = _draws(np.arange(num_samples), steps * batch_size, balance, replace, seed, epoch, 0)
        return rows.reshape(steps, batch_size)
    kinds = np.unique(groups[groups >= 0])
    if not len(kinds):
        raise ValueError("no image belongs to a group")
    if batch_size % len(kinds):
        raise ValueError(f"batch_size={batch_size} must be a multiple of the number of groups, {len(kinds)}")
    each = batch_size // len(kinds)
    parts = [
        _draws(np.flatnonzero(groups == kind), steps * each, balance, replace, seed, epoch, 1 + int(kind), repeat=True)
        for kind in kinds
    ]
    return np.concatenate([part.reshape(steps, each) for part in parts], axis=1)  # (S, B)


def rank_slice(batch_size: int, rank: int, world: int) -> slice:
    """Return a rank's part of a global batch; `world` must divide `batch_size`."""
    each = batch_size // world
    return slice(rank * each, (rank + 1) * each)


def _draws(
    members: np.ndarray,
    count: int,
    balance: np.ndarray | None,
    replace: bool,
    seed: int,
    epoch: int,
    part: int,
    repeat: bool = False,
) -> np.ndarray:
    """(count,) of the images `members`."""
    purpose = f"order {part}"
    if balance is not None:
        members = members[balance[members] >= 0]
    if not len(members):
        raise ValueError("no image to draw: every label is -1")
    if balance is not None:
        return _balanced(members, balance[members], count, replace, seed, purpose, epoch)
    if replace:
        return members[_below(len(members), count, seed, purpose + " replace", epoch)]
    if count > len(members) and not repeat:
        raise ValueError(f"{count} images an epoch are needed, more than the {len(members)} images")
    return members[_cycled(np.array([len(members)]), np.array([count]), shuffled(len(members), seed, purpose, epoch))][
        shuffled(count, seed, purpose + " mix", epoch) if count > len(members) else slice(None)
    ]


def _balanced(
    members: np.ndarray, labels: np.ndarray, count: int, replace: bool, seed: int, purpose: str, epoch: int
) -> np.ndarray:
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    clusters = len(sizes)
    draws = np.full(clusters, count // clusters)  # (C,)
    draws[shuffled(clusters, seed, purpose + " rest", epoch)[: count % clusters]] += 1
    if replace:
        starts = np.repeat(np.cumsum(sizes) - sizes, draws)
        within = (_uniform(count, seed, purpose + " replace", epoch) * np.repeat(sizes, draws)).astype(np.int64)
        picked = np.argsort(labels, kind="stable")[starts + within]
    else:
        mixed = shuffled(len(members), seed, purpose, epoch)
        by_cluster = mixed[np.argsort(labels[mixed], kind="stable")]  # each cluster's images together, in random order
        picked = by_cluster[_cycled(sizes, draws, None)]
    return members[picked[shuffled(count, seed, purpose + " mix", epoch)]]


def _cycled(sizes: np.ndarray, draws: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Positions of `draws[c]` draws from the run of `sizes[c]` positions of cluster c, round and round."""
    starts = np.cumsum(sizes) - sizes
    turn = np.arange(draws.sum()) - np.repeat(np.cumsum(draws) - draws, draws)  # 0, 1, 2 ... in each cluster
    positions = np.repeat(starts, draws) + turn % np.repeat(sizes, draws)
    return positions if order is None else order[positions]


def _bits(index: np.ndarray, seed: int, purpose: str, counter: int) -> np.ndarray:
    high, low = (randomness.draw(seed, purpose, counter, index, 0, 2).astype(np.float64) * 2**24).astype(np.int64).T
    return (high << 24) | low  # 48 random bits


def _uniform(n: int, seed: int, purpose: str, counter: int) -> np.ndarray:
    return _bits(np.arange(n), seed, purpose, counter) * 2.0**-48


def _below(bound: int, n: int, seed: int, purpose: str, counter: int) -> np.ndarray:
    return (_uniform(n, seed, purpose, counter) * bound).astype(np.int64)


def _labels(values: Tensor | np.ndarray | None, num_samples: int, name: str) -> np.ndarray | None:
    if values is None:
        return None
    values = np.asarray(values) if isinstance(values, np.ndarray) else values.cpu().numpy()
    if values.shape != (num_samples,):
        raise ValueError(f"{name} has shape {values.shape}, ({num_samples},) is needed")
    return values
