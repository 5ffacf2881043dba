"""PNG: leave its metadata out, and read 16-bit color, of which Pillow keeps only the high byte."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import PngImagePlugin

from selfcluster.data.errors import BadImage
from selfcluster.data.ranges import Stored

_SIGNATURE = 8
# Pillow inflates them on opening and refuses the whole file where they are large
_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_GRAY_ALPHA, _COLOR, _COLOR_ALPHA = 4, 2, 6


def without_metadata(data: bytes) -> bytes:
    """Return the PNG without its text and color profile; the same bytes where it has none or its chunks are damaged.

    The pixels do not depend on them. EXIF (eXIf), which has the orientation, stays.
    """
    parts: list[bytes] = [data[:_SIGNATURE]]
    place = start = _SIGNATURE
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        after = place + 12 + length
        if after > len(data):
            break
        if kind in _METADATA:
            parts.append(data[start:place])
            start = after
        if kind == b"IEND":
            break
        place = after
    return data if start == _SIGNATURE else b"".join([*parts, data[start:]])


def is_deep_color(data: bytes) -> bool:
    """Whether the image has 16 bits a channel and more than one channel."""
    return data[12:16] == b"IHDR" and data[24] == 16 and data[25] in (_GRAY_ALPHA, _COLOR, _COLOR_ALPHA)


def read_deep_color(data: bytes) -> Stored:
    """Read 16-bit gray with alpha, RGB or RGBA; without imagecodecs (the extra `tiff`) in steps of 257.

    Raises:
        BadImage: truncated or damaged.
    """
    if data.rfind(b"IEND") < 0:
        raise BadImage("truncated", "PNG without its end marker")
    try:
        try:
            import imagecodecs

            values = np.asarray(imagecodecs.png_decode(data))
        except ImportError:
            values = np.asarray(PngImagePlugin.PngImageFile(io.BytesIO(data))).astype(np.uint16) * np.uint16(257)
    except Exception as error:  # a decoder that is fed hostile bytes may raise anything
        raise BadImage("damaged", f"PNG: {error}") from error
    if values.ndim != 3 or values.dtype != np.uint16:
        raise BadImage("unsupported", f"PNG: pixels of shape {values.shape} and type {values.dtype}")
    if values.shape[2] in (2, 4):
        return Stored(values[:, :, :-1], 16, values[:, :, -1] / 65535.0)
    return Stored(values, 16)
