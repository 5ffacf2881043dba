"""TIFF: its header, which library reads it right, and the values that tifffile reads.

Pillow reads the plain kinds right (`is_plain`, compared with the written arrays over a grid in tests/data/test_tiff.py)
and others silently wrong: uncompressed planar 16-bit RGB becomes noise, 16-bit MinIsWhite a negative, signed numbers
wrap, planar gray with alpha becomes white. Those are read by tifffile with imagecodecs (the extra `tiff`), and refused
by name without it. Only the first page is read.
"""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfcluster.data.errors import BadImage
from selfcluster.data.ranges import Stored

_ADVICE = "install the extra for such files: pip install 'selfcluster[tiff]'"
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8: all that the tags below use, text apart
_WANTED = {
    254: "subfile", 256: "width", 257: "height", 258: "bits", 259: "compression", 262: "photometric",
    273: "offsets", 274: "orientation", 277: "samples", 279: "counts", 284: "planar", 322: "tile_width",
    323: "tile_height", 324: "offsets", 325: "counts", 330: "children", 338: "extra", 339: "format", 32997: "depth",
    42113: "nodata", 50706: "dng",
}  # fmt: skip
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_PHOTOMETRIC = {
    0: "MinIsWhite", 1: "MinIsBlack", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab",
    9: "ICCLab", 10: "ITULab", 32803: "color filter array", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_JPEG = (6, 7)
# compressions that Pillow reads: none, fax, LZW, JPEG, deflate, PackBits, LZMA, Zstandard
_PILLOWS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000)
_MAX_VALUES = 1 << 20  # of one tag; an image of 64 megapixels in strips of a row has fewer


@dataclass(frozen=True)
class Header:
    """What the first directory of a TIFF says about its first page."""

    width: int
    height: int
    bits: int
    compression: int
    photometric: int
    orientation: int
    samples: int
    planar: bool
    extra: tuple[int, ...]
    format: int
    nodata: float | None
    little: bool
    tile: tuple[int, int]
    end: int  # the last byte that the pixels use
    is_raw: bool  # a camera's raw file: DNG, or a thumbnail in front of the sensor's values

    @property
    def colors(self) -> int:
        """Samples that are colors, not alpha."""
        return self.samples - len(self.extra)

    @property
    def is_deep(self) -> bool:
        """Whether the range of the set applies: deeper than 8 bits, signed or float. CMYK has a fixed range."""
        return (self.bits > 8 or self.format != _UNSIGNED) and self.photometric != _CMYK

    def __str__(self) -> str:
        kind = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float"}.get(self.format, "complex")
        layout = "planar" if self.planar and self.samples > 1 else "chunky"
        color = _PHOTOMETRIC.get(self.photometric, f"photometric {self.photometric}")
        return f"TIFF with {self.samples} x {self.bits}-bit {kind} {color}, {layout}"


def read_header(data: bytes) -> Header:
    """Read the first directory, of classic TIFF or BigTIFF.

    Raises:
        BadImage: damaged; unsupported where the channels differ in depth.
    """
    try:
        tags, little = _read_tags(data)
    except (struct.error, ValueError) as error:
        raise BadImage("damaged", f"TIFF: its directory cannot be read ({error})") from error

    def one(name: str, default: int) -> int:
        values = tags.get(name) or (default,)
        return int(values[0])

    bits = tags.get("bits") or (1,)
    formats = tags.get("format") or (_UNSIGNED,)
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise BadImage("unsupported", f"TIFF whose channels differ in depth ({', '.join(map(str, bits))} bits)")
    if "width" not in tags or "height" not in tags:
        raise BadImage("damaged", "TIFF without a width or height")
    samples = one("samples", 1)
    offsets, counts = tags.get("offsets", ()), tags.get("counts", ())
    return Header(
        width=one("width", 0),
        height=one("height", 0) * max(1, one("depth", 1)),
        bits=int(bits[0]),
        compression=one("compression", 1),
        photometric=one("photometric", _MINISBLACK),
        orientation=one("orientation", 1),
        samples=samples,
        planar=one("planar", 1) == 2,
        extra=tuple(tags.get("extra", ()))[:samples],
        format=int(formats[0]) if formats[0] != _UNDEFINED else _UNSIGNED,
        nodata=_number(tags.get("nodata")),
        little=little,
        tile=(one("tile_width", 0), one("tile_height", 0)),
        end=max((a + b for a, b in zip(offsets, counts)), default=0),
        is_raw="dng" in tags
        or one("photometric", _MINISBLACK) in (32803, 34892)
        or (one("subfile", 0) & 1 == 1 and "children" in tags),
    )


def check(header: Header, data: bytes, max_pixels: int) -> None:
    """Refuse a page that would be read wrong, or could not be survived; says what would read it.

    Raises:
        BadImage: unsupported, truncated, too_large.
    """
    if header.end > len(data):
        raise BadImage("truncated", f"TIFF whose pixels end at byte {header.end:,} of {len(data):,}")
    if header.tile[0] * header.tile[1] > max(max_pixels, 1 << 20):
        raise BadImage("too_large", f"TIFF in tiles of {header.tile[0]}x{header.tile[1]} pixels")
    expected = {_MINISWHITE: (1,), _MINISBLACK: (1,), _RGB: (3,), _PALETTE: (1,), _CMYK: (4,), _YCBCR: (3,)}
    if header.photometric not in expected:
        raise BadImage("unsupported", f"{header}: convert it to RGB")
    if header.colors not in expected[header.photometric] or len(header.extra) > 1:
        raise BadImage("unsupported", f"{header}: {header.samples} bands; keep one, or three as RGB")
    if header.format not in (_UNSIGNED, _SIGNED, _FLOAT):
        raise BadImage("unsupported", f"{header}: convert it to real numbers")
    simple = header.photometric in (_MINISWHITE, _MINISBLACK, _RGB)
    if not simple and not is_plain(header) and (header.photometric != _CMYK or header.format != _UNSIGNED):
        raise BadImage("unsupported", f"{header}: convert it to RGB")


def is_plain(header: Header) -> bool:
    """Whether Pillow reads the page right."""
    if header.compression not in _PILLOWS:
        return False
    if header.format == _FLOAT:  # Pillow reads compressed big-endian floats wrong
        right_order = header.little or header.compression == 1
        return header.bits == 32 and header.samples == 1 and header.photometric == _MINISBLACK and right_order
    if header.format != _UNSIGNED:
        return False
    if header.bits == 16:
        return header.samples == 1 and header.photometric == _MINISBLACK
    if header.bits not in (1, 2, 4, 8) or (header.samples > 1 and header.bits != 8):
        return False
    if header.photometric in (_MINISWHITE, _MINISBLACK):
        alone = header.samples == 1
        return alone or (header.photometric == _MINISBLACK and not header.planar)
    if header.photometric == _YCBCR:
        return header.compression in _JPEG
    return header.photometric in (_RGB, _CMYK, _PALETTE)


def read_values(header: Header, data: bytes) -> Stored:
    """Read the first page through tifffile.

    Raises:
        BadImage: tifffile is missing (unsupported), or the file is damaged.
    """
    try:
        import tifffile
    except ImportError as error:
        raise BadImage("unsupported", f"{header}: {_ADVICE}") from error
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its remarks would be printed to the console
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            values = page.asarray(maxworkers=1)
    except ImportError as error:  # imagecodecs is missing
        raise BadImage("unsupported", f"{header}: {_ADVICE}") from error
    except BadImage:
        raise
    except Exception as error:  # a decoder that is fed hostile bytes may raise anything
        text = str(error) or type(error).__name__
        if "requires the" in text:  # imagecodecs is missing
            raise BadImage("unsupported", f"{header}: {_ADVICE}") from error
        unknown = "not supported" in text or "not implemented" in text
        raise BadImage("unsupported" if unknown else "damaged", f"{header}: {text}") from error
    values = np.asarray(values)
    if header.samples == 1 and values.ndim == 2:
        values = values[:, :, None]
    elif header.planar and values.ndim == 3:
        values = np.moveaxis(values, 0, 2)
    if values.shape != (header.height, header.width, header.samples):
        raise BadImage("unsupported", f"{header}: it is not a flat image, its shape is {values.shape}")
    return _stored(header, values)


def frames(data: bytes) -> int:
    """Count the pages, by following the directories."""
    try:
        order, big = _order(data)
        place = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        seen: set[int] = set()
        while place and place not in seen and len(seen) < 100_000:
            seen.add(place)
            count = struct.unpack_from(order + ("Q" if big else "H"), data, place)[0]
            after = place + (8 + 20 * count if big else 2 + 12 * count)
            place = struct.unpack_from(order + ("Q" if big else "I"), data, after)[0]
        return max(1, len(seen))
    except struct.error:
        return 1


def _stored(header: Header, values: np.ndarray) -> Stored:
    colors, alpha, premultiplied = values[:, :, : header.colors], None, False
    if header.extra and header.extra[0] in (1, 2):  # 0: a fourth band that is not declared as alpha
        most = 1.0 if header.format == _FLOAT else float(2 ** (header.bits - (header.format == _SIGNED)) - 1)
        alpha = np.clip(values[:, :, header.colors].astype(np.float64) / most, 0, 1)
        premultiplied = header.extra[0] == 1
    if header.photometric == _CMYK:
        inks = colors.astype(np.float64) / (2**header.bits - 1)  # (H, W, 4)
        colors = ((1 - inks[:, :, :3]) * (1 - inks[:, :, 3:])).astype(np.float32)
        return Stored(colors, header.bits, alpha)
    return Stored(colors, header.bits, alpha, premultiplied, header.photometric == _MINISWHITE, header.nodata)


def _read_tags(data: bytes) -> tuple[dict[str, tuple[int, ...]], bool]:
    order, big = _order(data)
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
    if count > 4096:
        raise ValueError(f"{count} tags")
    width, inline = (20, 8) if big else (12, 4)
    tags: dict[str, tuple[int, ...]] = {}
    for k in range(count):
        start = place + (8 if big else 2) + width * k
        number, kind, length = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, start)
        name = _WANTED.get(number)
        if name is None or not length or name in tags:
            continue
        letter = "B" if kind == 2 else _TYPES.get(kind)
        if letter is None or length > _MAX_VALUES:
            continue
        size = struct.calcsize(order + letter) * length
        value = start + width - inline
        if size > inline:
            (value,) = struct.unpack_from(order + ("Q" if big else "I"), data, value)
        tags[name] = struct.unpack_from(f"{order}{length}{letter}", data, value)
    return tags, order == "<"


def _order(data: bytes) -> tuple[str, bool]:
    order = "<" if data[:2] == b"II" else ">"
    return order, struct.unpack_from(order + "H", data, 2)[0] == 43


def _number(text: tuple[int, ...] | None) -> float | None:
    """GDAL writes its "no data" value as text."""
    if not text:
        return None
    try:
        return float(bytes(text).split(b"\0")[0].decode("ascii", "replace"))
    except ValueError:
        return None
