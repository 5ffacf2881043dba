"""Pictures for a README or a paper: the clusters as strips of their nearest members, beside a map of the embeddings.

N images, F features. Drawn with Pillow at twice the size it is meant to be seen at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from selfcluster.reporting.colors import cluster_colors
from selfcluster.reporting.map import lay_out, sample_rows
from selfcluster.reporting.thumbnails import write_picture

_PAPER, _INK, _SOFT, _RAISED = "#fbfaf7", "#1d1c1a", "#8a857b", "#ffffff"
_TILE, _GAP, _MARGIN, _NAME, _HEAD = 84, 12, 56, 170, 76  # pixels
_MAP_TILE = 40
_CLOSE = 0.72  # of a tile: how near two images on the map may be
_MOST_ON_MAP = 1_500
_INK_SIDE = 32  # gray images up to this size are drawn as ink in the cluster's color, photographs as they are


def banner(
    images: np.ndarray,
    clusters: np.ndarray,
    distances: np.ndarray,
    embeddings: np.ndarray,
    out: Path,
    *,
    num_clusters: int = 10,
    members: int = 12,
) -> Path:
    """Draw the biggest clusters' nearest members as strips, and all images on a map colored by cluster.

    Args:
        images: (N, H, W) or (N, H, W, C) uint8.
        clusters: (N,) integers, -1 = none.
        distances: (N,) to the cluster's center.
        embeddings: (N, F) finite.
        out: where to write; the suffix says what, such as `.png` or `.webp`.
        num_clusters: how many strips.
        members: how many images a strip.

    Returns:
        `out`.

    Raises:
        ValueError: the arrays differ in length, or no image has a cluster.
    """
    lengths = {len(images), len(clusters), len(distances), len(embeddings)}
    if len(lengths) != 1:
        raise ValueError(f"images, clusters, distances and embeddings differ in length: {sorted(lengths)}")
    numbers, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
    if not len(numbers):
        raise ValueError("no image has a cluster: all are -1")
    biggest = np.argsort(-sizes, kind="stable")
    colors = dict(zip(numbers[biggest].tolist(), cluster_colors(len(numbers)), strict=True))
    shown = np.sort(biggest[:num_clusters])

    height = len(shown) * (_TILE + _GAP) - _GAP
    strips = _NAME + members * (_TILE + _GAP) - _GAP
    plane = (int(height * 1.32), height)
    sheet = Image.new("RGB", (3 * _MARGIN + strips + plane[0], 2 * _MARGIN + _HEAD + height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top, right = _MARGIN + _HEAD, 2 * _MARGIN + strips
    pen.text((_MARGIN, _MARGIN), f"{len(numbers):,} clusters, nearest members first", _INK, ImageFont.load_default(34))
    pen.text((right, _MARGIN), f"{len(images):,} embeddings", _INK, ImageFont.load_default(34))
    for row, k in enumerate(shown):
        number, y = int(numbers[k]), top + row * (_TILE + _GAP)
        pen.rounded_rectangle((_MARGIN, y + 22, _MARGIN + 10, y + _TILE - 22), 5, colors[number])
        pen.text((_MARGIN + 28, y + 14), f"{number}", _INK, ImageFont.load_default(28))
        pen.text((_MARGIN + 28, y + 47), f"{sizes[k]:,} images", _SOFT, ImageFont.load_default(20))
        group = np.flatnonzero(clusters == number)
        for column, i in enumerate(group[np.argsort(distances[group], kind="stable")][:members]):
            x = _MARGIN + _NAME + column * (_TILE + _GAP)
            _paste(sheet, images[i], (x, y), _TILE, colors[number], ground=_RAISED)
    _draw_map(sheet, (right, top), plane, images, clusters, embeddings, colors)
    write_picture(sheet, out)
    return out


def _draw_map(
    sheet: Image.Image,
    corner: tuple[int, int],
    size: tuple[int, int],
    images: np.ndarray,
    clusters: np.ndarray,
    embeddings: np.ndarray,
    colors: dict[int, str],
) -> None:
    rows = sample_rows(len(images), _MOST_ON_MAP, clusters)
    places = lay_out(np.ascontiguousarray(embeddings[rows], np.float32))
    if places is None:
        return
    left, top = corner
    taken: set[tuple[int, int]] = set()  # at most one image a cell, so that each can be made out
    for i, (x, y) in zip(rows, places * (np.array(size) - _MAP_TILE), strict=True):
        cell = (int(x / (_MAP_TILE * _CLOSE)), int(y / (_MAP_TILE * _CLOSE)))
        if cell not in taken:
            taken.add(cell)
            _paste(sheet, images[i], (left + int(x), top + int(y)), _MAP_TILE, colors.get(int(clusters[i]), _SOFT))


def _paste(
    sheet: Image.Image, image: np.ndarray, at: tuple[int, int], side: int, color: str, ground: str | None = None
) -> None:
    """One image on the sheet; `ground` is the tile behind ink."""
    gray = image.ndim == 2 or image.shape[-1] == 1
    picture = Image.fromarray(np.ascontiguousarray(image.reshape(image.shape[:2]) if gray else image[..., :3]))
    smooth = Image.Resampling.BICUBIC if picture.width < side else Image.Resampling.LANCZOS
    corners = Image.new("L", (side, side), 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, side - 1, side - 1), side // 8, 255)
    if not (gray and max(picture.size) <= _INK_SIDE):
        sheet.paste(picture.convert("RGB").resize((side, side), smooth), at, corners)
        return
    inset = side // 12 if ground else 0
    if ground:
        sheet.paste(ground, (*at, at[0] + side, at[1] + side), corners)
    inner = side - 2 * inset
    box = (at[0] + inset, at[1] + inset, at[0] + inset + inner, at[1] + inset + inner)
    sheet.paste(color, box, picture.resize((inner, inner), smooth))
