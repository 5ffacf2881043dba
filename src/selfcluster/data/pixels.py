r"""An image whose header has been read, and how its stored values become upright uint8 pixels.

H, W: height and width after EXIF's rotation; C: 1 (gray) or 3.

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
upright.

Departs: a truncated file is refused even if Pillow could fill the rest with gray.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile, JpegImagePlugin, TiffImagePlugin

from selfcluster.data.errors import BadImage
from selfcluster.data.ranges import Stored, ValueRange, to_channels, to_pixels

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
        super().__init__(*image.size, orientation_of(image))
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
            raise reason_for(error, self._image.format) from error
        self._check_end()
        return array[:, :, None] if array.ndim == 2 else array

    def stored(self) -> Stored:
        try:
            self._image.load()
            image = self._image
            values = np.asarray(self._upright(image))[:, :, None]
        except Exception as error:  # as in `pixels`
            raise reason_for(error, self._image.format) from error
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


def orientation_of(image: ImageFile.ImageFile) -> int:
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


def reason_for(error: Exception, format: str | None) -> BadImage:
    """What a decoder's error means: a cut file, a kind that it does not know, or damage."""
    text = f"{format or 'image'}: {error}" if str(error) else f"{format or 'image'}: {type(error).__name__}"
    if isinstance(error, MemoryError):
        return BadImage("no_memory", f"{format or 'image'}: not enough memory to decode it")
    lower = text.lower()
    if isinstance(error, EOFError) or "truncated" in lower or "unexpected end" in lower:
        return BadImage("truncated", text)
    unknown = ("unsupported", "not supported", "unknown", "cannot handle", "not available", "unrecognized")
    return BadImage("unsupported" if any(word in lower for word in unknown) else "damaged", text)
