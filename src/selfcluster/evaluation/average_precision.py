"""Average precision of scores, in the forms that papers report, and its mean over classes.

`area`: area under the precision-recall curve, with each precision replaced by the best one at the same or a higher
recall (PASCAL VOC from 2010 on, and VISSL's VOC07 numbers).
`eleven`: mean of these precisions at the recalls 0, 0.1 ... 1 (Everingham et al. 2010, section 4.2; VOC until 2009).
`steps`: sum of precision times the step in recall, as scikit-learn's `average_precision_score`.
Images with equal scores are counted together, so the result does not depend on their order. If all scores are equal,
the result is the share of positive images.

M images, L classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Form = Literal["area", "eleven", "steps"]
IGNORED = -1


def average_precision(scores: np.ndarray, positives: np.ndarray, form: Form = "area") -> float:
    """Return the average precision of scores (M,) for positives (M,) of 0 and 1; images with -1 are ignored.

    Without a positive image the result is NaN.

    Raises:
        ValueError: the form is unknown, the shapes differ, or a score is not finite.

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1]), "steps")
    0.8333333333333333
    """
    scores, positives = np.asarray(scores, np.float64), np.asarray(positives)
    if scores.shape != positives.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and positives {positives.shape} must both be (M,)")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    counted = positives != IGNORED
    scores, positives = scores[counted], positives[counted] > 0
    total = int(positives.sum())
    if not total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(positives[order])[last_of_equals]
    recall, precision = hits / total, hits / (last_of_equals + 1)
    if form == "steps":
        return float(np.sum(np.diff(recall, prepend=0) * precision))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    if form == "area":
        return float(np.sum(np.diff(recall, prepend=0) * envelope))
    if form == "eleven":
        at = np.searchsorted(recall, np.arange(11) / 10 - 1e-12)  # 0.1 * 3 is above 0.3 in floating point
        return float(np.mean(envelope[at]))
    raise ValueError(f"form={form!r}: choose area, eleven or steps")


def class_precisions(scores: np.ndarray, labels: np.ndarray, form: Form = "area") -> np.ndarray:
    """Return (L,) average precisions of scores (M, L) for labels (M, L) of 1, 0 and -1.

    NaN for a class without a positive image.
    """
    return np.array([average_precision(scores[:, c], labels[:, c], form) for c in range(labels.shape[1])])


def mean_precision(precisions: np.ndarray) -> float:
    """Return the mean over the classes that have a positive image; NaN if none has."""
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else float("nan")
