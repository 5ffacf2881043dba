"""Clusters of a table of embeddings by the algorithm asked for.

Embeddings are scaled to length one, projected to their leading principal components, whitened and scaled again, as
DeepCluster does before its k-means (Caron et al. 2018, arXiv 1807.05520, section 4.1). Departs: the paper keeps 256
components. The means of k clusters span k - 1 dimensions, and many more components only add noise: 3 k / 2 are kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from selfcluster.clustering.hierarchical import HierarchicalKMeans
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.pic import PowerIterationClustering
from selfcluster.clustering.selection import choose_k
from selfcluster.clustering.whitening import Whitening
from selfcluster.waiting import map_on_single_threads

ALGORITHMS = ("kmeans", "hierarchical", "pic", "hdbscan")
_FIND_K = ("pic", "hdbscan")  # these find the number of clusters themselves
_DENSITY_DIMS = 32  # hdbscan compares densities, which mean little in many dimensions
_WIDE = 256  # rows of at least so many dimensions are a network's features; narrower ones are a method's projection
_CHOICE_DIMS = 16
_MOST = 256  # components, the paper's number
_RESTARTS = 40  # restarts of k-means; the best is kept. Fewer if one fit takes long
_QUICK = 2e9  # most multiplications per iteration, over all restarts


def cluster_vectors(
    vectors: np.ndarray,
    k: int | str | None,
    algorithm: str = "kmeans",
    seed: int = 0,
    whiten: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    *,
    overwrite: bool = False,
) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Return clusters (n,) of embeddings (n, F), each image's distance (n,) to its cluster's mean, and the choice of k.

    Images that hdbscan puts in no cluster have cluster -1 and the distance to the nearest cluster's mean.

    Args:
        vectors: (n, F) float32, one row per image.
        k: how many clusters; "auto" recommends a number; None is the square root of 2 n. pic and hdbscan find
            their own.
        algorithm: kmeans, hierarchical, pic or hdbscan.
        seed: of the clustering.
        whiten: principal components to keep and whiten; None: 3 k / 2 (pic: n / 4; hdbscan: n / 20, at most 32), at
            most 256; 0: none, the rows as they are.
        say: called with lines of progress and with the recommendation.
        overwrite: scale `vectors` in place, which saves a copy of them.

    Raises:
        ValueError: the algorithm is unknown, or k is not between 1 and n.
    """
    check_algorithm(algorithm, k, whiten)
    n, width = vectors.shape
    x = _unit_rows(vectors, overwrite)
    facts: dict[str, Any] = {}
    if k == "auto":
        chosen = choose_k(_for_choice(x), seed=seed, say=say)
        facts = {"k": chosen.k, "k_low": chosen.low, "k_high": chosen.high}
        say(f"k = {chosen.k} is recommended; anything from {chosen.low} to {chosen.high} fits the data about as well")
        k = chosen.k
    number = int(k if k is not None else round((2 * n) ** 0.5))
    check_k(number, n)
    # pic: with nearly as many axes as rows all rows are equally far apart, and no row joins another
    usual = {"pic": n // 4, "hdbscan": min(_DENSITY_DIMS, n // 20)}.get(algorithm, 3 * number // 2)
    default = max(2, min(_MOST, usual))
    kept = min(default if whiten is None else whiten, width, n - 1)
    rows: Any = Whitening(kept).fit_transform(x) if kept > 0 else x
    with warnings.catch_warnings(record=True) as caught:  # every restart gives the same warning
        warnings.simplefilter("always")
        labels = _fit(rows, number, algorithm, seed)
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        say(message)
    if algorithm == "hierarchical" and (made := len(np.unique(labels))) != number:
        say(f"hierarchical made {made} clusters, not {number}: each of its parts gets the same number")
    return labels, _distances(x, labels), facts


def _blocks(n: int) -> list[slice]:
    """Parts of n rows; working on one at a time bounds the memory of copies."""
    return [slice(start, start + 4096) for start in range(0, n, 4096)]


def _unit_rows(vectors: np.ndarray, overwrite: bool) -> np.ndarray:
    x = vectors if overwrite and vectors.flags.writeable else np.empty_like(vectors)
    for block in _blocks(len(x)):
        lengths = np.linalg.norm(vectors[block], axis=1, keepdims=True)
        np.divide(vectors[block], np.maximum(lengths, 1e-12), out=x[block])
    return x


def _for_choice(x: np.ndarray) -> np.ndarray:
    """Return the rows for choosing the number of clusters: wide features are reduced to 16 whitened axes.

    Without whitening, a few axes with large variance (background, brightness) decide. EfficientNet-Lite0's features of
    CIFAR-10 (10 classes) then give k = 2, those of photographs of clothes (20 classes) k = 6. With 16 whitened axes
    they give 14 and 20.
    """
    if x.shape[1] < _WIDE or len(x) <= _CHOICE_DIMS:
        return x
    return np.asarray(Whitening(_CHOICE_DIMS).fit_transform(x))


def check_algorithm(algorithm: str, k: int | str | None, whiten: int | None) -> None:
    """Raise ValueError if the algorithm is unknown or does not take these settings."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"--algorithm {algorithm}: choose from {', '.join(ALGORITHMS)}")
    if algorithm in _FIND_K and k is not None:
        raise ValueError(f"--k {k}: {algorithm} finds the number of clusters itself; leave --k out")
    if whiten is not None and whiten < 0:
        raise ValueError(f"--whiten {whiten}: must be 0 or more")


def check_k(k: int, n: int) -> None:
    """Raise ValueError unless n images can be put into k clusters."""
    if not 1 <= k <= n:
        raise ValueError(f"--k {k}: must be from 1 to {n}, the number of images")


def _fit(rows: np.ndarray, k: int, algorithm: str, seed: int) -> np.ndarray:
    found: Any
    if algorithm == "pic":
        found = PowerIterationClustering().fit(rows)
    elif algorithm == "hdbscan":
        from sklearn.cluster import HDBSCAN

        smallest = int(max(5, min(50, round(len(rows) ** 0.5 / 3))))
        copied: Any = True  # scikit-learn's annotation says str
        found = HDBSCAN(min_cluster_size=smallest, min_samples=5, copy=copied).fit(rows)
    elif algorithm == "hierarchical":
        parts = max(1, round(k**0.5))
        found = HierarchicalKMeans(parts, -(-k // parts), random_state=seed).fit(rows)
    else:
        restarts = int(max(1, min(_RESTARTS, _QUICK / (rows.size * k))))
        fits = map_on_single_threads(
            lambda r: KMeans(k, init="k-means++", max_iter=100, random_state=seed * _RESTARTS + r).fit(rows),
            range(restarts),
        )
        found = min(fits, key=lambda fit: fit.inertia_)
    return found.labels_


def _distances(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each row's distance to the mean of its cluster, or to the nearest mean if it has no cluster (label -1)."""
    inside = labels >= 0
    if not inside.any():
        return np.zeros(len(x), np.float32)
    known = np.full(len(x), -1)
    known[inside] = np.unique(labels[inside], return_inverse=True)[1]
    sums = np.zeros((known.max() + 1, x.shape[1]))
    for block in _blocks(len(x)):
        np.add.at(sums, known[block][inside[block]], x[block][inside[block]])
    means = (sums / np.bincount(known[inside])[:, None]).astype(x.dtype)
    distances = np.empty(len(x), np.float32)
    for block in _blocks(len(x)):
        of, mine, rows = known[block], x[block], distances[block]
        rows[of >= 0] = np.linalg.norm(mine[of >= 0] - means[of[of >= 0]], axis=1)
        other = mine[of < 0]
        if len(other):
            squares = (other**2).sum(axis=1)[:, None] - 2 * other @ means.T + (means**2).sum(axis=1)
            rows[of < 0] = np.sqrt(np.maximum(squares.min(axis=1), 0))
    return distances
