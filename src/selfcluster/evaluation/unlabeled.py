"""Measures of features without labels, and of simple properties of images that could explain the clusters.

Retrieval: does an image find its own other crop? Neighbors: do two feature spaces give an image the same neighbors?
RankMe (Garrido et al. 2023, arXiv 2210.02885): how many dimensions are used? Agreement: do clusterings with other seeds
find the same groups? Surface: how much of the clusters do colors, file sizes and aspect ratios explain?
Departs: clusterings are compared by adjusted mutual information. Normalized mutual information
rises with the number of clusters, even for two independent clusterings. In a small sample anything would then seem to
explain the clusters.

N images, F features, K clusters, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from selfcluster.annotations import ArrayLike
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.neighbors import nearest
from selfcluster.clustering.scores import ami, nmi, rankme
from selfcluster.data.decode import BadImage
from selfcluster.data.images import open_row
from selfcluster.data.sources import Source
from selfcluster.evaluation.protocols.knn import knn

NEIGHBORS = 10
SEEDS = 3
_HUES, _SATURATIONS, _VALUES = 12, 3, 4
_THUMBNAIL = 32  # pixels of the side from which a color histogram is read
_NORMAL_95 = 1.96  # standard errors
FEWEST = 8  # images; the measures mean nothing with fewer


@dataclass(frozen=True)
class Surface:
    """Simple properties of N images: color, file size and aspect ratio.

    Attributes:
        colors: (N, 144) float64, a histogram of hue, saturation and value; each row sums to 1.
        file_size: (N,) float64, bytes; NaN for images that are not files.
        aspect: (N,) float64, width over height.
    """

    colors: np.ndarray
    file_size: np.ndarray
    aspect: np.ndarray


@dataclass(frozen=True)
class Crops:
    """Features of views of the same N images.

    Attributes:
        center: (N, F), of the center view.
        crop: (V, N, F), of V random crops; or (N, F) of one.
        small: (W, N, F), of W crops that are smaller than the training views; or (N, F) of one. None: no such crops.
    """

    center: np.ndarray
    crop: np.ndarray
    small: np.ndarray | None = None

    @property
    def crops(self) -> np.ndarray:
        """(V, N, F)."""
        return self.crop if self.crop.ndim == 3 else self.crop[None]

    def take(self, rows: np.ndarray | list[int]) -> Crops:
        """Return the features of some of the images."""
        small = None if self.small is None else self.small[..., rows, :]
        return Crops(self.center[rows], self.crop[..., rows, :], small)


@dataclass(frozen=True)
class Change:
    """The change of a per-image measure from one network to another.

    Attributes:
        mean: over the images.
        low, high: the 95 % interval of the mean, from the standard error of the paired differences.
    """

    mean: float
    low: float
    high: float


def paired_change(before: np.ndarray, after: np.ndarray) -> Change:
    """Return the mean change over images and its 95 % interval.

    Args:
        before: (N,) values of N images, N >= 2.
        after: (N,) values of the same images.

    >>> paired_change(np.zeros(4), np.ones(4))
    Change(mean=1.0, low=1.0, high=1.0)
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    mean = float(difference.mean())
    margin = _NORMAL_95 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return Change(mean, mean - margin, mean + margin)


def retrieval(first: ArrayLike, second: ArrayLike) -> float:
    """Return how often an image's nearest row (by cosine) in the other set of views is its own.

    The result is the mean over both directions. A tie with another image counts as a miss.

    Args:
        first: (N, F) features of one view of each image.
        second: (N, F) features of another view of the same images.

    >>> retrieval(np.eye(3), np.eye(3))
    1.0
    """
    return float(retrieval_hits(first, second).mean())


def retrieval_hits(center: ArrayLike, crops: ArrayLike) -> np.ndarray:
    """Return how often each image finds its own other view, (N,) from 0 to 1; `retrieval` is the mean.

    Args:
        center: (N, F) features.
        crops: (V, N, F) or (N, F) features of other views of the same images.
    """
    a, others = _unit(center), np.asarray(crops)
    others = others if others.ndim == 3 else others[None]
    hits = np.zeros(len(a))
    for other in others:
        b = _unit(other)
        _check_pair(a, b)
        cosines = a @ b.T  # (N, N)
        own = np.diag(cosines).copy()
        np.fill_diagonal(cosines, -np.inf)
        hits += (own > cosines.max(axis=1)).astype(float) + (own > cosines.max(axis=0))
    return hits / (2 * len(others))


def neighbor_overlap(first: ArrayLike, second: ArrayLike, k: int = NEIGHBORS) -> float:
    """Return the share of an image's k nearest images (by cosine) that two feature spaces have in common, averaged.

    For two unrelated spaces the expected value is k / (N - 1).

    Args:
        first: (N, F) features.
        second: (N, G) features of the same images.
        k: neighbors, at most N - 1.

    >>> neighbor_overlap(np.eye(4), np.eye(4), k=3)
    1.0
    """
    a, b = _unit(first), _unit(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} rows: the features must be of the same images")
    k = min(k, len(a) - 1)
    if k < 1:
        raise ValueError(f"{len(a)} images with k={k}: at least 2 images and k=1 are needed")
    lists = [nearest(x, x, k, exclude_self=True).indices for x in (a, b)]
    member = np.zeros((len(a), len(a)), dtype=bool)
    np.put_along_axis(member, lists[0], True, axis=1)
    return float(np.take_along_axis(member, lists[1], axis=1).mean())


def clusterings(features: ArrayLike, k: int, seeds: int = SEEDS, seed: int = 0) -> np.ndarray:
    """Return the labels (S, N) of spherical k-means with S seeds; k is at most the number of distinct rows."""
    x = _unit(features).astype(np.float32)
    k = min(k, len(np.unique(x, axis=0)))
    fits: list[Any] = [
        KMeans(k, spherical=True, init="k-means++", max_iter=30, random_state=seed + s).fit(x) for s in range(seeds)
    ]
    return np.stack([fit.labels_ for fit in fits])


def agreement(labelings: np.ndarray, adjusted: bool = True) -> float:
    """Return the mean AMI (or arithmetic NMI) over all pairs of S labelings (S, N); 1 = all seeds agree.

    >>> agreement(np.array([[0, 0, 1, 1], [1, 1, 0, 0]]))
    1.0
    """
    pairs = [(a, b) for i, a in enumerate(labelings) for b in labelings[i + 1 :]]
    if not pairs:
        raise ValueError("agreement needs at least two labelings")
    score = ami if adjusted else lambda a, b: nmi(a, b, "arithmetic")
    return float(np.mean([score(a, b) for a, b in pairs]))


def explained(labelings: np.ndarray, groups: np.ndarray) -> float:
    """Return how well another grouping explains the clusters: the mean AMI over the labelings.

    0 = no better than chance, 1 = the clusters equal the grouping.

    Args:
        labelings: (S, N) clusters.
        groups: (N,) whole numbers.
    """
    return float(np.mean([ami(labels, groups) for labels in labelings]))


def quantile_groups(values: ArrayLike, k: int) -> np.ndarray:
    """Return k groups (N,) of about equal size by the order of the values (N,); equal values share a group.

    >>> quantile_groups([5.0, 1.0, 9.0, 7.0], 2).tolist()
    [0, 0, 1, 1]
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    first = np.searchsorted(np.sort(values), values)  # the place of the first equal value
    return first * k // len(values)


def hsv_histogram(pixels: np.ndarray) -> np.ndarray:
    """Return the histogram (144,) of hue, saturation and value of an image (H, W, 3) uint8; it sums to 1.

    A pixel of saturation s adds s to its hue's bin and 1 - s to the gray bins, because the hue of a gray pixel means
    nothing.
    """
    rgb = pixels.reshape(-1, 3).astype(np.float64) / 255
    value, low = rgb.max(axis=1), rgb.min(axis=1)
    spread = value - low
    saturation = np.divide(spread, value, out=np.zeros_like(value), where=value > 0)
    r, g, b = rgb.T
    safe = np.where(spread > 0, spread, 1)
    sector = np.where(value == r, (g - b) / safe % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = (sector / 6 * _HUES).astype(int) % _HUES
    bright = np.minimum((value * _VALUES).astype(int), _VALUES - 1)
    level = np.minimum((saturation * _SATURATIONS).astype(int), _SATURATIONS - 1)
    shape = (_HUES, _SATURATIONS, _VALUES)
    colored = np.bincount(np.ravel_multi_index((hue, level, bright), shape), saturation, int(np.prod(shape)))
    gray = np.bincount(bright, 1 - saturation, _VALUES)
    counts = colored.reshape(shape)
    counts[:, 0, :] += gray / _HUES
    return counts.ravel() / max(1, len(rgb))


def read_surface(source: Source, rows: np.ndarray) -> tuple[np.ndarray, Surface]:
    """Return the rows that can be read (n,), and their `Surface`."""
    kept, colors, sizes, aspects = [], [], [], []
    for row in rows.tolist():
        try:
            image = open_row(source, row)
            pixels = image.pixels(3, shrink_to=_THUMBNAIL)
            data = source.read(row)
        except BadImage:
            continue
        step = max(1, min(pixels.shape[:2]) // _THUMBNAIL)
        colors.append(hsv_histogram(np.ascontiguousarray(pixels[::step, ::step])))
        sizes.append(float(len(data)) if isinstance(data, bytes) else np.nan)
        aspects.append(image.width / image.height)
        kept.append(row)
    surface = Surface(np.array(colors).reshape(len(kept), -1 if kept else 0), np.array(sizes), np.array(aspects))
    return np.array(kept, dtype=np.int64), surface


def number_of_clusters(n: int) -> int:
    """Return the number of clusters for n images: the square root of n / 2, between 2 and 20."""
    return int(min(20, max(2, round((n / 2) ** 0.5))))


def measure(
    views: Crops,
    surface: Surface | None = None,
    start: Crops | None = None,
    labels: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return all label-free measures of a network's features of a sample, and 20-NN accuracy if there are labels.

    Args:
        views: the features.
        surface: of the same images; None: colors, file sizes and aspect ratios are not compared.
        start: features of the same views, by the start network.
        labels: (N,) whole numbers, -1 = none.
        seed: of the clusterings.

    Returns:
        By name. retrieval, and small_retrieval with the smaller crops, if there are any. crop_overlap: neighbor lists
        of center view and crop. rankme. agreement: AMI of clusterings over seeds. start_overlap: neighbor lists, with
        `start`. by_color, by_file_size, by_aspect: AMI of clusters with groups of equal color, size or aspect; left out
        if all images are equal in it. knn: leave one out, with `labels`. images, clusters: their numbers.

    Raises:
        ValueError: there are fewer than 8 images, or a feature is not finite.
    """
    n = len(views.center)
    if n < FEWEST:
        raise ValueError(f"{n} images: at least {FEWEST} are needed to measure features without labels")
    k = number_of_clusters(n)
    labelings = clusterings(views.center, k, seed=seed)
    result = {
        "images": float(n),
        "clusters": float(k),
        "retrieval": float(retrieval_hits(views.center, views.crop).mean()),
        "crop_overlap": neighbor_overlap(views.center, views.crops[0]),
        "rankme": rankme(views.center),
        "agreement": agreement(labelings),
    }
    if views.small is not None:
        result["small_retrieval"] = float(retrieval_hits(views.center, views.small).mean())
    if start is not None:
        result["start_overlap"] = neighbor_overlap(views.center, start.center)
    if surface is not None:
        colors = clusterings(np.sqrt(surface.colors), k, seed=seed)
        result["by_color"] = float(np.mean([explained(labelings, groups) for groups in colors]))
        for name, values in (("by_file_size", surface.file_size), ("by_aspect", surface.aspect)):
            if np.isfinite(values).all() and np.ptp(values) > 0:
                result[name] = explained(labelings, quantile_groups(values, k))
    if labels is not None:
        labels = np.asarray(labels)
        known = labels >= 0
        if labels.ndim == 1 and known.sum() > 1 and len(np.unique(labels[known])) > 1:
            result["knn"] = knn(views.center, labels)["top1"]
    return result


def _unit(features: ArrayLike) -> np.ndarray:
    x = np.asarray(features.detach().cpu() if isinstance(features, torch.Tensor) else features, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"features of shape {x.shape}: must be finite rows (N, F)")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"features of shapes {a.shape} and {b.shape}: both views must be of the same images")
