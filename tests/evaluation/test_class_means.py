"""Class means, by hand, and their places: classes that are alike lie together."""

import numpy as np
import pytest

from selfcluster.evaluation.class_means import class_means, place_classes


def test_means_by_hand():
    vectors = np.array([[0, 2], [2, 4], [9, 9], [5, 5]], np.float32)
    classes, means = class_means(vectors, np.array([3, 3, -1, 7]))
    assert classes.tolist() == [3, 7]
    np.testing.assert_array_equal(means, [[1, 3], [5, 5]])


def test_alike_classes_are_neighbors():
    """Three groups of eight classes, far apart in 40 dimensions: each class is nearest to one of its own group."""
    rng = np.random.default_rng(0)
    means = np.repeat(20 * rng.standard_normal((3, 40)), 8, axis=0) + rng.standard_normal((24, 40))
    places = place_classes(means)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(24, np.inf))
    assert (apart.argmin(axis=1) // 8 == np.arange(24) // 8).all()
    np.testing.assert_array_equal(places, place_classes(means))
    with pytest.raises(ValueError, match="3 classes: t-SNE needs at least 4"):
        place_classes(means[:3])
