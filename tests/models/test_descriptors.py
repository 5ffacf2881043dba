"""Descriptors of maps: by hand, and against the formulas written out in float64."""

import numpy as np
import pytest
import torch

from selfcluster.models.descriptors import gem, region_maxima, regions, rmac


def test_generalized_mean():
    places = torch.tensor([[[[1.0, 2.0], [3.0, -4.0]]]])
    assert gem(places, 3).item() == pytest.approx(((1 + 8 + 27 + 1e-18) / 4) ** (1 / 3), rel=1e-6)
    assert gem(places, 1).item() == pytest.approx(6 / 4, rel=1e-5)
    assert gem(places, 60).item() == pytest.approx(3, rel=0.03)  # towards the maximum


def expected_regions(height, width, levels):
    """Tolias's released procedure, step by step, with its centers and half sides."""
    short = min(height, width)
    steps = np.arange(2, 8)
    b = (max(height, width) - short) / (steps - 1)
    index = int(np.argmin(np.abs((short**2 - short * b) / short**2 - 0.4)))
    more_w = index + 1 if height < width else 0
    more_h = index + 1 if height > width else 0
    found = []
    for level in range(1, levels + 1):
        side = int(np.floor(2 * short / (level + 1)))
        half = np.floor(side / 2 - 1)
        axes = []
        for length, count in ((height, level + more_h), (width, level + more_w)):
            gap = 0 if count == 1 else (length - side) / (count - 1)
            axes.append((np.floor(half + np.arange(count) * gap) - half).astype(int))
        found += [(int(top), int(left), side) for top in axes[0] for left in axes[1]]
    return found


@pytest.mark.parametrize("size", [(32, 32), (24, 32), (32, 21), (48, 64), (14, 50), (7, 7)])
def test_regions_are_those_of_the_released_procedure(size):
    assert sorted(regions(*size)) == sorted(expected_regions(*size, 3))


def test_a_square_map_has_fourteen_regions_inside_it():
    found = regions(12, 12)
    assert len(found) == 1 + 4 + 9
    assert all(top + side <= 12 and left + side <= 12 for top, left, side in found)
    assert {side for _, _, side in found} == {12, 8, 6}
    assert regions(1, 1) == [(0, 0, 1)]


def test_rmac_in_float64():
    places = torch.rand(5, 9, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = np.zeros(5)
    for top, left, side in expected_regions(9, 13, 3):
        maxima = places[:, top : top + side, left : left + side].numpy().max(axis=(1, 2))
        total += maxima / np.linalg.norm(maxima)
    np.testing.assert_allclose(rmac(places).numpy(), total / np.linalg.norm(total), atol=1e-12)


def test_rmac_whitens_each_region():
    places = torch.rand(4, 8, 8)
    turn = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    torch.testing.assert_close(rmac(places, 3, lambda rows: rows @ turn), rmac(places) @ turn)
    assert region_maxima(places).norm(dim=1).allclose(torch.ones(14))
