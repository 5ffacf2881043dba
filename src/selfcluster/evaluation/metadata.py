"""Metadata of images, and how well clusters and neighbors agree with it.

Caron et al. 2019, arXiv 1905.01278, section 4.2 (figures 4, 5 and 7), and Caron's thesis, table 3.4 (edges).
N images, K clusters, F features, T tags of an image.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from selfcluster import randomness
from selfcluster.clustering.assign import unit_rows
from selfcluster.clustering.neighbors import nearest
from selfcluster.data.decode import BadImage
from selfcluster.data.exif import FIELDS, read_exif
from selfcluster.data.images import open_row
from selfcluster.data.labels import is_missing
from selfcluster.data.readers.rows import read_csv
from selfcluster.data.sources import Source
from selfcluster.files import reason_of

Rule = Literal["rarest", "random"]
SEPARATOR = ";"
_SIDE = 32  # pixels of the side from which a mean color is read


def read_columns(path: str, ids: Sequence[str], flag: str = "--table") -> dict[str, list[str]]:
    """Return each column of a CSV as N cells, "" for images without a row.

    The column `id` or `path`, or else the first, names the images: by id, with or without the suffix. If
    no two images share a file name, the folder may be left out.

    Raises:
        ValueError: the file cannot be read, has one column only, or names no image; the message names the `flag`.
    """
    try:
        rows = read_csv(path)
        header = next(rows, [])
        body = list(rows)
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot be read ({reason_of(error)})") from error
    if len(header) < 2:
        raise ValueError(f"{flag} {path}: needs a column of ids and one more; its header is {header}")
    key = next((header.index(name) for name in ("id", "path") if name in header), 0)
    of: dict[str, list[str]] = {}
    for row in body:
        if len(row) > key:
            of[row[key]] = row
    bases = [os.path.basename(name) for name in ids]
    bare = len(set(bases)) == len(ids)
    found = []
    for name, base in zip(ids, bases, strict=True):
        names = (name, base) if bare else (name,)
        every = (*names, *(os.path.splitext(each)[0] for each in names))
        found.append(next((of[each] for each in every if each in of), []))
    if not any(found):
        example = next(iter(of), "none")
        raise ValueError(
            f"{flag} {path}: no id or path in it belongs to an image. The file has {example!r}, the images have "
            f"{ids[0]!r}"
        )
    columns = {name: place for place, name in enumerate(header) if place != key}
    return {name: [row[place].strip() if len(row) > place else "" for row in found] for name, place in columns.items()}


def exif_columns(source: Source, rows: np.ndarray, degrees: float = 1.0) -> dict[str, list[str]]:
    """Return camera, day and place of N images of a source; "" if a file has no such entry."""
    found = []
    for row in rows.tolist():
        try:
            data = source.read(row)
        except (BadImage, OSError):
            data = None
        found.append(read_exif(data, degrees) if isinstance(data, bytes) else {})
    return {name: [values.get(name, "") for values in found] for name in FIELDS}


def one_tag(cells: Sequence[str], rule: Rule = "rarest", seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return one label (N,) an image from cells of tags `a;b`, -1 = none, and the names that the labels number.

    Args:
        cells: N texts.
        rule: rarest: the tag that the fewest images have, as in the paper; of equally rare tags the first by name.
            random: a seeded draw.
        seed: of that draw.

    >>> one_tag(["cat;pet", "pet", ""], "rarest")[0].tolist()
    [0, 1, -1]
    """
    split = [dict.fromkeys(tag.strip() for tag in cell.split(SEPARATOR)) for cell in cells]
    tags = [[tag for tag in each if not is_missing(tag)] for each in split]
    counts = Counter(tag for each in tags for tag in each)
    draws = randomness.draw(seed, "tag", 0, np.arange(len(cells)), 0, 1)[:, 0].tolist()
    chosen = [
        "" if not each
        else min(each, key=lambda tag: (counts[tag], tag)) if rule == "rarest"
        else each[int(u * len(each))]
        for each, u in zip(tags, draws, strict=True)
    ]  # fmt: skip
    names = sorted({tag for tag in chosen if tag})
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers.get(tag, -1) for tag in chosen], np.int64), names


def cluster_purity(clusters: np.ndarray, labels: np.ndarray, least: int = 5) -> list[dict[str, int | float]]:
    """Return a row for each cluster with at least `least` labeled images: cluster, images, share, label.

    `label` is the most frequent one, and `share` its share. The purest cluster comes first; of equal ones the larger.
    `clusters` and `labels` (N,), -1 = none.
    """
    rows = []
    for cluster in np.unique(clusters[clusters >= 0]):
        inside = labels[(clusters == cluster) & (labels >= 0)]
        if len(inside) >= least:
            counts = np.bincount(inside)
            share = float(counts.max() / len(inside))
            rows.append({"cluster": int(cluster), "images": len(inside), "share": share, "label": int(counts.argmax())})
    return sorted(rows, key=lambda row: (-row["share"], -row["images"], row["cluster"]))


def same_label_edges(indices: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the share of a neighbor graph's edges that join equal labels, and the share expected by chance.

    Edges to or from an image without a label do not count. NaN if no edge is left.

    Args:
        indices: (N, k) the neighbors of each image, without itself.
        labels: (N,) whole numbers, -1 = none.
    """
    known = (labels[:, None] >= 0) & (labels[indices] >= 0)
    sizes = np.bincount(labels[labels >= 0]).astype(np.float64)
    n = sizes.sum()
    if not known.any() or n < 2:
        return float("nan"), float("nan")
    same = (labels[:, None] == labels[indices])[known].mean()
    return float(same), float((sizes * (sizes - 1)).sum() / (n * (n - 1)))


def neighbor_graph(vectors: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest images of each image by cosine, (N, k); fewer columns if there are fewer images."""
    x = unit_rows(torch.from_numpy(vectors.astype(np.float32))).numpy()
    return np.asarray(nearest(x, x, min(k, len(x) - 1), exclude_self=True).indices)


def mean_colors(source: Source, rows: np.ndarray) -> np.ndarray:
    """Return the mean red, green and blue (N, 3) of images in [0, 1]; NaN for an image that cannot be read."""
    colors = np.full((len(rows), 3), np.nan)
    for place, row in enumerate(rows.tolist()):
        try:
            colors[place] = open_row(source, row).pixels(3, shrink_to=_SIDE).reshape(-1, 3).mean(axis=0) / 255
        except BadImage:
            continue
    return colors


def color_deviations(clusters: np.ndarray, colors: np.ndarray) -> Mapping[int, float]:
    """Return each cluster's root mean squared distance of its images' mean colors (N, 3) to the cluster's mean color.

    Clusters of one image are left out.
    """
    found = {}
    for cluster in np.unique(clusters[clusters >= 0]):
        inside = colors[clusters == cluster]
        inside = inside[np.isfinite(inside).all(axis=1)]
        if len(inside) > 1:
            found[int(cluster)] = float(np.sqrt(((inside - inside.mean(axis=0)) ** 2).sum(axis=1).mean()))
    return found
