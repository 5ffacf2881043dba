"""The banner."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from selfcluster.reporting.colors import cluster_colors
from selfcluster.reporting.figures import banner


def made(tmp_path, shape, **options):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, *shape), np.uint8)
    clusters = np.arange(40) % 4
    clusters[0] = -1
    out = banner(images, clusters, rng.random(40), rng.random((40, 5)), tmp_path / "banner.png", **options)
    return Image.open(out).convert("RGB")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (50, 40, 3), (50, 40)])
def test_any_kind_of_image(tmp_path, shape):
    picture = made(tmp_path, shape, members=4)
    colors = {"#{:02x}{:02x}{:02x}".format(*color) for _, color in picture.getcolors(1 << 24)}
    assert set(cluster_colors(4)) <= colors


def test_more_members_than_there_are_make_no_difference_but_room(tmp_path):
    assert made(tmp_path, (8, 8), members=30).width > made(tmp_path, (8, 8), members=3).width


def test_errors_name_the_numbers(tmp_path):
    images = np.zeros((3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        banner(images, np.zeros(2, int), np.zeros(3), np.zeros((3, 2)), tmp_path / "b.png")
    with pytest.raises(ValueError, match="no image has a cluster"):
        banner(images, np.full(3, -1), np.zeros(3), np.zeros((3, 2)), tmp_path / "b.png")
