"""Clusters of a table of embeddings by the algorithm asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from selfcluster.clustering.hierarchical import HierarchicalKMeans
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.pic import PowerIterationClustering
from selfcluster.clustering.selection import choose_k

ALGORITHMS = ("kmeans", "hierarchical", "pic")


def cluster_vectors(
    vectors: np.ndarray, k: int | str | None, algorithm: str, seed: int, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Clusters (n,) and distances to their means (n,) of unit-length embeddings, and what was recommended.

    `k` is a number or "auto"; pic finds its own. Raises ValueError for what cannot be.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"--algorithm {algorithm}: choose from {', '.join(ALGORITHMS)}")
    x = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    facts: dict[str, Any] = {}
    if algorithm == "pic":
        if k is not None:
            raise ValueError(f"--k {k}: pic finds the number of clusters itself")
        labels = PowerIterationClustering().fit_predict(x)
        return labels, _distances(x, labels), facts
    if k == "auto":
        chosen = choose_k(x, seed=seed)
        facts = {"k": chosen.k, "k_low": chosen.low, "k_high": chosen.high}
        say(f"k = {chosen.k} is recommended; anything from {chosen.low} to {chosen.high} fits the data about as well")
        k = chosen.k
    number = int(k if k is not None else round((2 * len(x)) ** 0.5))
    if not 1 <= number <= len(x):
        raise ValueError(f"--k {number}: must be 1 to the number of images, {len(x)}")
    if algorithm == "kmeans":
        labels: Any = KMeans(number, init="k-means++", random_state=seed).fit(x).labels_
    else:
        parts = max(1, round(number**0.5))
        labels = HierarchicalKMeans(parts, -(-number // parts), random_state=seed).fit(x).labels_
    return labels, _distances(x, labels), facts


def _distances(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    known = np.unique(labels, return_inverse=True)[1]
    sums = np.zeros((known.max() + 1, x.shape[1]))
    np.add.at(sums, known, x)
    means = sums / np.bincount(known)[:, None]
    return np.linalg.norm(x - means[known], axis=1).astype(np.float32)
