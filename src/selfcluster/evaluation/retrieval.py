"""Score a ranking by how early the right images come. Junk images count neither as right nor as wrong.

Philbin et al. 2007 (Oxford buildings) and Radenović et al. 2018, arXiv 1803.11285 (the revisited sets): junk images are
taken out of a ranking before it is scored. The area under precision and recall is a sum of trapezoids.
Q queries, N database images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DEPTHS = (1, 5, 10)


def places_without_junk(order: np.ndarray, positive: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Return the places of the positives, from 0 and rising, in a ranking without its junk.

    Args:
        order: (n,) database images, best first.
        positive, junk: images; an image that is both counts as junk.
    """
    is_junk = np.isin(order, junk)
    place = np.cumsum(~is_junk) - 1
    return place[np.isin(order, positive) & ~is_junk]


def trapezoid_precision(places: np.ndarray, positives: int) -> float:
    """Return the average precision of a ranking, NaN without positives.

    Each positive adds the mean of two precisions: just before it, and at it. Before the first image precision is 1.

    Args:
        places: of the positives that were found, from 0 and rising.
        positives: their number in all.

    >>> trapezoid_precision(np.array([0, 1, 4]), 3)
    0.85
    """
    if not positives:
        return float("nan")
    found = np.arange(len(places), dtype=np.float64)
    before = np.where(places > 0, found / np.maximum(places, 1), 1.0)
    at = (found + 1) / (places + 1.0)
    return float(((before + at) / 2).sum() / positives)


def precision_at(places: np.ndarray, depth: int) -> float:
    """Return the precision among the first `depth`, or up to the last positive if that comes earlier."""
    if not len(places):
        return 0.0
    depth = min(int(places.max()) + 1, depth)
    return float((places < depth).sum() / depth)


def retrieval_scores(
    similarity: np.ndarray, positives: Sequence[np.ndarray], junk: Sequence[np.ndarray], most: int | None = None
) -> dict[str, float]:
    """Return map, and mp@1, mp@5, mp@10; a query without positives does not count.

    Args:
        similarity: (Q, N) of each query to each database image; equal similarities rank in the order of the database.
        positives, junk: Q arrays of database images.
        most: score only this many best images; positives after these count as not found.

    Raises:
        ValueError: no query has a positive, or a similarity is NaN.
    """
    if np.isnan(similarity).any():
        raise ValueError("the features are not finite, so they cannot rank images")
    precisions, depths = [], {depth: [] for depth in _DEPTHS}
    for row, right, ignored in zip(similarity, positives, junk, strict=True):
        right = np.setdiff1d(right, ignored)
        if not len(right):
            continue
        places = places_without_junk(np.argsort(-row, kind="stable")[:most], right, ignored)
        precisions.append(trapezoid_precision(places, len(right)))
        for depth in _DEPTHS:
            depths[depth].append(precision_at(places, depth))
    if not precisions:
        raise ValueError("no query has an image that it should find")
    return {"map": float(np.mean(precisions))} | {f"mp@{depth}": float(np.mean(depths[depth])) for depth in _DEPTHS}
