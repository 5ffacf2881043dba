"""Trains support vector machines on few images per class, on frozen features: mean and deviation over draws.

Goyal et al. 2019, arXiv 1905.01235, with 1 to 96 positive images a class and 5 draws. For each class a draw holds k
positive images and (L - 1) * k negative ones, without replacement; no other image is used for that class. Every cost
is tried, and the result for k is the best cost's mean over the draws. As published, the cost is chosen on the test
images, which makes the result too good; `--costs 1` avoids this.
Departs: the images are the center crops of the network. If train has fewer negative images, all of them are used.
A k is left out if some class has fewer positive images.

N training images, M test images, F features, L classes, k positive images per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfcluster import randomness
from selfcluster.annotations import ArrayLike
from selfcluster.evaluation.average_precision import class_precisions, mean_precision
from selfcluster.evaluation.one_vs_rest import class_name, is_single, machine_scores, parse_costs, prepared, top1
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.protocols.knn import parse_numbers
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting

Draw = list[tuple[np.ndarray, np.ndarray]]  # for each class the rows of its positive and of its negative images


@dataclass(frozen=True, kw_only=True)
class LowShotSettings:
    shots: str = setting("1,2,4,8,16,32,64,96", "positive images per class; numbers separated by commas")
    samples: int = setting(5, "independent draws for each number of images", least=1, most=1000)
    costs: str = setting("vissl", "vissl (27 costs), openselfsup (19), or numbers separated by commas")


class LowShot(Protocol):
    Settings = LowShotSettings
    labels = "any"

    def run(self, subject: Subject, settings: LowShotSettings) -> Result:
        costs, shots = parse_costs(settings.costs), parse_numbers(settings.shots, "--shots")
        train, test = subject.parts
        numbers, rows, notes = low_shot(
            train.vectors, train.labels, test.vectors, test.labels, shots=shots, samples=settings.samples, costs=costs,
            seed=subject.seed, class_names=test.class_names,
        )  # fmt: skip
        return result_of("low_shot", numbers, subject, settings, table=rows, notes=notes)


def low_shot(
    train_features: ArrayLike,
    train_labels: ArrayLike | None,
    test_features: ArrayLike,
    test_labels: ArrayLike | None,
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 96),
    samples: int = 5,
    costs: tuple[float, ...],
    seed: int = 0,
    class_names: list[str] | None = None,
) -> tuple[dict[str, float], tuple[dict[str, object], ...], tuple[str, ...]]:
    """Return the numbers, a row for each k, and notes.

    Args:
        train_features, train_labels: (N, F) and (N,), -1 = unlabeled; or (N, L) of 1, 0 and -1 (ignored).
        test_features, test_labels: (M, F) and (M,) or (M, L).
        shots: the values of k.
        samples: independent draws for each k.
        costs: the best of them on the test images is used.
        seed: of the draws.
        class_names: for the notes.

    Returns:
        numbers: map and top1 (single labels only) of the largest k, its deviation, shots, samples, classes, n_train,
        n_test. Rows: shots, map (mean over the draws), deviation (of the population), least, most, cost; top1 and
        top1_deviation at the same cost, for single labels.

    Raises:
        ValueError: some class has fewer images than the smallest k; or as `prepared` raises.
    """
    x, y, queries, wanted = prepared(train_features, train_labels, test_features, test_labels)
    counts = (y > 0).sum(axis=0)
    known = np.flatnonzero(counts)
    rarest = known[counts[known].argmin()]
    kept, name = [k for k in shots if k <= counts[rarest]], class_name(class_names, int(rarest))
    if not kept:
        raise ValueError(
            f"--shots {','.join(map(str, shots))}: the class {name} has {counts[rarest]} training images; "
            "give fewer shots, or leave the class out with --classes"
        )
    single, rows = is_single(train_labels), []
    for k in kept:
        draws = [draw(y, k, randomness.key(seed, "low shot", k, sample)) for sample in range(samples)]
        precision, accuracy = np.zeros((2, len(costs), samples))
        for i, cost in enumerate(costs):
            for j, rows_of in enumerate(draws):
                scores = _scores(x, queries, rows_of, cost)
                precision[i, j] = mean_precision(class_precisions(scores, wanted))
                accuracy[i, j] = top1(scores, wanted, counts > 0) if single else 0
        best = int(precision.mean(axis=1).argmax())
        of_best = precision[best]
        row = {"shots": k, "map": float(of_best.mean()), "deviation": float(of_best.std())}
        row |= {"least": float(of_best.min()), "most": float(of_best.max()), "cost": costs[best]}
        if single:
            row |= {"top1": float(accuracy[best].mean()), "top1_deviation": float(accuracy[best].std())}
        rows.append(row)
    last = rows[-1]
    numbers = {key: last[key] for key in ("map", "deviation", "top1", "shots") if key in last}
    numbers |= {"samples": samples, "classes": len(known), "n_train": len(x), "n_test": len(queries)}
    chosen = "The SVM cost of each row was chosen on the test images, as in the papers, so the scores are optimistic."
    notes = (chosen,) if len(costs) > 1 else ()
    if len(kept) < len(shots):
        held = f"{counts[rarest]} training image{'' if counts[rarest] == 1 else 's'}"
        notes += (f"Shots above {counts[rarest]} were left out, because the class {name} has {held}.",)
    notes += _missing(y, wanted, max(kept), class_names)
    return numbers, tuple(rows), notes


def draw(labels: np.ndarray, k: int, key: int) -> Draw:
    """Return for each class the rows of k positive images and of (L - 1) * k negative ones, both sorted.

    A class without a positive image gets no images. Labels (N, L) are 1, 0 and -1; images of -1 are never drawn.

    >>> [[part.size for part in rows] for rows in draw(np.eye(3, dtype=int).repeat(5, axis=0), 2, key=0)]
    [[2, 4], [2, 4], [2, 4]]
    """
    rng, drawn = np.random.default_rng(key), []
    classes = int((labels > 0).any(axis=0).sum())
    for column in labels.T:
        positive, negative = np.flatnonzero(column > 0), np.flatnonzero(column == 0)
        if not len(positive):
            drawn.append((positive, negative[:0]))
            continue
        others = min(len(negative), (classes - 1) * k)
        rows = rng.choice(positive, k, replace=False), rng.choice(negative, others, replace=False)
        drawn.append((np.sort(rows[0]), np.sort(rows[1])))
    return drawn


def _scores(x: np.ndarray, queries: np.ndarray, drawn: Draw, cost: float) -> np.ndarray:
    """Scores (M, L) of the test images by machines fitted to a draw."""
    columns = []
    for positive, negative in drawn:
        rows = np.concatenate([positive, negative])
        columns.append(machine_scores(x[rows], np.arange(len(rows)) < len(positive), cost, queries))
    return np.stack(columns, axis=1)


def _missing(y: np.ndarray, wanted: np.ndarray, k: int, class_names: list[str] | None) -> tuple[str, ...]:
    """Return sentences about classes without training images, and on classes with too few negative images."""
    counts, others = (y > 0).sum(axis=0), (y == 0).sum(axis=0)
    needed = (int((counts > 0).sum()) - 1) * k
    absent = [class_name(class_names, int(c)) for c in np.flatnonzero((counts == 0) & (wanted > 0).any(axis=0))]
    short = [class_name(class_names, int(c)) for c in np.flatnonzero((counts > 0) & (others < needed))]
    notes = []
    if absent:
        notes.append(f"No training image of {', '.join(absent)}: their score is at chance level.")
    if short:
        notes.append(
            f"{', '.join(short)}: fewer than {needed} negative images (classes minus one, times images of a class), so "
            "all were used."
        )
    return tuple(notes)
