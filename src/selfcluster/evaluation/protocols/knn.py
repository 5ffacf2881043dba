"""Weighted nearest neighbors on frozen features: nothing is trained, so nothing can be tuned.

Wu et al. 2018, arXiv 1805.01978, section 3.4, with the settings of Caron et al. 2021, arXiv 2104.14294: features of
unit length, k = 20 neighbors, each votes for its class with exp(cosine / 0.07).
Departs: nothing; among classes with equal votes the lowest label wins.

N training images, M test images, F features, L classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from selfcluster.clustering.neighbors import nearest
from selfcluster.distributed import world_size
from selfcluster.evaluation.labeled import labeled, positions, same_width, top
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting


@dataclass(frozen=True, kw_only=True)
class KNNSettings:
    k: int = setting(20, "neighbors that vote", least=1)
    temperature: float = setting(0.07, "the smaller, the more the nearest neighbors decide", least=1e-4)


class KNN(Protocol):
    Settings = KNNSettings

    def run(self, subject: Subject, settings: KNNSettings) -> Result:
        train, test = subject.parts
        numbers = knn(
            train.vectors, train.labels, test.vectors, test.labels, k=settings.k, temperature=settings.temperature
        )
        return result_of("knn", numbers, subject, settings)


def knn(
    train_features: Any,
    train_labels: Any,
    test_features: Any = None,
    test_labels: Any = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, float]:
    """Accuracy of the weighted vote of the k nearest training images.

    Args:
        train_features: (N, F), NumPy or torch.
        train_labels: (N,) whole numbers; images labeled -1 take no part.
        test_features, test_labels: (M, F) and (M,); without them every training image is judged by all the others
            (leave one out).
        k: neighbors; where there are fewer training images, all of them. The number used is in the result.
        temperature: the smaller, the more the nearest decide.

    Returns:
        top1, top5 (only with more than 5 classes), k, classes, n_train, n_test; accuracies in [0, 1].

    Raises:
        ValueError: no labels, one class only, features that are not finite or of different widths, k < 1.
        RuntimeError: more than one process.

    >>> knn([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[2.0, 1.0]], [0], k=1)["top1"]
    1.0
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k={k} and temperature={temperature}: k must be at least 1 and temperature above 0")
    x, y = labeled(train_features, train_labels, "train")
    if world_size() > 1:
        raise RuntimeError("k-NN takes all images of one process: evaluate without torchrun")
    leave_one_out = test_features is None
    queries, wanted = (x, y) if leave_one_out else labeled(test_features, test_labels, "test")
    same_width(x, queries)
    classes = y.unique()
    if len(classes) < 2:
        raise ValueError(f"train has the one label {int(classes[0])}: there is nothing to tell apart")
    k = min(k, len(x) - leave_one_out)
    x, queries = F.normalize(x, dim=1), F.normalize(queries, dim=1)
    cosines, neighbors = nearest(queries, x, k, metric="inner_product", exclude_self=leave_one_out)  # (M, k) each
    votes = vote(cosines, positions(classes, y)[neighbors], len(classes), temperature)  # (M, L)
    wanted = positions(classes, wanted)
    result = {"top1": top(votes, wanted, 1)}
    if len(classes) > 5:
        result["top5"] = top(votes, wanted, 5)
    return result | {"k": k, "classes": len(classes), "n_train": len(x), "n_test": len(queries)}


def vote(cosines: Tensor, classes: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Cosines and classes of the neighbors (M, k) to the weight of each class (M, L), up to a common factor."""
    # the common factor keeps small temperatures from overflowing, and the nearest from vanishing
    weights = ((cosines - cosines.amax(dim=1, keepdim=True)) / temperature).exp()
    return weights.new_zeros(len(cosines), num_classes).scatter_add_(1, classes, weights)
