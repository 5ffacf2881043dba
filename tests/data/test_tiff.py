"""TIFF over a grid of layouts, depths, colors, compressions and byte orders: equal to what was written, or refused.

The written array is the reference; OpenCV is a second one where it reads the kind. tifffile packs 10, 12 and 14 bits
wrong for big-endian files, so these are packed by hand (the standard packs the highest bit first in either order).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import sys

import numpy as np
import pytest

from selfcluster.data import tiff
from selfcluster.data.decode import decode, open_image
from selfcluster.data.errors import BadImage
from selfcluster.data.ranges import ValueRange

tifffile = pytest.importorskip("tifffile", reason="the grid is written with tifffile (the extra tiff)")
pytest.importorskip("imagecodecs", reason="the grid is written with imagecodecs (the extra tiff)")

HEIGHT, WIDTH = 40, 48
DEPTHS = {
    "uint8": ("u1", 8), "10-bit": ("u2", 10), "12-bit": ("u2", 12), "14-bit": ("u2", 14), "uint16": ("u2", 16),
    "uint32": ("u4", 32), "float16": ("f2", 16), "float32": ("f4", 32), "float64": ("f8", 64), "int8": ("i1", 8),
    "int16": ("i2", 16), "int32": ("i4", 32),
}  # fmt: skip
COLORS = {  # photometric, samples, alpha
    "MinIsBlack": ("minisblack", 1, False),
    "MinIsWhite": ("miniswhite", 1, False),
    "RGB": ("rgb", 3, False),
    "RGBA": ("rgb", 4, True),
    "CMYK": ("separated", 4, False),
    "gray+alpha": ("minisblack", 2, True),
    "5 bands": ("minisblack", 5, False),
}
LAYOUTS, COMPRESSIONS, ORDERS = ("contig", "separate"), (None, "lzw", "zlib", "jpeg"), "<>"


def shares(samples: int) -> np.ndarray:
    """(H, W, samples) in 0..1: smooth, so that JPEG keeps it, and another one in each channel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [(x * (k + 1) + y * 2 * (3 - k % 4)) / ((WIDTH - 1) * (k + 1) + (HEIGHT - 1) * 6) for k in range(samples)]
    return np.stack(planes, axis=2)


def stored(depth: str, samples: int) -> tuple[np.ndarray, ValueRange]:
    """The values as stored, and the range that spreads them back over 0..1."""
    kind, bits = DEPTHS[depth]
    share, type_ = shares(samples), np.dtype(kind)
    if type_.kind == "f":
        return (share * 80 + 250).astype(type_), ValueRange(250, 330)  # Kelvin
    low, high = (0, 2**bits - 1) if type_.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return np.round(low + share * (high - low)).astype(type_), ValueRange(low, high)


def written(values: np.ndarray, bits: int, color: str, layout: str, compression: str | None, order: str) -> bytes:
    photometric, samples, alpha = COLORS[color]
    options = {"planarconfig": layout} if samples > 1 else {}
    if alpha:
        options["extrasamples"] = ["unassalpha"]
    packed = bits in (10, 12, 14)
    if packed:
        options["bitspersample"] = bits
    planes = np.moveaxis(values, 2, 0) if layout == "separate" or samples == 1 else values
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, planes[0] if samples == 1 else planes, photometric=photometric, compression=compression,
        byteorder=order, **options,
    )  # fmt: skip
    data = buffer.getvalue()
    if not packed:
        return data
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    rows = planes.reshape(-1, WIDTH * (samples if layout == "contig" else 1))
    each = (rows[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    body = np.packbits(each.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()
    start = page.dataoffsets[0]
    assert sum(page.databytecounts) == len(body)
    return data[:start] + body + data[start + len(body) :]


def expected(values: np.ndarray, used: ValueRange, depth: str, color: str) -> np.ndarray:
    """(H, W, 1 or 3) levels by the documented rules, in float64."""
    _, samples, alpha = COLORS[color]
    share = (values.astype(np.float64) - used.low) / (used.high - used.low)
    if color == "CMYK":
        return 255 * (1 - share[:, :, :3]) * (1 - share[:, :, 3:])
    if color == "MinIsWhite":
        return 255 * (1 - share)
    if not alpha:
        return 255 * share
    kind, bits = DEPTHS[depth]
    top = 1 if kind[0] == "f" else 2 ** (bits - (kind[0] == "i")) - 1
    opaque = np.clip(values[:, :, -1:].astype(np.float64) / top, 0, 1)
    return 255 * share[:, :, : samples - 1] * opaque + 255 * (1 - opaque)


def refusal(depth: str, color: str) -> str | None:
    """A part of the sentence with which a cell is refused; None where it is read."""
    if color == "5 bands":
        return "5 bands"
    if color == "CMYK" and DEPTHS[depth][0][0] != "u":
        return "CMYK"
    return None


CELLS = [
    cell
    for cell in itertools.product(DEPTHS, COLORS, LAYOUTS, COMPRESSIONS, ORDERS)
    if not (COLORS[cell[1]][1] == 1 and cell[2] == "separate")
]


def written_cell(depth: str, color: str, layout: str, compression: str | None, order: str):
    """(values, range, file), or None for what no encoder here writes: JPEG of deep values, packed bits compressed."""
    values, used = stored(depth, COLORS[color][1])
    bits = DEPTHS[depth][1]
    if (compression == "jpeg" and depth != "uint8") or (compression and bits in (10, 12, 14)):
        return None
    if compression == "jpeg" and layout == "contig" and color in ("RGBA", "5 bands"):
        return None
    return values, used, written(values, bits, color, layout, compression, order)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_cell_is_read_as_written_or_refused_by_name(depth, color):
    for layout, compression, order in itertools.product(LAYOUTS, COMPRESSIONS, ORDERS):
        if COLORS[color][1] == 1 and layout == "separate":
            continue
        cell = written_cell(depth, color, layout, compression, order)
        if cell is None:
            continue
        values, used, data = cell
        if refusal(depth, color) is not None:
            with pytest.raises(BadImage, match=refusal(depth, color)) as caught:
                decode(data, channels=None, value_range=used)
            assert caught.value.reason == "unsupported"
            continue
        pixels = decode(data, channels=None, value_range=used)
        reference = expected(values, used, depth, color)
        lossy = compression == "jpeg"
        assert pixels.shape == reference.shape, (layout, compression, order)
        error = np.abs(pixels - reference).max()
        assert error <= (6 if lossy else 1), (layout, compression, order, error)


def test_the_grid_has_the_cells_that_were_promised():
    assert len(CELLS) == 12 * (2 * 1 + 5 * 2) * 4 * 2
    assert sum(written_cell(*cell) is not None for cell in CELLS) == 740


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32", "float64", "int16"])
@pytest.mark.parametrize("color", ["MinIsBlack", "RGB"])
def test_opencv_reads_the_same(depth, color):
    cv2 = pytest.importorskip("cv2", reason="the second decoder is opencv-python-headless")
    for compression, order in itertools.product((None, "lzw", "zlib"), ORDERS):
        _, used, data = written_cell(depth, color, "contig", compression, order)
        theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        theirs = theirs[:, :, ::-1] if color == "RGB" else theirs[:, :, None]
        levels = 255 * (theirs.astype(np.float64) - used.low) / (used.high - used.low)
        assert np.abs(decode(data, channels=None, value_range=used) - levels).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("white", [False, True])
def test_few_bits_are_spread_over_the_whole_range(bits, white):
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 2**bits).astype(np.uint8)
    buffer = io.BytesIO()
    photometric = "miniswhite" if white else "minisblack"
    tifffile.imwrite(buffer, values, photometric=photometric, bitspersample=bits)
    levels = values * (255 // (2**bits - 1))
    np.testing.assert_array_equal(decode(buffer.getvalue(), channels=1)[:, :, 0], 255 - levels if white else levels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pages_are_turned_upright(orientation):
    upright = (np.arange(24 * 32).reshape(24, 32) * 40).astype(np.int16)
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    buffer = io.BytesIO()
    tag = [(274, "H", 1, orientation, False)]
    tifffile.imwrite(buffer, np.ascontiguousarray(turned), photometric="minisblack", extratags=tag)
    image = open_image(buffer.getvalue())
    assert (image.height, image.width) == (24, 32)
    np.testing.assert_array_equal(image.pixels(1)[:, :, 0], np.floor(upright / 65535 * 255 + 0.5))


def test_tiles_bigtiff_predictors_and_pages():
    values = stored("uint16", 3)[0]
    used = ValueRange(0, 65535)
    for options in (
        {"tile": (16, 32)}, {"bigtiff": True}, {"compression": "zlib", "predictor": True},
        {"tile": (16, 16), "planarconfig": "separate", "compression": "lzw"}, {"rowsperstrip": 7},
    ):  # fmt: skip
        planes = np.moveaxis(values, 2, 0) if options.get("planarconfig") else values
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, bigtiff=options.pop("bigtiff", False)) as writer:
            for _ in range(3):
                writer.write(planes, photometric="rgb", contiguous=False, **options)
        image = open_image(buffer.getvalue())
        assert image.frames == 3
        image.value_range = used
        assert np.abs(image.pixels() - 255 * (values / 65535)).max() <= 1


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", ["zstd", "lzma", "packbits", "zlib", "lzw", "lerc", "jpegxl", "png", "webp"])
def test_other_compressions_and_predictors(kind, compression):
    values, used = stored(kind, 3 if compression == "webp" else 1)
    for predictor, order in itertools.product((False, True), ORDERS):
        if predictor and compression not in ("zstd", "lzma", "zlib", "lzw"):
            continue
        buffer = io.BytesIO()
        options = {"photometric": "rgb"} if compression == "webp" else {"photometric": "minisblack"}
        if compression == "webp":
            options["compressionargs"] = {"lossless": True}
        try:
            tifffile.imwrite(
                buffer, values.squeeze(), compression=compression, predictor=predictor, byteorder=order, **options
            )
        except (ValueError, TypeError):  # no encoder for this kind of number
            continue
        pixels = decode(buffer.getvalue(), channels=None, value_range=used)
        assert np.abs(pixels - expected(values, used, kind, "RGB")).max() <= 1


def test_the_value_that_gdal_declares_as_no_data_is_black():
    values = stored("float32", 1)[0]
    for nodata, text in ((-9999.0, b"-9999\0"), (np.nan, b"nan\0")):
        holed = values[:, :, 0].copy()
        holed[3, 4] = nodata
        buffer = io.BytesIO()
        tag = [(42113, 2, len(text), text, False)]
        tifffile.imwrite(buffer, holed, photometric="miniswhite", extratags=tag)
        pixels = decode(buffer.getvalue(), channels=1, value_range=ValueRange(250, 330))
        assert pixels[3, 4, 0] == 0
        assert pixels[0, 0, 0] == 255  # miniswhite: the smallest value


@pytest.mark.parametrize("keep", [0.3, 0.9, -5])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_cut_deep_file_is_refused(keep, compression):
    noise = np.random.default_rng(0).integers(-9999, 9999, (64, 64)).astype(np.int16)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, noise, photometric="minisblack", compression=compression)
    data = buffer.getvalue()
    with pytest.raises(BadImage) as caught:
        decode(data[: int(len(data) * keep)] if keep > 0 else data[:keep])
    assert caught.value.reason in ("truncated", "damaged")


def test_hostile_headers_raise_nothing_but_bad_image():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored("int16", 3)[0], photometric="rgb", compression="lzw")
    data = bytearray(buffer.getvalue())
    rng = np.random.default_rng(2)
    for _ in range(300):
        damaged = data.copy()
        for place in rng.integers(0, 400, 3):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(BadImage):
            decode(bytes(damaged))


def test_a_tile_of_gigabytes_is_refused_by_its_header():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored("int16", 1)[0][:, :, 0], photometric="minisblack", tile=(16, 16))
    data = bytearray(buffer.getvalue())
    page = tifffile.TiffFile(io.BytesIO(bytes(data))).pages[0]
    for name in ("TileWidth", "TileLength"):
        tag = page.tags[name]
        struct.pack_into("<HHII", data, tag.offset, tag.code, 4, 1, 1 << 20)
    with pytest.raises(BadImage, match="too_large: TIFF in tiles"):
        decode(bytes(data))


@pytest.mark.parametrize("missing", ["tifffile", "imagecodecs"])
def test_without_the_extra_a_kind_that_pillow_gets_wrong_is_refused_by_name(monkeypatch, missing):
    files = {
        (depth, color, layout): written_cell(depth, color, layout, "lzw", "<")
        for depth, color, layout in itertools.product(("uint8", "uint16", "int16"), COLORS, LAYOUTS)
        if not (COLORS[color][1] == 1 and layout == "separate") and refusal(depth, color) is None
    }
    if missing == "tifffile":
        monkeypatch.setitem(sys.modules, "tifffile", None)
    else:
        for name in [name for name in sys.modules if name.split(".")[0] in ("tifffile", "imagecodecs")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    read, refusals = set(), {}
    for (depth, color, layout), (values, used, data) in files.items():
        try:
            pixels = decode(data, channels=None, value_range=used)
        except BadImage as error:
            refusals[color] = error
            continue
        read.add((depth, color, layout))
        assert np.abs(pixels - expected(values, used, depth, color)).max() <= 1
    assert {("uint8", "RGB", "contig"), ("uint8", "CMYK", "separate"), ("uint16", "MinIsBlack", "contig")} <= read
    assert {error.reason for error in refusals.values()} == {"unsupported"}
    assert all("selfcluster[tiff]" in error.detail for error in refusals.values())
    assert "signed MinIsBlack" in refusals["gray+alpha"].detail
    assert "16-bit signed MinIsWhite" in refusals["MinIsWhite"].detail
    assert not {cell for cell in read if cell[0] == "int16"}


def test_a_plain_kind_is_what_pillow_reads_right():
    """`is_plain` is a claim about Pillow: every plain cell of the grid is checked above through Pillow's route."""
    plain = {cell[:3] for cell in CELLS if (made := written_cell(*cell)) and tiff.is_plain(tiff.read_header(made[2]))}
    assert ("uint8", "gray+alpha", "separate") not in plain
    assert {
        ("uint8", "gray+alpha", "contig"),
        ("uint8", "RGBA", "separate"),
        ("float32", "MinIsBlack", "contig"),
    } <= plain
    assert {depth for depth, *_ in plain} == {"uint8", "uint16", "float32"}
