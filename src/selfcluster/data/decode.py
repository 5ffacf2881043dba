r"""Bytes of an image file to upright uint8 pixels, or the reason why not.

JPEG, PNG, WebP, BMP, GIF and TIFF, recognized by their first bytes, never by their name. H, W: height and width after
EXIF's rotation, C: 1 (gray) or 3 (RGB). How stored values become 0..255:

| stored as | becomes |
|---|---|
| 8-bit gray, RGB | itself |
| 1-bit | 0 and 255 |
| palette | its colors |
| any alpha or transparent color | composited on white |
| CMYK, YCbCr | RGB by Pillow's formula; color profiles are not applied |
| 16-bit gray | divided by 257 and rounded, so that 65535 is 255 |
| 16-bit RGB | the high byte, which is how Pillow reads it |
| 32-bit integers, floats | spread over 0..255 and rounded from the first of these ranges that holds the whole image: \
0..1 (floats only), 0..255, 0..65535, else its own smallest..largest |
| NaN or infinity | refused: `not_finite` |
| RGB asked of gray, gray asked of RGB | three equal channels; ITU-R 601-2 luma |

Values are never clipped in silence. Of several frames or pages the first is used. Orientation comes from EXIF's tag
274; a damaged EXIF block counts as upright. The plugins are called directly, not through `Image.open`: its pixel limit
is a global of the process and warns, and its other forty formats are not ours to defend.

Departs: a truncated file is refused even where Pillow could fill the rest with gray.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from selfcluster.data.errors import BadImage

MAX_PIXELS = 64_000_000
MIN_SIDE = 8
_STRIPE = 100  # a view's short side sets the scale: of 8 x 200,000 pixels one of 224 px would make five billion bytes
_BACKGROUND = (255, 255, 255)  # what a page would show behind a transparent image
_ORIENTATION = 0x0112

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

    `height` and `width` are upright and as stored (before any shrinking), `frames` counts its pages.
    """

    def __init__(self, image: ImageFile.ImageFile, orientation: int, data: bytes) -> None:
        self._image = image
        self._data = data
        self._orientation = orientation
        width, height = image.size
        self.height, self.width = (width, height) if orientation >= 5 else (height, width)

    @property
    def frames(self) -> int:
        """How many frames or pages the file has, 1 where those behind the first are damaged; the first is used."""
        try:
            return getattr(self._image, "n_frames", 1)
        except Exception:  # as in `pixels`
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
        try:
            if shrink_to is not None and isinstance(self._image, JpegImagePlugin.JpegImageFile):
                _shrink(self._image, shrink_to)
            self._image.load()
            image = _to_eight_bits(self._image)
            if channels is not None:
                image = image.convert("L" if channels == 1 else "RGB")
            if self._orientation in _UPRIGHT:
                image = image.transpose(_UPRIGHT[self._orientation])
            array = np.asarray(image)
        except BadImage:
            raise
        except Exception as error:  # a decoder fed hostile bytes may raise anything, and no file may end a run
            raise _why(error, self._image.format) from error
        # Pillow stops reading a PNG at its last pixel: without the end marker the file is a cut one
        if self._image.format == "PNG" and self._data.rfind(b"IEND") < 0:
            raise BadImage("truncated", "PNG without its end marker")
        return array[:, :, None] if array.ndim == 2 else array


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE) -> OpenedImage:
    """Read the header of an image file and refuse what decoding could not survive or nobody could use.

    Args:
        data: the file's bytes.
        max_pixels: most pixels an image may claim to have; checked before anything is decoded.
        min_side: fewest pixels of the shorter side.

    Raises:
        BadImage: empty, not_an_image, unsupported, truncated, damaged, too_large, too_small.
    """
    if not data:
        raise BadImage("empty", "the file has no bytes")
    plugin = _plugin(data)
    if plugin is WebPImagePlugin.WebPImageFile:
        _check_size(*_webp_size(data), max_pixels, min_side)  # libwebp allocates its canvas on opening
    try:
        image = plugin(io.BytesIO(data))
    except Exception as error:  # as in `pixels`
        raise _why(error, plugin.format) from error
    width, height = image.size
    _check_size(width, height, max_pixels, min_side)
    return OpenedImage(image, _orientation(image), data)


def decode(
    data: bytes,
    *,
    channels: int | None = 3,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    shrink_to: int | None = None,
) -> np.ndarray:
    """Decode an image file to (H, W, C) uint8 pixels, upright. `open_image` and `OpenedImage.pixels` in one.

    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (12, 9), (255, 0, 0)).save(buffer, "PNG")
    >>> decode(buffer.getvalue()).shape
    (9, 12, 3)
    """
    return open_image(data, max_pixels=max_pixels, min_side=min_side).pixels(channels, shrink_to)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Nobody asks for the resolution here, and a damaged EXIF block would warn."""


def _plugin(data: bytes) -> Any:
    if data[:3] == b"\xff\xd8\xff":
        return _Jpeg
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return PngImagePlugin.PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return GifImagePlugin.GifImageFile
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffImagePlugin.TiffImageFile
    if data[:2] == b"BM":
        return BmpImagePlugin.BmpImageFile
    if data[4:8] == b"ftyp" or data[128:132] == b"DICM" or data[:4] == b"8BPS" or data[4:8] == b"jP  ":
        kind = "DICOM" if data[128:132] == b"DICM" else data[:12].strip(b"\0").decode("ascii", "backslashreplace")
        raise BadImage("unsupported", f"{kind}: convert it to JPEG or PNG")
    raise BadImage("not_an_image", f"begins with {data[:12]!r}")


def _check_size(width: int, height: int, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise BadImage("too_large", f"{width}x{height} pixels, more than {max_pixels:,}")
    if min(width, height) < min_side:
        raise BadImage("too_small", f"{width}x{height} pixels, the shorter side needs {min_side}")
    if max(width, height) > _STRIPE * min(width, height):
        raise BadImage("too_small", f"{width}x{height} pixels, the shorter side needs a {_STRIPE}th of the longer one")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the container's first chunk (RFC 9649, sections 2.5 to 2.7)."""
    claimed = int.from_bytes(data[4:8], "little") + 8
    if len(data) < max(30, claimed):
        raise BadImage("truncated", f"WebP of {claimed} bytes, {len(data)} are there")
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns a TIFF upright itself when it loads
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


def _shrink(image: JpegImagePlugin.JpegImageFile, side: int) -> None:
    shorter = min(image.size)
    if shorter >= 2 * side:
        scale = shorter / max(1, side)
        image.draft(None, (max(1, int(image.size[0] / scale)), max(1, int(image.size[1] / scale))))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Mode L or RGB, by the table above."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _sixteen_bits(image)
    if mode in ("I", "F"):
        return Image.fromarray(_spread(np.asarray(image)))
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _composite(image)
    if mode in ("1", "L"):
        return image.convert("L")
    if mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise BadImage("unsupported", f"pixels stored as {mode!r}")


def _composite(image: Image.Image) -> Image.Image:
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if gray else "RGBA")  # premultiplied alpha is undone first
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
    return Image.alpha_composite(below, image).convert("L" if gray else "RGB")


def _sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)  # (H, W)
    pixels = ((values + 128) // 257).astype(np.uint8)  # 128 = half of 257, rounded down: exact rounding
    if isinstance(transparent := image.info.get("transparency"), int):
        pixels[values == transparent] = _BACKGROUND[0]
    return Image.fromarray(pixels)


def _spread(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise BadImage("not_finite", f"{int((~np.isfinite(values)).sum())} pixels are NaN or infinite")
    lowest, highest = float(values.min()), float(values.max())
    ranges = [(0.0, 1.0)] if values.dtype.kind == "f" else []
    ranges += [(0.0, 255.0), (0.0, 65535.0), (lowest, highest)]
    low, high = next((low, high) for low, high in ranges if low <= lowest and highest <= high)
    share = (values.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.floor(share * 255 + 0.5).astype(np.uint8)


def _why(error: Exception, format: str | None) -> BadImage:
    text = f"{format or 'image'}: {error}" if str(error) else f"{format or 'image'}: {type(error).__name__}"
    cut = isinstance(error, EOFError) or "truncated" in text.lower() or "unexpected end" in text.lower()
    return BadImage("truncated" if cut else "damaged", text)
