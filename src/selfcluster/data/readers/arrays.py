"""Images in memory: an array (N, H, W), (N, H, W, 1) or (N, H, W, 3) of any plain type."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from selfcluster.data.errors import BadImage, DataError
from selfcluster.data.listing import Listing
from selfcluster.data.names import Names
from selfcluster.data.ranges import Stored, ValueRange, to_pixels
from selfcluster.data.readers.base import Opened
from selfcluster.data.store import ReadLog


class Arrays:
    """Reads rows of an array in memory."""

    def __init__(self, images: np.ndarray, rows: np.ndarray | None = None) -> None:
        self._images = images  # (M, H, W, C) uint8
        self._rows = np.arange(len(images)) if rows is None else rows

    def read(self, i: int, log: ReadLog) -> np.ndarray:
        """(H, W, C) uint8."""
        return self._images[self._rows[i]]

    def take(self, rows: np.ndarray) -> Arrays:
        """The reader of a subset; the array is shared."""
        return Arrays(self._images, self._rows[rows])

    def storage_order(self) -> np.ndarray:
        """(N,) the rows as they are."""
        return np.arange(len(self._rows))


def open_array(images: np.ndarray, kind: str = "array", value_range: ValueRange | None = None) -> Opened:
    """Return the images of an array; their ids are their positions, padded with zeros.

    `value_range` spreads an array of more than 8 bits; without it, the values must use a known range.
    """
    images = _as_bytes(images, value_range)
    width = len(str(max(0, len(images) - 1)))
    names = Names.of(f"{i:0{width}d}".encode() for i in range(len(images)))
    sizes = np.full(len(images), images[0].nbytes if len(images) else 0)
    # an array has no modification times: a hash of each image's pixels takes their place
    hashes = [int.from_bytes(hashlib.blake2b(x.tobytes(), digest_size=7).digest(), "little") for x in images]
    return Opened(Arrays(images), Listing(names, sizes, np.array(hashes, dtype=np.int64)), kind)


def open_digits() -> Opened:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels, 0..16 spread over 0..255, with their labels as texts."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    opened = open_array(np.floor(digits.images * (255 / 16) + 0.5).astype(np.uint8), "builtin")
    return replace(opened, texts=[str(label) for label in digits.target])


def _as_bytes(images: np.ndarray, value_range: ValueRange | None) -> np.ndarray:
    """(N, H, W, C) uint8 from an array of other shape or type; one rule for the whole array, nothing is clipped."""
    if images.ndim == 3 and images.shape[2] == 3:
        raise DataError(
            f"an array of shape {images.shape} can be one color image, or {images.shape[0]} gray images of width 3; "
            "make it (N, H, W, C)"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        hint = "; move the channels last" if images.ndim == 4 and images.shape[1] in (1, 3) else ""
        raise DataError(f"an array of shape {images.shape} is not (N, H, W), (N, H, W, 1) or (N, H, W, 3){hint}")
    if images.dtype == np.uint8 or not len(images):
        return images.astype(np.uint8, copy=False)
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if value_range is not None:
        try:
            return np.stack([to_pixels(Stored(image, 8 * image.itemsize), value_range) for image in images])
        except BadImage as error:
            raise DataError(f"an array of {images.dtype}: {error.detail}") from error
    if images.dtype == np.uint16:
        return ((images.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(images.min()), float(images.max())
    top = 1.0 if images.dtype.kind == "f" and high <= 1 else 255.0
    if not (low >= 0 and high <= top):  # written so that NaN fails
        raise DataError(
            f"an array of {images.dtype} with values from {low:g} to {high:g}; scale it to 0..1 or 0..255, "
            "or give range=(LOW, HIGH)"
        )
    return np.floor(images * (255.0 / top) + 0.5).astype(np.uint8)
