"""Images that deserve a second look: copies, near copies, the farthest of all, and dark, blurred or constant ones.

N images. Exact copies, dark, blurred and constant ones are those that `selfcluster audit` finds. Near copies are
nearest neighbors whose distance is far below what is usual among these images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from selfcluster.reporting.album import Album

if TYPE_CHECKING:
    from selfcluster.data.audit import Examined

FARTHEST = 200
KINDS = ("exact", "near", "farthest", "dark", "blurred", "constant")
_MOST_GROUPS = 500
_NEIGHBORS = 5  # looked at for each image
_DEVIATIONS = 4.0  # robust standard deviations below the median of log distances
_COPY = 1e-5  # squared distance between embeddings of the same pixels, after rounding


@dataclass(frozen=True)
class Suspects:
    """Rows of the album. `exact` and `near` are groups of two and more; `near_distance` is their threshold.

    `usual_distance` is the median distance of an image to its nearest other image; both are None where not known.
    """

    exact: list[list[int]] = field(default_factory=list)
    near: list[list[int]] = field(default_factory=list)
    farthest: list[int] = field(default_factory=list)
    dark: list[int] = field(default_factory=list)
    blurred: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    near_distance: float | None = None
    usual_distance: float | None = None
    is_audited: bool = False


def find_suspects(album: Album, examined: Examined | None) -> Suspects:
    """Choose by the embeddings and by what was seen in the pixels.

    Args:
        album: the images.
        examined: what was seen in them, or in more images; None: only the embeddings and distances are used.
    """
    from selfcluster.data.audit import exact_groups

    near, threshold, usual, same = _near_groups(album)
    known = np.flatnonzero(np.isfinite(album.distance) & (album.cluster >= 0))
    farthest = known[np.argsort(-album.distance[known], kind="stable")][:FARTHEST].tolist()
    found = {"near": near, "near_distance": threshold, "usual_distance": usual, "farthest": farthest}
    if examined is None:
        return Suspects(exact=same[:_MOST_GROUPS], **found)
    row_of = {name: row for row, name in enumerate(album.ids)}
    rows = [row_of.get(name, -1) for name in examined.ids]

    def marked(flags: np.ndarray) -> list[int]:
        return sorted(rows[i] for i in np.flatnonzero(flags).tolist() if rows[i] >= 0)

    exact = [sorted(rows[i] for i in group if rows[i] >= 0) for group in exact_groups(examined)]
    exact = [group for group in exact if len(group) > 1][:_MOST_GROUPS]
    copies = {tuple(group) for group in exact}
    found["near"] = [group for group in near if tuple(group) not in copies]
    return Suspects(
        exact=exact,
        dark=marked(examined.dark & ~examined.constant),
        blurred=marked(examined.blurred),
        constant=marked(examined.constant),
        is_audited=True,
        **found,
    )


def near_threshold(distances: np.ndarray) -> float | None:
    """Return the distance below which a nearest neighbor counts as a near copy, None where the data do not tell.

    It lies four robust standard deviations below the median of the logarithms: 1.4826 times the median absolute
    deviation estimates the standard deviation of a normal distribution (Rousseeuw and Croux 1993).

    Args:
        distances: (N,) of each image to its nearest other image; copies, at 0, are left out.
    """
    logs = np.log(distances[distances > _COPY**0.5])
    if len(logs) < 20:
        return None
    middle = np.median(logs)
    return float(np.exp(middle - _DEVIATIONS * 1.4826 * np.median(np.abs(logs - middle))))


def _near_groups(album: Album) -> tuple[list[list[int]], float | None, float | None, list[list[int]]]:
    """Near copies, their threshold, the usual distance, and groups of equal embeddings."""
    from selfcluster.clustering.neighbors import nearest

    rows = np.flatnonzero(album.embedded)
    if len(rows) < 2:
        return [], None, None, []
    x = album.reduced[rows]
    found = nearest(x, x, min(_NEIGHBORS, len(rows) - 1), metric="l2", exclude_self=True)
    distance = np.sqrt(np.maximum(found.values, 0))
    threshold = near_threshold(distance[:, 0])
    if not np.ptp(x, axis=0).any():  # collapsed: everything looks like a copy of everything
        return [], None, None, []
    same = _groups(rows, found.indices, distance <= _COPY**0.5)
    if threshold is None:
        return [], None, float(np.median(distance[:, 0])), same
    near = _groups(rows, found.indices, distance <= threshold)
    usual = {tuple(group) for group in same}
    near = [group for group in near if tuple(group) not in usual]
    return near[:_MOST_GROUPS], threshold, float(np.median(distance[:, 0])), same


def _groups(rows: np.ndarray, neighbors: np.ndarray, close: np.ndarray) -> list[list[int]]:
    """Connected groups of two and more, the largest first."""
    one, k = np.nonzero(close)
    n = len(rows)
    _, part = connected_components(coo_matrix((np.ones(len(one)), (one, neighbors[one, k])), (n, n)), directed=False)
    order = np.argsort(part, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(part[order])) + 1)
    return sorted((sorted(g.tolist()) for g in groups if len(g) > 1), key=lambda g: (-len(g), g))
