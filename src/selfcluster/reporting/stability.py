"""How far each cluster comes back when the images are clustered again with another seed.

A cluster that another start finds again is a group in the data; one that does not was cut where the start had it
(cluster-wise stability, Hennig 2007). N images, F features, K clusters.
"""

from __future__ import annotations

import warnings

import numpy as np

from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.whitening import Whitening

MOST_ROWS = 20_000  # a sample above that
_MOST_CLUSTERS = 1_000  # more take too long for a page
_FEWEST_EACH = 5  # rows a cluster: an overlap of fewer says nothing
_MOST_DIMS = 128
_ITERATIONS = 50
_RESTARTS = 5  # of k-means, the best kept; fewer where one fit is long
_QUICK = 1e9  # multiplications an iteration that all restarts together may take


def cluster_stability(vectors: np.ndarray, cluster: np.ndarray, seed: int = 1) -> dict[int, float]:
    """Return the best Jaccard overlap of each cluster with one of a k-means of another seed, at the same k.

    1: the cluster comes back whole. Rows are scaled to length 1 and whitened as `selfcluster cluster` does.

    Args:
        vectors: (N, F) float32; rows that are not finite are left out.
        cluster: (N,) int64, -1 = none.
        seed: of the k-means.

    Returns:
        The overlap by the cluster's number. Empty where the clusters are fewer than 2, more than 1,000, or so many
        that they have fewer than 5 rows each.
    """
    rows = np.isfinite(vectors).all(axis=1) & (cluster >= 0)
    x, own = vectors[rows].astype(np.float32), cluster[rows]
    numbers, own = np.unique(own, return_inverse=True)
    k = len(numbers)
    if not 2 <= k <= _MOST_CLUSTERS or len(x) < _FEWEST_EACH * k:
        return {}
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    x = Whitening(max(1, min(_MOST_DIMS, 3 * k // 2, x.shape[1], len(x) - 1))).fit_transform(x).astype(np.float32)
    restarts = int(max(1, min(_RESTARTS, _QUICK / (x.size * k))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer different images than clusters
        fits = [
            KMeans(k, init="k-means++", max_iter=_ITERATIONS, random_state=seed * _RESTARTS + r).fit(x)
            for r in range(restarts)
        ]
    again = np.asarray(min(fits, key=lambda fit: fit.inertia_).labels_)
    return dict(zip(numbers.tolist(), best_overlaps(own, again).tolist(), strict=True))


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
