"""How well a mask fits the true one: the Jaccard index J, and the F-measure of its boundary.

Perazzi et al. 2016 (the DAVIS benchmark), section 5. The released evaluation has the same boundaries and tolerance.
H x W pixels, T frames.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt

TOLERANCE = 0.008  # of the image's diagonal: how far a boundary may lie from the true one


def jaccard(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the intersection of two masks (H, W) divided by their union; 1 if both are empty.

    >>> jaccard(np.array([[True, True]]), np.array([[True, False]]))
    0.5
    """
    mask, truth = _pair(mask, truth)
    union = int((mask | truth).sum())
    return 1.0 if union == 0 else int((mask & truth).sum()) / union


def boundary_f(mask: np.ndarray, truth: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Return the F-measure of the boundaries of two masks (H, W).

    A boundary pixel is matched if the other boundary is within `tolerance` times the diagonal. As in the benchmark,
    precision is 1 if only the truth has a boundary, and recall is 1 if only the mask has one.
    """
    mask, truth = _pair(mask, truth)
    reach = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*mask.shape))
    edge, wanted = boundary(mask), boundary(truth)
    if not edge.any() or not wanted.any():
        return 1.0 if edge.any() == wanted.any() else 0.0
    precision = _near(edge, wanted, reach)
    recall = _near(wanted, edge, reach)
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) of a mask that differ from their right, lower or lower right neighbor."""
    right, below, diagonal = (mask.copy() for _ in range(3))
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    edge[-1] = mask[-1] ^ right[-1]  # the last row has nothing below it
    edge[:, -1] = mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def decay(scores: np.ndarray) -> float:
    """Return the mean score in a video's first quarter minus that in its last, for scores (T,); 0 if T < 4."""
    if len(scores) < 4:
        return 0.0
    cuts = np.round(np.linspace(1, len(scores), 5) + 1e-10).astype(int) - 1
    return float(scores[cuts[0] : cuts[1] + 1].mean() - scores[cuts[3] : cuts[4] + 1].mean())


def _near(edge: np.ndarray, other: np.ndarray, reach: float) -> float:
    """The share of the pixels of `edge` within `reach` pixels of `other`."""
    distance = np.asarray(distance_transform_edt(~other))
    return float((distance[edge] <= reach).mean())


def _pair(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if mask.shape != truth.shape or mask.ndim != 2:
        raise ValueError(f"masks of {mask.shape} and {truth.shape}: both must be (H, W) and belong to one image")
    return mask.astype(bool), truth.astype(bool)
