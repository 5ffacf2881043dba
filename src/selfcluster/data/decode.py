"""Open an image file and refuse what cannot be decoded safely, or decode it in one call.

JPEG, PNG, WebP, BMP, GIF, TIFF and AVIF; HEIC and cameras' raw files if their extras are installed. Formats are
recognized by their first bytes, never by the name. `pixels.py` has the rules by which stored values become pixels.
Pillow's plugins are called directly, not through `Image.open`: its pixel limit is a global of the process and only
warns, and its forty other formats are not needed here.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from selfcluster.data import png, tiff
from selfcluster.data.budget import MAX_PIXELS
from selfcluster.data.errors import BadImage
from selfcluster.data.extras import read_heic, read_raw
from selfcluster.data.kinds import HEADER_BYTES, recognize
from selfcluster.data.pixels import OpenedImage, PillowImage, ValuesImage, orientation_of, reason_for
from selfcluster.data.ranges import Stored, ValueRange

MIN_SIDE = 8
_STRIPE = 100  # a view's short side sets the scale: of 8 x 200,000 pixels one of 224 px would make five billion bytes
_MAX_SCANS = 64  # of a progressive JPEG; encoders make about 10, and each one costs a pass over the whole image


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE) -> OpenedImage:
    """Read the header of an image file and refuse what cannot be decoded safely or is of no use.

    Args:
        data: the file's bytes.
        max_pixels: most pixels an image may have, as decoded: a JPEG of up to 64 times as many is decoded at 1/2, 1/4
            or 1/8 of its size. Checked before anything is decoded.
        min_side: fewest pixels of the shorter side.

    Raises:
        BadImage: empty, not_an_image, lfs_pointer, unsupported, truncated, damaged, too_large, too_small.
    """
    if not data:
        raise BadImage("empty", "the file has no bytes")
    kind = recognize(data[:HEADER_BYTES])
    if kind.name == "TIFF":
        return _open_tiff(data, max_pixels, min_side)
    if kind.name in ("HEIC", "RAW"):
        return _open_extra(kind.name, data, max_pixels, min_side)
    plugin = _PLUGINS.get(kind.name)
    if plugin is None:
        reason = {"unknown": "not_an_image", "web page": "not_an_image", "AppleDouble": "not_an_image"}
        reason["Git LFS pointer"] = "lfs_pointer"
        detail = f"{kind.name}: {kind.advice}" if kind.advice else f"begins with {data[:12]!r}"
        raise BadImage(reason.get(kind.name, "unsupported"), detail)
    if plugin is WebPImagePlugin.WebPImageFile:
        _check_size(*_webp_size(data), max_pixels, min_side)  # libwebp allocates its canvas on opening
    if kind.name == "PNG":
        data = png.without_metadata(data)
    try:
        image = plugin(io.BytesIO(data))
    except Exception as error:  # as in `pixels`
        raise reason_for(error, kind.name) from error
    width, height = image.size
    if kind.name == "JPEG":
        _check_jpeg(data, width * height, max_pixels)
        _check_size(width, height, max(max_pixels, width * height), min_side)
    else:
        _check_size(width, height, max_pixels, min_side)
    if kind.name == "PNG" and png.is_deep_color(data):
        opened = ValuesImage(width, height, orientation_of(image), lambda: png.read_deep_color(data))
        opened.is_deep = True
        return opened
    return PillowImage(image, data, max_pixels)


def decode(
    data: bytes,
    *,
    channels: int | None = 3,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    shrink_to: int | None = None,
    value_range: ValueRange | None = None,
) -> np.ndarray:
    """Decode an image file to (H, W, C) uint8 pixels, upright. `open_image` and `OpenedImage.pixels` in one.

    >>> from PIL import Image
    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (12, 9), (255, 0, 0)).save(buffer, "PNG")
    >>> decode(buffer.getvalue()).shape
    (9, 12, 3)
    """
    image = open_image(data, max_pixels=max_pixels, min_side=min_side)
    image.value_range = value_range
    return image.pixels(channels, shrink_to)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing: the resolution is not used, and a damaged EXIF block would warn."""


_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


def _open_tiff(data: bytes, max_pixels: int, min_side: int) -> OpenedImage:
    header = tiff.read_header(data)
    if header.is_raw:
        return _open_extra("RAW", data, max_pixels, min_side)
    _check_size(header.width, header.height, max_pixels, min_side)
    tiff.check(header, data, max_pixels)
    if not tiff.is_plain(header):
        orientation = header.orientation if 1 <= header.orientation <= 8 else 1
        opened = ValuesImage(
            header.width, header.height, orientation, lambda: tiff.read_values(header, data), lambda: tiff.frames(data)
        )
        opened.is_deep = header.is_deep
        return opened
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except Exception as error:  # as in `pixels`
        raise reason_for(error, "TIFF") from error
    return PillowImage(image, data, max_pixels)


def _open_extra(kind: str, data: bytes, max_pixels: int, min_side: int) -> OpenedImage:
    """HEIC or a camera's raw file, through the library of its extra; both come upright."""
    try:
        width, height, read = (read_heic if kind == "HEIC" else read_raw)(data)
    except BadImage:
        raise
    except Exception as error:  # as in `pixels`
        raise reason_for(error, kind) from error
    _check_size(width, height, max_pixels, min_side)

    def stored() -> Stored:
        try:
            return Stored(read(), 8)
        except Exception as error:  # as in `pixels`
            raise reason_for(error, kind) from error

    return ValuesImage(width, height, 1, stored)


def _check_size(width: int, height: int, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise BadImage("too_large", f"{width}x{height} pixels, more than {max_pixels:,}; --max-megapixels raises this")
    if min(width, height) < min_side:
        raise BadImage("too_small", f"{width}x{height} pixels, the shorter side needs at least {min_side}")
    if max(width, height) > _STRIPE * min(width, height):
        raise BadImage(
            "too_small", f"{width}x{height} pixels: the longer side may be at most {_STRIPE} times the shorter side"
        )


def _check_jpeg(data: bytes, pixels: int, max_pixels: int) -> None:
    """Refuse a JPEG that is too large at 1/8, too large while all its coefficients are kept, or made of many scans."""
    progressive = any(
        data.find(marker, 0, 1 << 20) >= 0 for marker in (b"\xff\xc2\0\x0b", b"\xff\xc2\0\x11", b"\xff\xc2\0\x14")
    )
    if pixels > max_pixels * (1 if progressive else 64):
        kind = (
            "a progressive JPEG, which cannot be decoded smaller" if progressive else "too many even at 1/8 of the size"
        )
        raise BadImage(
            "too_large", f"{pixels:,} pixels: {kind} (limit {max_pixels:,}); --max-megapixels raises the limit"
        )
    if progressive and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise BadImage("too_large", f"progressive JPEG of {scans} scans, more than {_MAX_SCANS}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the container's first chunk (RFC 9649, sections 2.5 to 2.7)."""
    claimed = int.from_bytes(data[4:8], "little") + 8
    if len(data) < max(30, claimed):
        raise BadImage("truncated", f"WebP of {claimed} bytes, but the file has only {len(data)}")
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
