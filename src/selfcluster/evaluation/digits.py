"""The numbers of the demo's table."""

from __future__ import annotations

import numpy as np

from selfcluster.evaluation.clustering import cluster_vectors
from selfcluster.evaluation.protocols.clusters import clusters
from selfcluster.evaluation.protocols.knn import knn


def score_digits(
    vectors: np.ndarray, labels: np.ndarray, seed: int, within: np.ndarray | None = None
) -> dict[str, float]:
    """Return leave-one-out 20-NN accuracy of the vectors, and matching and NMI of k-means with one cluster per class.

    `within`: the vectors for k-means, in the space in which the method compares images; None: the same vectors.
    """
    assigned = cluster_vectors(vectors if within is None else within, len(np.unique(labels)), seed=seed)[0]
    numbers = clusters(assigned, labels)
    return {"knn": knn(vectors, labels)["top1"], "matching": numbers["accuracy"], "nmi": numbers["nmi_geometric"]}
