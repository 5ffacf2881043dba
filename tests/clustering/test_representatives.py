import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcluster.clustering.representatives import equal_shares, farthest_points


@given(st.lists(st.integers(0, 12), min_size=1, max_size=7), st.data())
def test_shares_are_as_equal_as_the_sizes_allow(sizes, data):
    n = data.draw(st.integers(0, sum(sizes)))
    shares = equal_shares(np.array(sizes), n)
    assert shares.sum() == n
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    # nothing can be moved from a group with two more to one that has images left
    for i, j in itertools.permutations(range(len(sizes)), 2):
        assert not (shares[i] >= shares[j] + 2 and shares[j] < sizes[j])


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="n=4 is not between 0 and the 3 rows"):
        equal_shares(np.array([1, 2]), 4)
    with pytest.raises(ValueError, match="n=4 is not between 0 and the 3 rows"):
        farthest_points(np.zeros((3, 2)), 4)


def test_points_by_hand():
    rows = np.array([[0.0], [1.0], [10.0], [6.0]])
    assert farthest_points(rows, 4).tolist() == [0, 2, 3, 1]  # 10 is farthest from 0, then 6 (4 away), then 1


def test_equal_rows_are_chosen_once_each():
    assert sorted(farthest_points(np.ones((5, 3)), 5, first=2).tolist()) == [0, 1, 2, 3, 4]


def test_points_cover_all_within_twice_the_best_radius():
    """Gonzalez 1985, against every choice of three of ten points."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        x = rng.standard_normal((10, 2))
        away = np.linalg.norm(x[:, None] - x[None], axis=2)
        best = min(away[list(c)].min(axis=0).max() for c in itertools.combinations(range(10), 3))
        assert away[farthest_points(x, 3)].min(axis=0).max() <= 2 * best + 1e-12
