r"""Bytes of an image file to upright uint8 pixels, or the reason why not.

JPEG, PNG, WebP, BMP, GIF, TIFF and AVIF, and HEIC and cameras' raw files where their extras are installed. Formats are
recognized by their first bytes, never by the name. H, W: height and width after EXIF's rotation; C: 1 (gray) or 3.
How stored values become 0..255:

| stored as | becomes |
|---|---|
| 8-bit gray, RGB | itself |
| 1-, 2- and 4-bit | spread over 0..255 |
| palette | its colors |
| any alpha or transparent color | composited on white |
| CMYK, YCbCr | RGB by Pillow's formula; color profiles are not applied |
| 10 to 64 bits, signed numbers, floats | spread over 0..255 from the range of the set of images, see `ranges.py`; \
without a set: from the range of their type |
| NaN or infinity | refused (`not_finite`), unless the file declares them as "no data", which is black |
| RGB asked of gray, gray asked of RGB | three equal channels; ITU-R 601-2 luma |

Of several frames or pages the first is used. Orientation comes from EXIF's tag 274; a damaged EXIF block counts as
upright. Pillow's plugins are called directly, not through `Image.open`: its pixel limit is a global of the process and
warns, and its other forty formats are not ours to defend.

Departs: a truncated file is refused even where Pillow could fill the rest with gray.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
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
from selfcluster.data.ranges import Stored, ValueRange, to_channels, to_pixels

MIN_SIDE = 8
_STRIPE = 100  # a view's short side sets the scale: of 8 x 200,000 pixels one of 224 px would make five billion bytes
_MAX_SCANS = 64  # of a progressive JPEG; encoders make about 10, and each one costs a pass over the whole image
_BACKGROUND = (255, 255, 255)  # what a page would show behind a transparent image
_ORIENTATION = 0x0112
_BYTES_A_PIXEL = 12  # Pillow's four, the converted image's four, the array's three or four

# EXIF orientation -> what makes the image upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class OpenedImage:
    """An image whose header has been read and found acceptable; `pixels` decodes it, once.

    Attributes:
        height, width: upright and as stored (before any shrinking).
        stored_size: (width, height) before the image is turned upright.
        is_deep: whether its values have a range that belongs to the set of images (see `ranges.py`).
        value_range: that range; None for an image that belongs to no set.
        decode_bytes: about how much memory decoding takes.
    """

    is_deep = False

    def __init__(self, width: int, height: int, orientation: int) -> None:
        self._orientation, self.stored_size = orientation, (width, height)
        self.height, self.width = (width, height) if orientation >= 5 else (height, width)
        self.value_range: ValueRange | None = None
        self.decode_bytes = width * height * _BYTES_A_PIXEL

    @property
    def frames(self) -> int:
        """How many frames or pages the file has, 1 where those behind the first are damaged; the first is used."""
        return 1

    def pixels(self, channels: int | None = 3, shrink_to: int | None = None) -> np.ndarray:
        """Decode to (H, W, C) uint8, upright.

        Args:
            channels: 3, 1, or None for 1 where the file is gray and 3 elsewhere.
            shrink_to: the shorter side that suffices, in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size
                where that leaves at least so much; other formats ignore it.

        Raises:
            BadImage: truncated, damaged, not_finite, unsupported.
        """
        raise NotImplementedError

    def stored(self) -> Stored:
        """Decode to the values that the file holds, not yet spread over 0..255; for deep images only."""
        raise NotImplementedError


class PillowImage(OpenedImage):
    """An image that Pillow decodes."""

    def __init__(self, image: ImageFile.ImageFile, data: bytes, max_pixels: int) -> None:
        super().__init__(*image.size, _orientation(image))
        self._image, self._data = image, data
        self.is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        self._scale = 1.0  # a JPEG above the limit is decoded smaller
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            self._scale = _least_scale(self.height * self.width, max_pixels)
            self.decode_bytes = int(self.decode_bytes / self._scale**2)

    @property
    def frames(self) -> int:
        try:
            return getattr(self._image, "n_frames", 1)
        except Exception:  # as in `pixels`
            return 1

    def pixels(self, channels: int | None = 3, shrink_to: int | None = None) -> np.ndarray:
        if self.is_deep:
            return to_channels(to_pixels(self.stored(), self.value_range), channels)
        try:
            if isinstance(self._image, JpegImagePlugin.JpegImageFile):
                _shrink(self._image, shrink_to, self._scale)
            self._image.load()
            image = _as_mode(_to_eight_bits(self._image), {None: None, 1: "L", 3: "RGB"}[channels])
            array = np.asarray(self._upright(image))
        except BadImage:
            raise
        except Exception as error:  # a decoder that is fed hostile bytes may raise anything, and no file may end a run
            raise _reason(error, self._image.format) from error
        self._check_end()
        return array[:, :, None] if array.ndim == 2 else array

    def stored(self) -> Stored:
        try:
            self._image.load()
            image = self._image
            values = np.asarray(self._upright(image))[:, :, None]
        except Exception as error:  # as in `pixels`
            raise _reason(error, self._image.format) from error
        self._check_end()
        if not image.mode.startswith("I;16"):
            return Stored(values, 32)
        transparent = image.info.get("transparency")
        alpha = (values[:, :, 0] != transparent).astype(np.float64) if isinstance(transparent, int) else None
        return Stored(values.astype(np.uint16), 16, alpha)

    def _upright(self, image: Image.Image) -> Image.Image:
        return image.transpose(_UPRIGHT[self._orientation]) if self._orientation in _UPRIGHT else image

    def _check_end(self) -> None:
        # Pillow stops reading a PNG at its last pixel: without the end marker the file is a cut one
        if self._image.format == "PNG" and self._data.rfind(b"IEND") < 0:
            raise BadImage("truncated", "PNG without its end marker")


class ValuesImage(OpenedImage):
    """An image of which another library reads the values: `read` returns them as stored."""

    def __init__(
        self,
        width: int,
        height: int,
        orientation: int,
        read: Callable[[], Stored],
        frames: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(width, height, orientation)
        self._read, self._frames = read, frames
        self.decode_bytes = 3 * width * height * _BYTES_A_PIXEL  # the spreading is done with 64 bits a value

    @property
    def frames(self) -> int:
        return self._frames() if self._frames is not None else 1

    def pixels(self, channels: int | None = 3, shrink_to: int | None = None) -> np.ndarray:
        pixels = to_pixels(self.stored(), self.value_range if self.is_deep else None)
        pixels = _turn(to_channels(pixels, channels), self._orientation)
        return np.ascontiguousarray(pixels)

    def stored(self) -> Stored:
        return self._read()


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
        raise _reason(error, kind.name) from error
    width, height = image.size
    if kind.name == "JPEG":
        _check_jpeg(data, width * height, max_pixels)
        _check_size(width, height, max(max_pixels, width * height), min_side)
    else:
        _check_size(width, height, max_pixels, min_side)
    if kind.name == "PNG" and png.is_deep_color(data):
        opened = ValuesImage(width, height, _orientation(image), lambda: png.read_deep_color(data))
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
        raise _reason(error, "TIFF") from error
    return PillowImage(image, data, max_pixels)


def _open_extra(kind: str, data: bytes, max_pixels: int, min_side: int) -> OpenedImage:
    """HEIC or a camera's raw file, through the library of its extra; both come upright."""
    try:
        width, height, read = (read_heic if kind == "HEIC" else read_raw)(data)
    except BadImage:
        raise
    except Exception as error:  # as in `pixels`
        raise _reason(error, kind) from error
    _check_size(width, height, max_pixels, min_side)

    def stored() -> Stored:
        try:
            return Stored(read(), 8)
        except Exception as error:  # as in `pixels`
            raise _reason(error, kind) from error

    return ValuesImage(width, height, 1, stored)


def _check_size(width: int, height: int, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise BadImage("too_large", f"{width}x{height} pixels, more than {max_pixels:,}; --max-megapixels raises this")
    if min(width, height) < min_side:
        raise BadImage("too_small", f"{width}x{height} pixels, the shorter side needs at least {min_side}")
    if max(width, height) > _STRIPE * min(width, height):
        raise BadImage("too_small", f"{width}x{height} pixels, the shorter side needs a {_STRIPE}th of the longer one")


def _check_jpeg(data: bytes, pixels: int, max_pixels: int) -> None:
    """Refuse a JPEG that is too large at 1/8, too large while all its coefficients are kept, or made of many scans."""
    progressive = any(
        data.find(marker, 0, 1 << 20) >= 0 for marker in (b"\xff\xc2\0\x0b", b"\xff\xc2\0\x11", b"\xff\xc2\0\x14")
    )
    if pixels > max_pixels * (1 if progressive else 64):
        kind = "progressive JPEG, which cannot be decoded in parts" if progressive else "JPEG, too many even at 1/8"
        raise BadImage(
            "too_large", f"{pixels:,} pixels, more than {max_pixels:,}: {kind}; --max-megapixels raises this"
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


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read."""
    if isinstance(image, TiffImagePlugin.TiffImageFile | AvifImagePlugin.AvifImageFile):
        return 1  # Pillow turns these upright itself when it loads
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        return 1
    body = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", body, 4)
        (count,) = struct.unpack_from(order + "H", body, start)
        for k in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", body, start + 2 + 12 * k)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _least_scale(pixels: int, max_pixels: int) -> float:
    """The smallest of 1, 2, 4 and 8 by which both sides must be divided to stay within the limit."""
    return next((scale for scale in (1.0, 2.0, 4.0) if pixels / scale**2 <= max_pixels), 8.0)


def _shrink(image: JpegImagePlugin.JpegImageFile, side: int | None, least: float) -> None:
    scale = max(least, min(image.size) / max(1, side) if side is not None else 1.0)
    if scale >= 2:
        width, height = image.size
        image.draft(None, (max(1, math.floor(width / scale)), max(1, math.floor(height / scale))))


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) upright, by the same eight orientations as `_UPRIGHT`."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Mode L or RGB, by the table above."""
    mode = image.mode
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _composite(image)
    if mode in ("1", "L"):
        return _as_mode(image, "L")
    if mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return _as_mode(image, "RGB")
    raise BadImage("unsupported", f"pixels stored as {mode!r}")


def _as_mode(image: Image.Image, mode: str | None) -> Image.Image:
    """`convert` copies even where nothing changes, and 64 megapixels are 256 MB."""
    return image if mode in (None, image.mode) else image.convert(mode)


def _composite(image: Image.Image) -> Image.Image:
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if gray else "RGBA")  # premultiplied alpha is undone first
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
    return Image.alpha_composite(below, image).convert("L" if gray else "RGB")


def _reason(error: Exception, format: str | None) -> BadImage:
    """What a decoder's error means: a cut file, a kind that it does not know, or damage."""
    text = f"{format or 'image'}: {error}" if str(error) else f"{format or 'image'}: {type(error).__name__}"
    if isinstance(error, MemoryError):
        return BadImage("no_memory", f"{format or 'image'}: not enough memory to decode it")
    lower = text.lower()
    if isinstance(error, EOFError) or "truncated" in lower or "unexpected end" in lower:
        return BadImage("truncated", text)
    unknown = ("unsupported", "not supported", "unknown", "cannot handle", "not available", "unrecognized")
    return BadImage("unsupported" if any(word in lower for word in unknown) else "damaged", text)
