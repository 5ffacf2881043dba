"""One image of a source, opened but not yet decoded, whatever the source is; and what a sample of them looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from selfcluster.data.decode import BadImage, OpenedImage, open_image
from selfcluster.data.sources import Source

_GRAY_TOLERANCE = 8  # levels between channels that JPEG may put into a gray picture stored in color
_DARK = 24  # of 255: a picture without a brighter pixel shows nothing


class ArrayImage:
    """An image that needs no decoding; the interface of `OpenedImage`."""

    frames = 1

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # (H, W, 1 or 3) uint8
        self.height, self.width = array.shape[:2]

    def pixels(self, channels: int | None = 3, shrink_to: int | None = None) -> np.ndarray:
        """(H, W, C) uint8; nothing is ever shrunk."""
        stored = self._array.shape[2]
        if channels in (None, stored):
            return self._array
        if channels == 3:
            return np.repeat(self._array, 3, axis=2)
        return np.asarray(Image.fromarray(self._array).convert("L"))[:, :, None]


def open_row(source: Source, i: int) -> OpenedImage | ArrayImage:
    """Read image i of a source and look at its header.

    Raises:
        BadImage: it cannot be read, or is no usable image.
    """
    data = source.read(i)
    return open_image(data) if isinstance(data, bytes) else ArrayImage(data)


def describe_images(source: Source, sample: int = 256) -> dict[str, Any]:
    """Look at up to `sample` images, evenly spread over the source, to choose settings by.

    Returns:
        sampled, bad (a share), channels (1 if all sampled are gray), height, width and side (shorter) each as
        [min, median, max], frames (how many sampled files have more than one; the first is used), dark (how many have
        no pixel above 24 of 255).
        `side` is None where no sampled image could be read.
    """
    rows = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).astype(np.int64))
    sizes, gray, several, dark = [], True, 0, 0
    for i in rows:
        try:
            image = open_row(source, int(i))
            pixels = image.pixels(None, shrink_to=64).astype(np.int16)
        except BadImage:
            continue
        sizes.append((image.height, image.width, min(image.height, image.width)))
        several += image.frames > 1
        dark += int(pixels.max()) <= _DARK
        gray = gray and (pixels.shape[2] == 1 or int(np.ptp(pixels, axis=2).max()) <= _GRAY_TOLERANCE)
    spread = {
        name: [int(min(values)), int(np.median(values)), int(max(values))]
        for name, values in zip(("height", "width", "side"), zip(*sizes))
    } or {"height": None, "width": None, "side": None}
    bad = 1 - len(sizes) / len(rows)
    return {"sampled": len(rows), "bad": bad, "channels": 1 if gray else 3, "frames": several, "dark": dark, **spread}
