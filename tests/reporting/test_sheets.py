"""Thumbnails of all images in sheets."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from selfcluster.reporting.sheets import COLUMNS, PER_SHEET, cell_side, make_sheets
from tests.reporting.folders import Pictures


def opened(code: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))).astype(int)


def test_each_image_lies_in_its_cell_and_a_missing_one_leaves_its_cell_gray():
    n = PER_SHEET + 3
    shades = np.arange(n) % 200
    source = Pictures([str(i) for i in range(n)], np.tile(shades[:, None, None, None], (1, 16, 16, 3)).astype(np.uint8))
    positions = [None if i in (5, n - 1) else n - 1 - i for i in range(n)]
    sheets = make_sheets(source, positions, 10_000_000)
    assert (len(sheets.pictures), sheets.cell, sheets.missing) == (2, 16, [5, n - 1])
    for i in (0, 5, 17, PER_SHEET - 1, PER_SHEET, n - 1):
        k = i % PER_SHEET
        middle = opened(sheets.pictures[i // PER_SHEET])[k // COLUMNS * 16 + 8, k % COLUMNS * 16 + 8]
        wanted = 128 if positions[i] is None else shades[positions[i]]
        assert np.abs(middle - wanted).max() <= 8, i


def test_images_that_cannot_be_read_are_named():
    class Broken(Pictures):
        def read(self, i):
            if i == 1:
                raise FileNotFoundError("gone")
            return super().read(i)

    assert make_sheets(Broken(list("abc"), np.zeros((3, 9, 9, 3), np.uint8)), [0, 1, 2], 10_000).missing == [1]


def test_noise_is_coded_in_fewer_bytes_where_bytes_are_few():
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), np.uint8)
    source = Pictures([str(i) for i in range(40)], noise)
    rich, poor = (make_sheets(source, range(40), most) for most in (10_000_000, 60_000))
    assert rich.cell > poor.cell
    assert sum(map(len, poor.pictures)) < sum(map(len, rich.pictures)) / 3


def test_more_images_get_smaller_cells_within_limits():
    sides = [cell_side(n, 14_000_000) for n in (1, 5_398, 20_000, 100_000, 10_000_000)]
    assert sides == sorted(sides, reverse=True)
    assert (sides[0], sides[-1]) == (96, 24)
    assert cell_side(0, 14_000_000) == 96


def test_no_image_makes_no_sheet():
    assert make_sheets(Pictures([], np.zeros((0, 9, 9, 3), np.uint8)), [], 1_000).pictures == []
