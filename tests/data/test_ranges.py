"""Values deeper than 8 bits: one range a set, by the documented rule; values by hand."""

from __future__ import annotations

import numpy as np
import pytest

from selfcluster.data.decode import decode
from selfcluster.data.errors import BadImage, DataError
from selfcluster.data.images import describe_images, open_row, range_of, remarks
from selfcluster.data.ranges import Stored, ValueRange, choose_range, to_pixels
from selfcluster.data.sources import open_source


def stored(values, bits: int = 16) -> Stored:
    values = np.asarray(values)
    return Stored(values.reshape(1, -1, 1), bits)


def chosen(*values: np.ndarray) -> tuple[float, float]:
    found = choose_range(stored(v) for v in values)
    assert found is not None
    return found.low, found.high


RAMP = np.linspace(0, 1, 5001)  # percentiles 0.1 and 99.9 are 0.001 and 0.999


def test_photographs_that_use_most_of_a_common_range_have_all_of_it():
    assert chosen((RAMP * 65535).astype(np.uint16)) == (0, 65535)
    assert chosen((RAMP * 4095).astype(np.uint16)) == (0, 4095)
    assert chosen((RAMP * 3000).astype(np.uint16)) == (0, 4095)
    assert chosen((RAMP * 1000).astype(np.uint16)) == (0, 1023)
    assert chosen(RAMP.astype(np.float32)) == (0, 1)
    assert chosen((RAMP * 250).astype(np.float32)) == (0, 255)


def test_other_values_have_the_percentiles_of_a_sample():
    assert chosen(250 + RAMP * 80) == pytest.approx((250.08, 329.92))  # Kelvin
    assert chosen(RAMP * 1.02) == pytest.approx((0.00102, 1.01898))
    assert chosen(RAMP * 2 - 1) == pytest.approx((-0.998, 0.998))
    assert chosen((20000 + RAMP * 500).astype(np.uint16)) == pytest.approx((20000.5, 20499.5), abs=0.5)


def test_the_range_is_no_cliff():
    """A little more than a common range moves the levels a little."""
    inside, outside = ValueRange(*chosen(RAMP)), ValueRange(*chosen(RAMP * 1.001))
    levels = [to_pixels(stored(RAMP, 64), used).astype(int) for used in (inside, outside)]
    assert np.abs(levels[0] - levels[1]).max() <= 1


def test_the_range_belongs_to_the_set_and_not_to_an_image():
    assert chosen(250 + RAMP * 40, 290 + RAMP * 40) == pytest.approx((250.08, 329.92), abs=0.1)


@pytest.mark.parametrize("nodata", [-9999.0, 1e20, -32768.0])
def test_one_far_value_is_no_data(nodata):
    values = 250 + RAMP * 80
    holed = np.where(np.arange(5001) % 5 == 0, nodata, values)
    assert chosen(holed) == pytest.approx(chosen(values), abs=0.1)
    assert f"{nodata:g} means no data" in choose_range([stored(holed)]).reason


def test_a_declared_no_data_value_that_the_type_cannot_hold_means_nothing():
    values = np.array([[[55537], [3]]], np.uint16)  # 55537 is -9999 in 16 bits
    assert to_pixels(Stored(values, 16, nodata=-9999.0), ValueRange(0, 65535))[0, 0, 0] > 200
    assert to_pixels(Stored(values, 16, nodata=3.0), ValueRange(0, 1))[0, :, 0].tolist() == [255, 0]
    floats = np.array([[[-3.4028234663852886e38], [3]]], np.float32)
    assert to_pixels(Stored(floats, 32, nodata=-3.40282346638528e38), ValueRange(0, 3))[0, :, 0].tolist() == [0, 255]


def test_kinds_that_share_a_range_are_named():
    found = choose_range([stored((RAMP * 65535).astype(np.uint16)), stored(RAMP.astype(np.float32))])
    assert "16-bit and float32 images get the same range: if their units differ" in found.reason


def test_few_levels_are_classes_and_none_of_them_is_no_data():
    assert chosen(np.array([0, 1, 200] * 100, np.uint16)) == (0, 255)


def test_values_that_are_not_finite_do_not_count():
    assert chosen(np.concatenate([250 + RAMP * 80, [np.nan, np.inf, -np.inf]])) == pytest.approx((250.08, 329.92))
    assert choose_range([stored([np.nan])]) is None
    assert choose_range([]) is None


def test_constant_values_have_a_range_that_is_not_empty():
    low, high = chosen(np.full(100, 300.0))
    assert low < high


def test_values_outside_are_cut_off():
    assert to_pixels(stored([240.0, 250.0, 290.0, 330.0, 400.0], 64), ValueRange(250, 330))[0, :, 0].tolist() == [
        0, 0, 128, 255, 255
    ]  # fmt: skip


def kelvin_folder(tmp_path, encode, n: int = 6):
    y, x = np.mgrid[:40, :40]
    for i in range(n):
        (tmp_path / f"{i}.tif").write_bytes(encode((250 + i * 5 + x + y / 2).astype(np.float32), "TIFF"))
    return tmp_path


def test_a_folder_of_temperatures_keeps_its_contrast(tmp_path, encode):
    source = open_source(kelvin_folder(tmp_path, encode))
    used = range_of(source)
    assert (used.low, used.high) == pytest.approx((250, 333.5), abs=3)
    pixels = [open_row(source, i).pixels(1) for i in range(6)]
    assert int(pixels[0].min()) == 0
    assert int(pixels[5].max()) == 255
    means = [float(p.mean()) for p in pixels]
    assert means == sorted(means)  # brighter means warmer, across files
    assert len(np.unique(pixels[0])) > 50
    seen = describe_images(source)
    assert seen["deep"] == 6
    notes, warnings = remarks(seen, "here")
    assert f"values {used} become 0..255 (percentiles 0.1 and 99.9 of a sample)" in notes[0]
    assert warnings == []


def test_the_range_may_be_given_and_travels_with_subsets(tmp_path, encode):
    source = open_source(kelvin_folder(tmp_path, encode), range=(0, 1000), limit=3)
    assert str(range_of(source)) == "0..1000"
    assert int(open_row(source, 0).pixels(1).min()) in range(64, 74)  # 250 to 290 of 1000
    assert str(range_of(source.take(np.array([0])))) == "0..1000"
    with pytest.raises(DataError, match="--range 5 5: the first number must be smaller"):
        open_source(tmp_path, range=(5, 5))


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_nearly_constant_images_are_reported_at_any_depth(tmp_path, encode, kind):
    for i in range(10):
        values = np.full((20, 20), 3, np.uint8) if kind == "uint8" else np.full((20, 20), 290)
        image = (values + np.eye(20)).astype(kind)
        (tmp_path / f"{i}.tif").write_bytes(encode(image, "TIFF"))
    seen = describe_images(open_source(tmp_path, range=(0, 65535)))
    assert seen["constant"] == 10
    assert "10 of 10 images looked at are nearly constant" in remarks(seen, "here")[1][0]
    assert "--range" in remarks(seen, "here")[1][0]


def test_images_of_eight_bits_have_no_range(tmp_path, encode):
    (tmp_path / "a.png").write_bytes(encode(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    source = open_source(tmp_path, range=(0, 1000))
    np.testing.assert_array_equal(open_row(source, 0).pixels(1)[:, :, 0], np.arange(256).reshape(16, 16))
    assert describe_images(source)["range"] is None


def test_sixteen_bit_color_png_is_read_with_all_its_bits(encode):
    imagecodecs = pytest.importorskip("imagecodecs", reason="writes 16-bit color PNG")
    values = (np.arange(16 * 16 * 3).reshape(16, 16, 3) * 5).astype(np.uint16)
    data = imagecodecs.png_encode(values)
    exact = np.floor(np.clip(values / 4095, 0, 1) * 255 + 0.5)
    np.testing.assert_array_equal(decode(data, value_range=ValueRange(0, 4095)), exact)
    np.testing.assert_array_equal(decode(data), (values.astype(int) + 128) // 257)
    with pytest.raises(BadImage, match="truncated"):
        decode(data[:-20])
