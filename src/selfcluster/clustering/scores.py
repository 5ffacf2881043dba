"""Measure the quality, balance and stability of a clustering, and how many dimensions features use.

Labels are (N,) integers (NumPy, torch or a list); a sample labeled -1 in either of two labelings is left out.
Measures that scikit-learn or SciPy has are computed by them. Entropies are in nats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn import metrics
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from selfcluster.annotations import ArrayLike

_AVERAGES = ("geometric", "arithmetic", "min", "max")


def nmi(a: ArrayLike, b: ArrayLike, average: str = "geometric") -> float:
    """Normalized mutual information I(A; B) / mean(H(A), H(B)), in [0, 1].

    Args:
        a, b: (N,) labelings; order and names of the clusters do not matter.
        average: the mean of the two entropies: "geometric" (DeepCluster's paper), "arithmetic" (scikit-learn's
            default), "min" or "max". State it beside the number.

    >>> nmi([0, 0, 1, 1], [5, 5, 2, 2])
    1.0
    """
    if average not in _AVERAGES:
        raise ValueError(f"average={average!r} must be one of {', '.join(_AVERAGES)}")
    a, b = _pair(a, b)
    return float(metrics.normalized_mutual_info_score(a, b, average_method=average))  # pyright: ignore[reportArgumentType]


def ami(a: ArrayLike, b: ArrayLike, average: str = "arithmetic") -> float:
    """Mutual information adjusted for chance: 0 in expectation for independent labelings, 1 for equal ones.

    >>> ami([0, 0, 1, 1], [5, 5, 2, 2])
    1.0
    """
    if average not in _AVERAGES:
        raise ValueError(f"average={average!r} must be one of {', '.join(_AVERAGES)}")
    a, b = _pair(a, b)
    return float(metrics.adjusted_mutual_info_score(a, b, average_method=average))  # pyright: ignore[reportArgumentType]


def ari(a: ArrayLike, b: ArrayLike) -> float:
    """Rand index adjusted for chance: 0 in expectation for independent labelings, 1 for equal ones.

    >>> ari([0, 0, 1, 1], [5, 5, 2, 2])
    1.0
    """
    return float(metrics.adjusted_rand_score(*_pair(a, b)))


def matching_accuracy(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of samples whose cluster is matched to their label, by the best one-to-one matching (Hungarian).

    If there are more clusters than labels, images of unmatched clusters count as wrong.

    >>> matching_accuracy([0, 0, 1, 1], [1, 1, 0, 2])
    0.75
    """
    table = contingency_matrix(*_pair(labels, clusters))
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def purity(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of samples with their cluster's most frequent label. It rises with the number of clusters: 1 at N.

    >>> purity([0, 0, 1, 1], [0, 0, 0, 1])
    0.75
    """
    table = contingency_matrix(*_pair(labels, clusters))
    return float(table.max(axis=0).sum() / table.sum())


def entropy(clusters: ArrayLike) -> float:
    """Entropy of the cluster sizes in nats: ln K if all K are equal, 0 if one has all samples.

    >>> entropy([0, 0, 0])
    0.0
    """
    clusters = _labels(clusters)
    counts = np.unique(clusters[clusters >= 0], return_counts=True)[1]
    p = counts / max(1, counts.sum())
    return float(max(0.0, -(p * np.log(p)).sum()))


def effective_clusters(clusters: ArrayLike) -> float:
    """exp(entropy): the number of equal clusters with the same entropy. A value far below K is a sign of collapse.

    >>> round(effective_clusters([0, 0, 1, 1]), 6)
    2.0
    """
    return float(np.exp(entropy(clusters)))


def silhouette(
    X: ArrayLike, clusters: ArrayLike, *, sample: int = 2000, metric: str = "euclidean", seed: int = 0
) -> float:
    """Mean silhouette of a seeded sample, in [-1, 1]: how much nearer a sample is to its own cluster than to the next.

    Args:
        X: (N, D) features, NumPy, torch or memory-mapped; only the sampled rows are read.
        clusters: (N,) labels.
        sample: rows drawn without replacement; the cost is sample^2 distances.
        metric: any of scikit-learn's, e.g. "euclidean" or "cosine".
        seed: of the draw.

    Returns:
        The score, or NaN where it is not defined: fewer than two clusters, or only clusters of one, in the sample.

    >>> round(silhouette([[0.0], [0.1], [9.0], [9.1]], [0, 0, 1, 1]), 2)
    0.99
    """
    clusters = _labels(clusters)
    rows = _sample(np.flatnonzero(clusters >= 0), sample, seed)
    found = np.unique(clusters[rows])
    if not 2 <= len(found) < len(rows):
        return float("nan")
    return float(metrics.silhouette_score(_features(X, rows), clusters[rows], metric=metric))


def rankme(features: np.ndarray | Tensor, *, sample: int = 25_600, eps: float = 1e-7, seed: int = 0) -> float:
    """RankMe: the exponential of the entropy of the normalized singular values, a smooth rank in [1, D].

    Garrido et al. 2023, arXiv 2210.02885, eq. 1: p_k = s_k / sum(s) + eps. Features are not centered.

    Args:
        features: (N, D).
        sample: if N is larger, use this many rows, drawn by a seed without replacement; the paper's 25,600.
        eps: the paper's 1e-7.

    >>> round(rankme(np.eye(4)), 3)
    4.0
    """
    X = _features(features, _sample(np.arange(len(features)), sample, seed))
    s = np.linalg.svd(X, compute_uv=False)
    if not s.sum() > 0:
        return 1.0
    p = s / s.sum() + eps
    return float(np.exp(-(p * np.log(p)).sum()))


def successive_nmi(previous: ArrayLike, current: ArrayLike) -> float:
    """Geometric NMI of two successive assignments: 1 = the clusters no longer change (DeepCluster's stability curve).

    NaN if no sample has a cluster in both.

    >>> successive_nmi([0, 0, 1, -1], [3, 3, 1, 1])
    1.0
    """
    both = (_labels(previous) >= 0) & (_labels(current) >= 0)
    return nmi(previous, current) if both.any() else float("nan")


def label_switch_ratio(previous: ArrayLike, current: ArrayLike) -> float:
    """Share of samples whose label changed. Labels must keep their meaning (ODC's change ratio).

    NaN if no sample has a cluster in both.

    >>> label_switch_ratio([0, 0, 1, -1], [0, 2, 1, 1]) == 1 / 3
    True
    """
    previous, current = _labels(previous), _labels(current)
    both = (previous >= 0) & (current >= 0)
    return float((previous != current)[both].mean()) if both.any() else float("nan")


def _labels(labels: Any) -> np.ndarray:
    labels = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}; they must be (samples,)")
    return labels


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _labels(a), _labels(b)
    if len(a) != len(b):
        raise ValueError(f"the labelings have {len(a)} and {len(b)} samples; they must be of the same samples in order")
    both = (a >= 0) & (b >= 0)
    if not both.any():
        raise ValueError("no sample has a label in both labelings (-1 = none)")
    return a[both], b[both]


def _sample(candidates: np.ndarray, size: int, seed: int) -> np.ndarray:
    if len(candidates) <= size:
        return candidates
    return np.sort(np.random.default_rng(seed).choice(candidates, size, replace=False))


def _features(X: Any, rows: np.ndarray) -> np.ndarray:
    """The rows as float64; of a memory-mapped array or a tensor only these are read."""
    if hasattr(X, "detach"):
        return X.detach()[rows].double().cpu().numpy()
    X = X if isinstance(X, np.ndarray) else np.asarray(X)
    return np.asarray(X[rows], dtype=np.float64)
