"""A linear support vector machine for each class against all others, as VISSL and OpenSelfSup fit them on VOC07.

Goyal et al. 2019, arXiv 1905.01235, appendix; the released `svm_utils`: scikit-learn's LinearSVC with squared hinge,
the positive images weighted twice, on features of unit length in float64.
Departs: scikit-learn's Newton solver of the primal problem. The released code takes its coordinate descent on the dual
problem, for at most 2,000 iterations. Both have one minimum. At high costs, where the classes do not separate, the
released solver stops before it.

N training images, M test images, F features, L classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selfcluster.annotations import ArrayLike
from selfcluster.evaluation.labeled import labeled, same_width, with_tags

_POWERS = tuple(0.5**power for power in range(4, 20))
COSTS = {
    "vissl": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0, *_POWERS),
    "openselfsup": (1.0, 10.0, 100.0, *_POWERS),
}
_MACHINE: dict[str, Any] = {
    "penalty": "l2", "loss": "squared_hinge", "dual": False, "tol": 1e-4, "intercept_scaling": 1.0,
    "class_weight": {1: 2, -1: 1}, "max_iter": 2000,
}  # fmt: skip


def parse_costs(text: str) -> tuple[float, ...]:
    """Return the costs of a named list, or of numbers joined by commas; raise ValueError for anything else.

    >>> parse_costs("0.5, 10")
    (0.5, 10.0)
    """
    if text in COSTS:
        return COSTS[text]
    try:
        costs = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        costs = ()
    if not costs or not all(0 < cost < math.inf for cost in costs):
        raise ValueError(f"--costs {text}: give {', '.join(COSTS)}, or numbers above 0, such as --costs 0.1,1,10")
    return costs


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Return x / (|x| + 1e-5) of each row in float64, as in the released code; the 1e-5 keeps a row of zeros finite."""
    x = np.asarray(features, np.float64)
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)


def prepared(
    train_features: ArrayLike, train_labels: ArrayLike | None, test_features: ArrayLike, test_labels: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return unit rows and labels of train and test: (N, F), (N, L), (M, F), (M, L) of 1, 0 and -1.

    Single labels become one column per class; images labeled -1 are left out. Classes that only test has become columns
    of zeros in the labels of train.

    Raises:
        ValueError: there are no labels or only one class, features are not finite or differ in width, or one part has
            single labels and the other several.
    """
    several = [np.ndim(labels) == 2 for labels in (train_labels, test_labels) if labels is not None]
    if len(set(several)) > 1:
        raise ValueError("train and test differ: one has several labels per image, the other one label per image")
    read = with_tags if several and several[0] else labeled
    x, y = read(train_features, train_labels, "train")
    queries, wanted = read(test_features, test_labels, "test")
    same_width(x, queries)
    if read is labeled:
        classes = len(y.unique())
        width = max(int(y.max()), int(wanted.max())) + 1
        y, wanted = (np.eye(width, dtype=np.int64)[part.cpu().numpy()] for part in (y, wanted))
    else:
        y, wanted = y.cpu().numpy(), wanted.cpu().numpy()
        width = max(y.shape[1], wanted.shape[1])
        y, wanted = (np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (y, wanted))
        classes = int((y > 0).any(axis=0).sum())
        if not classes:
            raise ValueError(f"train: none of the {len(y)} images has a label")
        if not (wanted > 0).any():
            raise ValueError(f"test: none of the {len(wanted)} images has a label")
    if width < 2 or (read is labeled and classes < 2):
        raise ValueError(f"train has {classes} class: a classifier needs at least two")
    return unit_rows(x.cpu().numpy()), y, unit_rows(queries.cpu().numpy()), wanted


def machine_scores(x: np.ndarray, positive: np.ndarray, cost: float, queries: np.ndarray) -> np.ndarray:
    """Return (M,) scores of queries (M, F) by a machine fitted to x (N, F) with positive (N,) bool.

    If all images are positive, or none is, nothing can be fitted and every score is 0.
    """
    if positive.all() or not positive.any():
        return np.zeros(len(queries))
    from sklearn.svm import LinearSVC

    machine = LinearSVC(C=cost, **_MACHINE).fit(x, np.where(positive, 1, -1))
    return machine.decision_function(queries)


def top1(scores: np.ndarray, labels: np.ndarray, known: np.ndarray) -> float:
    """Return the share of images whose label has the best score among the known classes.

    Args:
        scores, labels: (M, L); one 1 in each row of labels.
        known: (L,) bool, the classes that train has. An image of another class counts as an error.
    """
    best = np.where(known, scores, -np.inf).argmax(axis=1)
    return float((labels[np.arange(len(labels)), best] > 0).mean())


def is_single(labels: ArrayLike | None) -> bool:
    """Return whether the images have one label each."""
    return labels is not None and np.ndim(labels) == 1


def class_name(names: list[str] | None, number: int) -> str:
    """Return the name of a class, or its number if there are no names."""
    return names[number] if names is not None and number < len(names) else str(number)
