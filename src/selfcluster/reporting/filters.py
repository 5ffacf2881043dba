"""Pictures of a network's inside: its first filters, images that its filters answer to, and its classes on a plane.

F filters, C channels, S side of an image in pixels, L classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from selfcluster.files import write_atomically

_CELL, _GAP = 96, 4  # pixels
_PAPER = 255
NINE = 9


def filter_grid(weights: np.ndarray, cell: int = 48) -> Image.Image:
    """Return the filters (F, C, h, w) side by side, each stretched from its least weight (black) to its greatest.

    Three channels are shown as colors; the channels of other filters as gray squares next to one another.
    """
    tiles = []
    for weight in weights:
        low, high = float(weight.min()), float(weight.max())
        pixels = ((weight - low) / (high - low) if high > low else np.full(weight.shape, 0.5)) * 255
        parts = [pixels.transpose(1, 2, 0)] if len(weight) == 3 else [np.repeat(p[:, :, None], 3, 2) for p in pixels]
        images = [Image.fromarray(part.round().astype(np.uint8)) for part in parts]
        tiles.append([image.resize((cell, cell), Image.Resampling.NEAREST) for image in images])
    columns = int(np.ceil(np.sqrt(len(tiles))))
    wide = len(tiles[0]) * cell + _GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * (cell + _GAP) + _GAP), (_PAPER,) * 3)
    for n, tile in enumerate(tiles):
        for k, image in enumerate(tile):
            at = (_GAP + n % columns * wide + k * cell, _GAP + n // columns * (cell + _GAP))
            sheet.paste(image, at)
    return sheet


def ascent_sheet(made: np.ndarray, strongest: Sequence[Sequence[Image.Image | None]]) -> Image.Image:
    """Return a row a filter: the image (S, S, 3) uint8 made for it, then the images that it answers to most."""
    columns = 1 + max((len(row) for row in strongest), default=0)
    size = (columns * (_CELL + _GAP) + 3 * _GAP, len(made) * (_CELL + _GAP) + _GAP)
    sheet = Image.new("RGB", size, (_PAPER,) * 3)
    for n, (image, row) in enumerate(zip(made, strongest, strict=True)):
        y = _GAP + n * (_CELL + _GAP)
        sheet.paste(_sized(Image.fromarray(image)), (_GAP, y))
        for k, picture in enumerate(row):
            if picture is not None:
                sheet.paste(_sized(picture.convert("RGB")), (3 * _GAP + (k + 1) * (_CELL + _GAP), y))
    return sheet


def stretched(images: np.ndarray) -> np.ndarray:
    """Return images (n, C, S, S) of any values as (n, S, S, 3) uint8: each around its middle, four deviations wide.

    More than three channels, and two, are shown as the gray of their mean.
    """
    images = images.astype(np.float64)
    if images.shape[1] != 3:
        images = np.repeat(images.mean(axis=1, keepdims=True), 3, axis=1)
    middle = images.mean(axis=(1, 2, 3), keepdims=True)
    spread = images.std(axis=(1, 2, 3), keepdims=True)
    pixels = 127.5 + 255 / 4 * (images - middle) / np.maximum(spread, 1e-12)
    return pixels.clip(0, 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def write_class_map(places: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw the names of L classes at their places (L, 2)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots()
    axes.scatter(places[:, 0], places[:, 1], s=12, color="#1f5fa8")
    for name, (x, y) in zip(names, places, strict=True):
        axes.annotate(name[:40], (x, y), textcoords="offset points", xytext=(4, 3), fontsize=8)
    axes.set_axis_off()
    axes.margins(0.12)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())


def _sized(image: Image.Image) -> Image.Image:
    smooth = Image.Resampling.NEAREST if image.width < _CELL else Image.Resampling.LANCZOS
    return image.resize((_CELL, _CELL), smooth)
