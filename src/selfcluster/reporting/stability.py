"""How far each cluster comes back when the images are clustered again with another seed.

A cluster that another start finds again is a group in the data; one that does not was cut where the start had it
(cluster-wise stability, Hennig 2007). N images, D principal components, K clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.whitening import Whitening
from selfcluster.reporting.map import sample_rows

_MOST_ROWS = 20_000  # a sample above that
_AT_ONCE = 1_000  # clusters that are made again together; more fall into regions, so that time grows with N and not N K
_REGION_ROWS = 60_000  # of all regions together: regions are drawn until they hold so many
_FEWEST_EACH = 5  # rows a cluster: an overlap of fewer says nothing
_MOST_DIMS = 128
_ITERATIONS = 50
_RESTARTS = 5  # of k-means, the best kept; fewer where one fit is long
_QUICK = 1e9  # multiplications an iteration that all restarts together may take


def cluster_stability(reduced: np.ndarray, cluster: np.ndarray, seed: int = 1) -> dict[int, float]:
    """Return the best Jaccard overlap of each cluster with one of a k-means of another seed, at the same k.

    1: the cluster comes back whole. Rows are whitened as `selfcluster cluster` does. At most 20,000 images are used. Of
    more than 1,000 clusters, neighboring ones form regions of at most 1,000, and each region is clustered again by
    itself; regions are drawn until they hold 60,000 images.

    Args:
        reduced: (N, D) float32 principal components of the embeddings at length 1, see `Album.reduced`; rows that are
            not finite are left out.
        cluster: (N,) int64, -1 = none.
        seed: of the k-means and the draws.

    Returns:
        The overlap by the cluster's number. Empty where the clusters are fewer than 2, or so many that they have fewer
        than 5 rows each; of clusters in regions, those that were not drawn are missing.
    """
    rows = np.flatnonzero(np.isfinite(reduced).all(axis=1) & (cluster >= 0))
    numbers, own = np.unique(cluster[rows], return_inverse=True)
    if len(numbers) < 2:
        return {}
    drawn = sample_rows(len(rows), _MOST_ROWS)
    whitening = Whitening(max(1, min(_MOST_DIMS, 3 * len(numbers) // 2, reduced.shape[1], len(drawn) - 1)))
    whitening.fit(reduced[rows[drawn]])
    found: dict[int, float] = {}
    for part in [drawn] if len(numbers) <= _AT_ONCE else _regions(reduced[rows], own, seed):
        present, again = np.unique(own[part], return_inverse=True)
        if len(present) < 2 or len(part) < _FEWEST_EACH * len(present):
            continue
        x = whitening.transform(reduced[rows[part]]).astype(np.float32)
        overlaps = best_overlaps(again, _clustered_again(x, len(present), seed))
        found |= dict(zip(numbers[present].tolist(), overlaps.tolist(), strict=True))
    return found


def _clustered_again(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(N,) the clusters of the best of several k-means."""
    restarts = int(max(1, min(_RESTARTS, _QUICK / (x.size * k))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer different images than clusters
        fits = [
            KMeans(k, init="k-means++", max_iter=_ITERATIONS, random_state=seed * _RESTARTS + r).fit(x)
            for r in range(restarts)
        ]
    return np.asarray(min(fits, key=lambda fit: fit.inertia_).labels_)


def _regions(x: np.ndarray, own: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Rows of regions in random order, until they are enough. A region's clusters are whole or sampled evenly.

    Clusters 0 to K - 1 are halved along the first principal axis of their means, and the halves again.
    """
    order = np.argsort(own, kind="stable")
    sizes = np.bincount(own)
    starts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(x[order], starts) / sizes[:, None]
    halves, regions = [np.arange(len(sizes))], []
    while halves:
        part = halves.pop()
        if len(part) <= _AT_ONCE:
            regions.append(part)
            continue
        centered = means[part] - means[part].mean(axis=0)
        along = centered @ np.linalg.eigh(centered.T @ centered)[1][:, -1]
        ranked = part[np.argsort(along, kind="stable")]
        halves += [ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]]
    taken = 0
    for at in np.random.default_rng(seed).permutation(len(regions)).tolist():
        inside = np.flatnonzero(np.isin(own, regions[at]))
        inside = inside[sample_rows(len(inside), _MOST_ROWS)]
        yield inside
        taken += len(inside)
        if taken >= _REGION_ROWS:
            return


def best_overlaps(clusters: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (K,) the largest Jaccard index of each cluster 0 to K - 1 with any of the others.

    Args:
        clusters: (N,) int64, every number from 0 to K - 1 at least once.
        others: (N,) int64 >= 0, another clustering of the same images.

    >>> best_overlaps(np.array([0, 0, 0, 1]), np.array([7, 7, 2, 2])).tolist()
    [0.6666666666666666, 0.5]
    """
    sizes, other_sizes = np.bincount(clusters), np.bincount(others)
    pairs, shared = np.unique(clusters * len(other_sizes) + others, return_counts=True)
    own, other = np.divmod(pairs, len(other_sizes))
    best = np.zeros(len(sizes))
    np.maximum.at(best, own, shared / (sizes[own] + other_sizes[other] - shared))
    return best
