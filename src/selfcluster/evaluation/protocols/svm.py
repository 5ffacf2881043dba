"""Trains a linear support vector machine for each class on frozen features: mean average precision.

The VOC07 protocol of Goyal et al. 2019 (arXiv 1905.01235) and of OpenSelfSup (Zhan et al. 2020, arXiv 2006.10645):
each class gets the cost with the best mean average precision in three folds of the training images. Then its machine
is fitted to all training images. `--choose test` chooses each class's cost on the test images instead.
As published, an image that does not count for a class (-1, such as VOC's difficult objects) is a negative image in
training, and is left out of the test.
Departs: the images are the network's center crops; the papers resize them to 224 x 224 pixels and change the aspect
ratio. A class with fewer than three positive or negative training images gets the cost that is most frequent among
the other classes.

N training images, M test images, F features, L classes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from selfcluster.annotations import ArrayLike
from selfcluster.evaluation.average_precision import average_precision, class_precisions, mean_precision
from selfcluster.evaluation.one_vs_rest import class_name, is_single, machine_scores, parse_costs, prepared, top1
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting


@dataclass(frozen=True, kw_only=True)
class SVMSettings:
    costs: str = setting("vissl", "vissl (27 costs), openselfsup (19), or numbers separated by commas")
    choose: Literal["cross_validation", "test"] = setting(
        "cross_validation",
        "how the cost of each class is chosen: by cross-validation on the training images, or on the test images, "
        "which makes the scores too high",
    )
    folds: int = setting(3, "number of folds of the cross-validation", least=2, most=20)


class SVM(Protocol):
    Settings = SVMSettings
    labels = "any"

    def run(self, subject: Subject, settings: SVMSettings) -> Result:
        costs = parse_costs(settings.costs)
        train, test = subject.parts
        numbers, rows, notes = svm(
            train.vectors, train.labels, test.vectors, test.labels, costs=costs, choose=settings.choose,
            folds=settings.folds, class_names=test.class_names,
        )  # fmt: skip
        return result_of("svm", numbers, subject, settings, table=rows, notes=notes)


def svm(
    train_features: ArrayLike,
    train_labels: ArrayLike | None,
    test_features: ArrayLike,
    test_labels: ArrayLike | None,
    *,
    costs: tuple[float, ...],
    choose: str = "cross_validation",
    folds: int = 3,
    class_names: list[str] | None = None,
) -> tuple[dict[str, float], tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Return the numbers, a row per class, and notes.

    Args:
        train_features, train_labels: (N, F) and (N,), -1 = unlabeled; or (N, L) of 1, 0 and -1.
        test_features, test_labels: (M, F) and (M,) or (M, L).
        costs: to choose from.
        choose: cross_validation or test.
        folds: of the cross-validation, stratified, in the order of the images.
        class_names: for the rows and notes.

    Returns:
        numbers: map (the form `area` of average precision), map_11_point, top1 (single labels only), classes
        (those with a test image), n_train, n_test.

    Raises:
        ValueError: as `prepared` raises.
    """
    x, y, queries, wanted = prepared(train_features, train_labels, test_features, test_labels)
    scores = np.zeros(wanted.shape)
    chosen: dict[int, float] = {}
    few: list[int] = []
    positives = y > 0  # (N, L); -1 trains as a negative image
    for c in range(y.shape[1]):
        smaller = min(positives[:, c].sum(), (~positives[:, c]).sum())
        if not smaller:
            continue
        if len(costs) == 1:
            chosen[c] = costs[0]
        elif choose == "test":
            tried = [machine_scores(x, positives[:, c], cost, queries) for cost in costs]
            chosen[c] = costs[_best([average_precision(part, wanted[:, c]) for part in tried])]
        elif smaller < folds:
            few.append(c)
        else:
            chosen[c] = costs[_best([_validated(x, positives[:, c], cost, folds) for cost in costs])]
    usual = Counter(chosen.values()).most_common(1)[0][0] if chosen else 1.0
    chosen |= dict.fromkeys(few, usual)
    for c, cost in chosen.items():
        scores[:, c] = machine_scores(x, positives[:, c], cost, queries)
    area, eleven = class_precisions(scores, wanted), class_precisions(scores, wanted, "eleven")
    numbers: dict[str, float] = {"map": mean_precision(area), "map_11_point": mean_precision(eleven)}
    if is_single(train_labels):
        numbers["top1"] = top1(scores, wanted, np.any(positives, axis=0))
    numbers |= {"classes": int((~np.isnan(area)).sum()), "n_train": len(x), "n_test": len(queries)}
    rows = tuple(
        {
            "class": class_name(class_names, c),
            "train": int(positives[:, c].sum()),
            "test": int((wanted[:, c] > 0).sum()),
        }
        | {"average_precision": float(area[c]), "cost": chosen.get(c)}
        for c in range(y.shape[1])
    )
    return numbers, rows, _notes(rows, [rows[c]["class"] for c in few], usual, folds, choose, bool((y < 0).any()))


def _best(precisions: list[float]) -> int:
    """Return the position of the first best value; 0 if all are NaN."""
    return int(np.argmax([-1.0 if np.isnan(value) else value for value in precisions]))


def _validated(x: np.ndarray, positive: np.ndarray, cost: float, folds: int) -> float:
    from sklearn.model_selection import StratifiedKFold

    found = []
    for kept, held in StratifiedKFold(folds).split(x, positive):
        part = machine_scores(x[kept], positive[kept], cost, x[held])
        found.append(average_precision(part, positive[held].astype(np.int64), "steps"))
    return float(np.mean(found))


def _notes(
    rows: tuple[dict[str, Any], ...], few: list[str], usual: float, folds: int, choose: str, ignored: bool
) -> tuple[str, ...]:
    notes = []
    if choose == "test":
        notes.append("The costs were chosen on the test images, which makes the result too good.")
    if few:
        names = ", ".join(few)
        notes.append(
            f"Fewer than {folds} positive or negative training images for {names}: the usual cost {usual:g} was used."
        )
    lacking = [row["class"] for row in rows if row["cost"] is None and row["test"]]
    if lacking:
        notes.append(
            f"No positive or no negative training images for {', '.join(lacking)}: their score is at chance level."
        )
    if ignored:
        notes.append(
            "Images whose label for a class is -1 were negative examples in training, as in the papers; they are not "
            "scored for that class."
        )
    return tuple(notes)
