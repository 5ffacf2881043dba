"""Decoding: the table of stored kinds, EXIF's eight orientations, and every refusal with its reason (faults 1 to 7)."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from selfcluster.data.decode import BadImage, decode, open_image

RAMP = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
COLORS = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=2)


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    assert caught.value.detail
    return caught.value.reason


def claiming(width: int, height: int) -> bytes:
    """A PNG that is nothing but a header and claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_return_the_pixels_they_were_given(encode, format):
    data = encode(COLORS, format, **({"lossless": True} if format == "WEBP" else {}))
    np.testing.assert_array_equal(decode(data), COLORS)


def test_jpeg_is_close_to_the_pixels_it_was_given(encode):
    smooth = np.stack([np.add.outer(np.arange(64), np.arange(64))] * 3, axis=2).astype(np.uint8)
    assert np.abs(decode(encode(smooth, "JPEG", quality=95)).astype(int) - smooth).max() <= 6


# row 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("keep", [0.5, -10])
def test_row_1_a_truncated_file_is_refused(encode, format, keep):
    data = encode(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8), format)
    cut = data[: int(len(data) * keep)] if keep == 0.5 else data[:keep]
    assert reason(cut) in ("truncated", "damaged")


def test_row_1_a_cut_jpeg_is_called_truncated(encode):
    data = encode(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8), "JPEG")
    assert reason(data[: len(data) // 2]) == reason(data[:-10]) == "truncated"


# row 3


def test_row_3_what_is_no_image_has_its_own_reason():
    assert reason(b"") == "empty"
    assert reason(bytes(range(7, 207))) == "not_an_image"
    assert reason(b"<!DOCTYPE html><html><body>404</body></html>") == "not_an_image"
    assert reason(bytes(128) + b"DICM" + bytes(20)) == "unsupported"


def test_row_3_heic_is_named_by_its_content_with_what_would_read_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        BadImage, match=r"unsupported: the file is HEIC, even if its name ends otherwise: .*selfcluster\[heic\]"
    ):
        decode(b"\0\0\0\x18ftypheic" + bytes(20))


def test_row_3_random_bytes_behind_a_true_signature_raise_nothing_but_bad_image():
    rng = np.random.default_rng(1)
    for start in (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"II*\0",
        b"MM\0*",
        b"BM",
        b"RIFF\xff\0\0\0WEBPVP8 ",
    ):
        for _ in range(20):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow may warn of damaged TIFF tags; outside tests it is printed
                assert reason(start + rng.bytes(200))


# row 4


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (9_747, 9_747)])
def test_row_4_a_bomb_is_refused_by_its_header_and_in_silence(width, height):
    # 95 megapixels are between Pillow's warning and its error; warnings are errors here
    assert reason(claiming(width, height)) == "too_large"


def test_row_4_a_webp_bomb_is_refused_before_the_decoder_is_made():
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_000 - 1).to_bytes(3, "little") * 2
    assert reason(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body) == "too_large"


def test_row_4_the_budget_is_an_argument_and_pillows_globals_stay_alone(encode):
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    data = encode(COLORS)
    assert decode(data, max_pixels=12 * 16).shape == (12, 16, 3)
    assert reason(data, max_pixels=12 * 16 - 1) == "too_large"
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before == (89_478_485, False)


# row 5: the golden table, values by hand


def test_row_5_sixteen_bit_gray_is_divided_by_257_and_rounded(encode):
    values = np.array([[0, 128, 129, 257, 32_768, 65_407, 65_406, 65_535]] * 8, dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        row = decode(encode(values, format), channels=None)[0, :, 0]
        assert row.tolist() == [0, 0, 1, 1, 128, 255, 254, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),  # 0..1
        ([0.0, 1.5, 254.4, 255.0], [0, 2, 254, 255]),  # 0..255
        ([0.0, 257.0, 32_768.0, 65_535.0], [0, 1, 128, 255]),  # 0..65535
        ([-1.0, 0.0, 0.5, 1.0], [0, 128, 191, 255]),  # its own -1..1
        ([1e6, 1e6, 1e6, 1e6], [0, 0, 0, 0]),  # nothing to spread
    ],
)
def test_row_5_floats_are_spread_by_the_first_range_that_holds_them(encode, values, expected):
    image = np.tile(np.array(values, np.float32), (8, 2))
    assert decode(encode(image, "TIFF"), channels=1)[0, :4, 0].tolist() == expected


def test_row_5_whole_numbers_of_32_bits_never_use_the_range_of_a_float(encode):
    image = np.tile(np.array([0, 1, 1, 0], np.int32), (8, 2))
    assert decode(encode(image, "TIFF"), channels=1)[0, :4, 0].tolist() == [0, 1, 1, 0]


def test_row_5_nan_is_refused(encode):
    image = np.zeros((8, 8), np.float32)
    image[3, 3] = np.nan
    assert reason(encode(image, "TIFF")) == "not_finite"


def test_row_5_alpha_is_composited_on_white(encode):
    rgba = np.full((8, 8, 4), (200, 100, 0, 255), np.uint8)
    rgba[:, 4:, 3] = 0  # the right half is transparent and hides a color
    pixels = decode(encode(rgba))
    assert pixels[0, 0].tolist() == [200, 100, 0]
    assert pixels[0, 7].tolist() == [255, 255, 255]
    rgba[..., 3] = 51  # a fifth: 0.2 x 200 + 0.8 x 255
    assert decode(encode(rgba))[0, 0].tolist() == [244, 224, 204]


def test_row_5_gray_with_alpha_stays_gray(encode):
    image = Image.merge("LA", [Image.new("L", (8, 8), 100), Image.new("L", (8, 8), 0)])
    pixels = decode(encode(image), channels=None)
    assert pixels.shape == (8, 8, 1)
    assert (pixels == 255).all()


def test_row_5_a_transparent_color_of_a_palette_or_a_gray_value_becomes_white(encode):
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 1)
    assert decode(encode(palette))[1, 1].tolist() == [10, 20, 30]
    pixels = decode(encode(palette, transparency=0))
    assert pixels[0, 0].tolist() == [200, 100, 50]
    assert pixels[1, 1].tolist() == [255, 255, 255]
    for kind, value in ((np.uint8, 100), (np.uint16, 25_700)):
        assert (decode(encode(np.full((8, 8), value, kind)), channels=1) == 100).all()
        assert (decode(encode(np.full((8, 8), value, kind), transparency=value), channels=1) == 255).all()


def test_row_5_one_bit_is_black_and_white(encode):
    image = Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(decode(encode(image), channels=1)[:, :, 0], np.eye(8) * 255)


def test_row_5_cmyk_is_converted_by_hand_and_not_inverted(encode):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # pure cyan: no red
    assert decode(encode(image, "TIFF"))[0, 0].tolist() == [0, 255, 255]
    assert np.abs(decode(encode(image, "JPEG"))[0, 0].astype(int) - [0, 255, 255]).max() <= 2


def test_row_5_gray_and_color_are_converted_on_request(encode):
    gray, color = encode(RAMP), encode(COLORS)
    assert decode(gray, channels=None).shape == decode(color, channels=1).shape == (12, 16, 1)
    np.testing.assert_array_equal(decode(gray, channels=3), np.repeat(RAMP[:, :, None], 3, axis=2))
    luma = COLORS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(color, channels=1)[:, :, 0] - luma).max() <= 1


def test_row_5_a_kind_without_a_rule_is_refused(encode):
    assert reason(encode(Image.new("LAB", (8, 8)), "TIFF")) == "unsupported"


# row 6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_row_6_exif_orientation_is_undone(encode, format, orientation):
    upright = np.zeros((24, 32, 3), np.uint8)
    upright[:8, :8], upright[:8, 24:], upright[16:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),  # a viewer turns it clockwise
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "JPEG" else {}
    image = open_image(encode(np.ascontiguousarray(stored), format, exif=exif, **lossless))
    assert (image.height, image.width) == (24, 32)
    pixels = image.pixels()
    for corner in ((2, 2), (2, 29), (21, 2)):
        assert np.abs(pixels[corner].astype(int) - upright[corner]).max() < 60


def test_row_6_a_damaged_exif_block_counts_as_upright(encode):
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nonsense"):
        assert decode(encode(COLORS, "JPEG", exif=exif)).shape == (12, 16, 3)


# row 7


def test_row_7_slivers_are_refused(encode):
    assert reason(encode(np.zeros((1, 1), np.uint8))) == "too_small"
    assert reason(encode(np.zeros((1, 5000), np.uint8))) == "too_small"
    assert decode(encode(np.zeros((8, 8), np.uint8)), min_side=8).shape == (8, 8, 3)


@pytest.mark.parametrize("format", ["GIF", "TIFF"])
def test_row_7_of_several_frames_the_first_is_used_and_they_are_counted(encode, format):
    frames = [Image.new("L", (10, 9), level) for level in (40, 90, 200)]
    image = open_image(encode(frames[0], format, save_all=True, append_images=frames[1:]))
    assert image.frames == 3
    assert (image.pixels(1) == 40).all()


def test_row_7_stripes_are_refused_before_a_view_of_them_fills_the_memory(encode):
    assert reason(encode(np.zeros((8, 801), np.uint8))) == "too_small"
    assert decode(encode(np.zeros((8, 800), np.uint8))).shape == (8, 800, 3)


def test_later_frames_may_be_damaged(encode):
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)) for i in range(3)]
    whole = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    counts = []
    for length in range(len(whole) // 2, len(whole), 7):
        image = open_image(whole[:length])
        assert image.pixels(1).shape == (40, 40, 1)
        counts.append(image.frames)
    assert set(counts) <= {1, 2, 3}


# scaled decoding


def test_a_jpeg_is_decoded_smaller_but_never_below_what_is_needed(encode):
    wave = np.sin(np.add.outer(np.arange(240) / 20, np.arange(320) / 30))
    data = encode((wave * 100 + 128).astype(np.uint8), "JPEG", quality=95)
    shapes = {side: decode(data, channels=1, shrink_to=side).shape[:2] for side in (240, 121, 120, 61, 60, 30, 1)}
    assert shapes == {
        240: (240, 320), 121: (240, 320), 120: (120, 160), 61: (120, 160), 60: (60, 80), 30: (30, 40), 1: (30, 40)
    }  # fmt: skip
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((80, 60), Image.Resampling.BOX), dtype=int)
    assert np.abs(decode(data, channels=1, shrink_to=60)[:, :, 0] - whole).max() <= 3


def test_other_formats_ignore_the_smaller_side(encode):
    assert decode(encode(np.zeros((64, 64), np.uint8)), shrink_to=8).shape == (64, 64, 3)
