"""Combine several clusterings into one: samples that often share a cluster stay together (evidence accumulation).

Fred and Jain 2005, IEEE TPAMI 27(6): the co-association of two samples is the share of clusterings in which they share
a cluster; average linkage on it, cut at k clusters, or at the longest gap of the linkage ("lifetime").
Only a sample of at most `limit` rows is linked (limit^2 / 2 numbers). Each other row joins the cluster with the highest
mean co-association. This takes a look-up in M tables of (consensus cluster, cluster), so time and memory are linear in
N. Letters: N samples, M clusterings, k clusters of the consensus.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from selfcluster.annotations import ArrayLike

LIMIT = 4000  # rows linked at most: 64 MB of co-associations, some seconds
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Consensus:
    """`labels` (N,) int64; `support` (N,): mean co-association of a sample with its cluster, 1 = always together;
    `agreement`: their mean; `n_clusters`."""

    labels: np.ndarray
    support: np.ndarray
    agreement: float
    n_clusters: int


def consensus(
    labelings: ArrayLike | Iterable[ArrayLike], k: int | None = None, *, limit: int = LIMIT, seed: int = 0
) -> Consensus:
    """Return the consensus of M clusterings of the same N samples.

    Args:
        labelings: (M, N) integers, or a list of M labelings (NumPy, torch, lists); their numbers of clusters may
            differ; -1 = no cluster; that clustering is then ignored for that sample.
        k: number of clusters; None: cut at the longest gap of the linkage.
        limit: maximum number of samples to link; if N is larger, they are drawn with `seed`.
        seed: of the draw.

    Raises:
        ValueError: there are fewer than two clusterings, lengths differ, or k is out of range.

    >>> consensus([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]).labels
    array([0, 0, 1, 1, 1])
    """
    table = _table(labelings)  # (M, N)
    n = table.shape[1]
    if limit < 2:
        raise ValueError(f"limit={limit} must be at least 2")
    drawn = np.arange(n) if n <= limit else np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))
    if k is not None and not 1 <= k <= len(drawn):
        raise ValueError(f"k={k} must be between 1 and the {len(drawn)} samples linked")
    linked = _link(table[:, drawn], k)
    # tables cover every cluster that occurs, drawn or not
    shares = _shares(table[:, drawn], linked, table.max(axis=1))
    labels, support = np.full(n, -1), np.empty(n)
    labels[drawn] = linked  # linked samples keep the linkage's label
    step = max(1, _BLOCK // (int(linked.max()) + 1))
    for part in (slice(i, i + step) for i in range(0, n, step)):
        together = _together(table[:, part], shares)  # (step, k)
        labels[part] = np.where(labels[part] >= 0, labels[part], together.argmax(axis=1))
        support[part] = np.take_along_axis(together, labels[part, None], axis=1)[:, 0]
    return Consensus(labels, support, float(support.mean()), int(linked.max()) + 1)


def _table(labelings: Any) -> np.ndarray:
    rows = [np.asarray(x.detach().cpu() if hasattr(x, "detach") else x) for x in labelings]
    if len(rows) < 2:
        raise ValueError(f"a consensus needs at least 2 clusterings and got {len(rows)}")
    if any(r.ndim != 1 or len(r) != len(rows[0]) for r in rows) or len(rows[0]) < 2:
        raise ValueError(f"the clusterings have shapes {[r.shape for r in rows]}; they must be (N,) with one N above 1")
    table = np.empty((len(rows), len(rows[0])), dtype=np.int64)
    for to, row in zip(table, rows, strict=True):  # numbered from 0, and -1 where there is none
        to[:] = -1
        to[row >= 0] = np.unique(row[row >= 0], return_inverse=True)[1]
    return table


def _link(table: np.ndarray, k: int | None) -> np.ndarray:
    """(n,) labels numbered by first appearance: average linkage on 1 - co-association."""
    n = table.shape[1]
    apart = []  # the condensed form: row i against all later ones
    for i in range(n - 1):
        one, later = table[:, i, None], table[:, i + 1 :]
        known = (one >= 0) & (later >= 0)
        apart.append(1 - ((one == later) & known).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
    tree = linkage(np.concatenate(apart), method="average")
    if k is not None:
        label = fcluster(tree, k, criterion="maxclust")
    else:
        heights = np.r_[0.0, tree[:, 2], 1.0]  # a cut between heights j and j + 1 leaves n - j clusters
        widest = np.argmax(np.diff(heights))
        label = fcluster(tree, (heights[widest] + heights[widest + 1]) / 2, criterion="distance")
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _shares(table: np.ndarray, label: np.ndarray, highest: np.ndarray) -> list[np.ndarray]:
    """For each clustering (k, its clusters + 1): the share of a consensus cluster's members in each of its clusters."""
    shares = []
    for row, top in zip(table, highest, strict=True):
        count = np.zeros((label.max() + 1, top + 2))  # the last column stays zero
        known = row >= 0
        np.add.at(count, (label[known], row[known]), 1)
        shares.append(count / np.maximum(count.sum(axis=1, keepdims=True), 1))
    return shares


def _together(table: np.ndarray, shares: list[np.ndarray]) -> np.ndarray:
    """(n, k): mean co-association of samples with the members of each consensus cluster."""
    total = sum(share[:, row].T for share, row in zip(shares, table, strict=True))  # -1 reads the last column
    return total / np.maximum((table >= 0).sum(axis=0), 1)[:, None]
