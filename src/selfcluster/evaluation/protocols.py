"""The protocols by name, over what `embed` gives: a seeded split, labels of two sets brought to one numbering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from selfcluster.evaluation.clustering import cluster_vectors
from selfcluster.evaluation.clusters import clusters
from selfcluster.evaluation.knn import knn
from selfcluster.evaluation.linear import linear
from selfcluster.runs.tables import CLUSTERS, read_clusters

PROTOCOLS = ("knn", "linear", "clusters")


def held_out(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows kept and rows held out, both sorted; at least one of each."""
    order = np.random.default_rng(seed).permutation(n)
    held = min(n - 1, max(1, round(n * share)))
    return np.sort(order[held:]), np.sort(order[:held])


def aligned(first: dict[str, Any], second: dict[str, Any]) -> np.ndarray:
    """The second set's labels in the first's numbering, by the names of the classes; raises ValueError where a class
    of the second is not in the first."""
    missing = sorted(set(second["class_names"]) - set(first["class_names"]))
    if missing:
        raise ValueError(f"the test images have classes that the training images have not: {', '.join(missing[:5])}")
    place = np.array([first["class_names"].index(name) for name in second["class_names"]])
    return np.where(second["labels"] >= 0, place[second["labels"]], -1)


def score(
    protocol: str, x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, k: int | None
) -> dict[str, Any]:
    """knn or linear: trained on (x, y), scored on the test rows."""
    if protocol == "knn":
        return knn(x, y, test_x, test_y, k=20 if k is None else k)
    return linear(x, y, test_x, test_y)


def score_clusters(run: Path, embedded: dict[str, Any], k: int | None, seed: int) -> dict[str, Any]:
    """The run's clusters, or k-means' with `k`, against the labels of the embedded images."""
    if k is not None:
        found = cluster_vectors(embedded["vectors"], k, seed=seed)[0]
        return clusters(found, embedded["labels"])
    if not (run / CLUSTERS).exists():
        raise ValueError(f"{run} has no clusters of its own: say with --k how many k-means is to make")
    table = read_clusters(run / CLUSTERS)
    of = dict(zip(table.ids, table.clusters.tolist(), strict=True))
    missing = [name for name in embedded["ids"] if name not in of]
    if missing:
        raise ValueError(f"{run / CLUSTERS} has no cluster for {missing[0]} ({len(missing)} images): other data?")
    return clusters(np.array([of[name] for name in embedded["ids"]]), embedded["labels"])


def score_digits(
    vectors: np.ndarray, labels: np.ndarray, seed: int, within: np.ndarray | None = None
) -> dict[str, float]:
    """The demo's numbers: 20-NN of the vectors leaving one out, and k-means with one cluster a class, of the rows
    `within`, the vectors as their method compares them."""
    found = cluster_vectors(vectors if within is None else within, len(np.unique(labels)), seed=seed)[0]
    numbers = clusters(found, labels)
    return {"knn": knn(vectors, labels)["top1"], "matching": numbers["accuracy"], "nmi": numbers["nmi_geometric"]}
