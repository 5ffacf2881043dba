"""Measures how well the clusters agree with labels that training did not use.

N images, K clusters, L classes. "NMI" means the geometric mean in DeepCluster (Caron et al. 2018, arXiv 1807.05520)
and the arithmetic mean in scikit-learn and recent papers. Both are given, under different names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from selfcluster.annotations import ArrayLike
from selfcluster.clustering import scores
from selfcluster.evaluation.clustering import cluster_vectors
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting


@dataclass(frozen=True, kw_only=True)
class ClustersSettings:
    k: int | None = setting(None, "make K new clusters with k-means; default: the run's own clusters", least=1)


class Clusters(Protocol):
    Settings = ClustersSettings
    needs = ("clusters", "features")

    def run(self, subject: Subject, settings: ClustersSettings) -> Result:
        subject.refuse_test("clusters")
        subject.check_clusters(settings.k)  # before the images are embedded
        images = subject.all_features
        if settings.k is None:
            assigned = subject.assigned(images)
        else:
            assigned = cluster_vectors(subject.projected(images.vectors), settings.k, seed=subject.seed)[0]
        numbers, notes = clusters(assigned, images.labels), ()
        if numbers["clusters"] > numbers["classes"]:
            notes = (
                "accuracy gives each class one cluster. Images in unmatched clusters count as errors.",
                f"--k {numbers['classes']} makes as many clusters as classes. purity gives each cluster its most "
                "frequent class.",
            )
        return result_of("clusters", numbers, subject, settings, notes=notes)


def clusters(assigned: ArrayLike, labels: ArrayLike | None) -> dict[str, float]:
    """Return how well a clustering agrees with the classes. Images without a cluster or a label (-1) are left out.

    Args:
        assigned: (N,) cluster of each image, whole numbers.
        labels: (N,) class of each image, whole numbers.

    Returns:
        accuracy (best one-to-one matching of clusters and classes; images of unmatched clusters count as errors),
        purity, nmi_geometric, nmi_arithmetic, ami, ari, and the counts clusters, classes and n.

    Raises:
        ValueError: the lengths differ, or no image has both a cluster and a label.

    >>> clusters([7, 7, 3, 3], [0, 0, 1, 1])["accuracy"]
    1.0
    """
    assigned, labels = _numbers(assigned, "clusters"), _numbers(labels, "labels")
    if len(assigned) != len(labels):
        raise ValueError(f"{len(assigned)} clusters and {len(labels)} labels: give each image one of each, -1 = none")
    both = (assigned != -1) & (labels != -1)
    if not both.any():
        raise ValueError(f"none of the {len(labels)} images has both a cluster and a label")
    assigned, labels = assigned[both], labels[both]
    return {
        "accuracy": scores.matching_accuracy(labels, assigned),
        "purity": scores.purity(labels, assigned),
        "nmi_geometric": scores.nmi(labels, assigned, average="geometric"),
        "nmi_arithmetic": scores.nmi(labels, assigned, average="arithmetic"),
        "ami": scores.ami(labels, assigned),
        "ari": scores.ari(labels, assigned),
        "clusters": len(np.unique(assigned)),
        "classes": len(np.unique(labels)),
        "n": len(labels),
    }


def _numbers(x: ArrayLike | None, what: str) -> np.ndarray:
    x = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
    if x.ndim != 1 or x.dtype.kind not in "iu":
        raise ValueError(f"{what} are {x.dtype} of shape {x.shape}; whole numbers (N,) are needed, -1 = none")
    return x
