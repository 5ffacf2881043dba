"""Small pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from selfcluster.reporting.thumbnails import data_uri, is_pixel_art, read_squares
from tests.reporting.folders import Pictures


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_the_middle_square_is_kept():
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = 255
    (picture,) = read_squares(Pictures(["a"], image[None]), [0], 64)
    assert picture is not None
    assert picture.size == (40, 40)
    assert np.asarray(picture).min() == 255


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 2), (9, 9, 3), (9, 9, 5)])
def test_any_number_of_channels(shape):
    (picture,) = read_squares(Pictures(["a"], np.full((1, *shape), 7, np.uint8)), [0], 64)
    assert picture is not None
    assert decoded(data_uri(picture)).convert("RGB").getpixel((4, 4)) == (7, 7, 7)


def test_bytes_are_decoded_and_shrunk():
    source = Pictures(["a"], np.full((1, 300, 200, 3), 90, np.uint8), jpeg=True)
    (picture,) = read_squares(source, [0], 50)
    assert picture is not None
    assert picture.size == (50, 50)
    assert np.abs(np.asarray(picture).astype(int) - 90).max() <= 2


def test_what_cannot_be_read_is_none_and_spares_the_others():
    class Broken(Pictures):
        def read(self, i):
            if i == 0:
                raise FileNotFoundError("gone")
            return [b"not an image", np.zeros((0, 5), np.uint8), super().read(3)][i - 1]

    pictures = read_squares(Broken(["a"] * 4, np.zeros((4, 9, 9), np.uint8)), [0, 1, 2, 3], 32)
    assert [p is None for p in pictures] == [True, True, True, False]


def test_tiny_images_are_stored_exactly():
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    picture = Image.fromarray(image)
    assert is_pixel_art(picture)
    np.testing.assert_array_equal(np.asarray(decoded(data_uri(picture))), image)


def test_noise_is_bounded():
    noise = np.random.default_rng(0).integers(0, 256, (104, 104, 3), np.uint8)
    assert len(data_uri(Image.fromarray(noise))) < 5_500
