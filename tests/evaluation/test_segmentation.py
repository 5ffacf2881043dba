"""J and F of masks."""

from __future__ import annotations

import numpy as np
import pytest

from selfcluster.evaluation.segmentation import boundary, boundary_f, decay, jaccard


def square(top: int, left: int, side: int, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_jaccard_by_hand():
    assert jaccard(square(0, 0, 4), square(0, 2, 4)) == pytest.approx(8 / 24)
    assert jaccard(square(0, 0, 4), square(10, 10, 4)) == 0
    assert jaccard(square(0, 0, 0), square(0, 0, 0)) == 1


def test_boundary_by_hand():
    found = boundary(np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], bool))
    assert found.astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    whole = boundary(np.ones((3, 3), bool))
    assert not whole.any()


def test_boundaries_agree_with_a_reference_that_dilates_by_a_disk():
    rng = np.random.default_rng(0)
    from scipy.ndimage import binary_dilation, gaussian_filter

    for trial in range(5):
        truth, mask = (gaussian_filter(rng.normal(size=(40, 50)), 3) > 0.05 for _ in range(2))
        reach = trial + 1
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disk = x**2 + y**2 <= reach**2
        a, b = boundary(mask), boundary(truth)
        precision = (a & binary_dilation(b, disk)).sum() / a.sum()
        recall = (b & binary_dilation(a, disk)).sum() / b.sum()
        expected = 2 * precision * recall / (precision + recall)
        assert boundary_f(mask, truth, tolerance=reach) == pytest.approx(expected)


def test_perfect_shifted_and_empty_masks():
    mask = square(5, 5, 8)
    assert boundary_f(mask, mask) == 1
    assert boundary_f(square(5, 6, 8), mask) == 1  # within the tolerance of one pixel
    assert boundary_f(square(5, 18, 8), mask) < 0.2
    empty = np.zeros_like(mask)
    assert boundary_f(empty, mask) == boundary_f(mask, empty) == 0
    assert boundary_f(empty, empty) == 1


def test_decay_is_the_first_quarter_less_the_last():
    assert decay(np.array([1.0, 1, 1, 0.5, 0.5, 0.5, 0, 0, 0])) == pytest.approx(1 - 0)
    assert decay(np.ones(12)) == 0


def test_masks_of_two_images_are_refused():
    with pytest.raises(ValueError, match="belong to one image"):
        jaccard(np.ones((2, 3)), np.ones((3, 2)))
