"""Which images are on the map, and where."""

from __future__ import annotations

import numpy as np
import pytest

from selfcluster.reporting.map import lay_out, sample_rows


def test_all_are_drawn_when_they_fit():
    assert sample_rows(5, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_sample_is_sorted_seeded_and_keeps_small_clusters():
    cluster = np.zeros(10_000, int)
    cluster[[17, 5_000]] = 1
    rows = sample_rows(10_000, 100, cluster)
    assert len(rows) == 100
    assert (np.diff(rows) > 0).all()
    assert {17, 5_000} <= set(rows.tolist())
    np.testing.assert_array_equal(rows, sample_rows(10_000, 100, cluster))


def test_more_clusters_than_points_still_gives_a_sample():
    assert len(sample_rows(1_000, 50, np.arange(1_000))) == 50


def test_clusters_far_apart_stay_apart_on_the_map():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(3), 40)
    vectors = (30 * rng.standard_normal((3, 20))[cluster] + rng.standard_normal((120, 20))).astype(np.float32)
    places = lay_out(vectors)
    assert places is not None
    assert places.min(axis=0).tolist() == [0, 0]
    assert places.max(axis=0).tolist() == [1, 1]
    far = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(far, np.inf)
    assert (cluster[far.argmin(axis=1)] == cluster).all()
    np.testing.assert_array_equal(places, lay_out(vectors))


def test_the_scale_of_the_vectors_does_not_matter():
    vectors = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    np.testing.assert_allclose(lay_out(vectors), lay_out(vectors * 1024), atol=1e-6)


def test_few_images_lie_along_their_principal_axes():
    places = lay_out(np.array([[0, 0], [4, 0], [8, 0]], np.float32))
    assert places is not None
    assert sorted(places[:, 0].tolist()) == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("shape", [(0, 4), (7, 0), (1, 4), (30, 4)])
def test_nothing_to_see_is_none(shape):
    assert lay_out(np.ones(shape, np.float32)) is None


@pytest.mark.parametrize("shape", [(2, 1), (13, 1), (13, 2), (14, 300)])
def test_small_shapes_are_laid_out(shape):
    places = lay_out(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    assert places is not None
    assert np.isfinite(places).all()


def test_images_beyond_the_landmarks_stand_with_their_cluster():
    rng = np.random.default_rng(0)
    cluster = np.arange(300) % 3
    vectors = (30 * rng.standard_normal((3, 20))[cluster] + rng.standard_normal((300, 20))).astype(np.float32)
    places = lay_out(vectors, cluster, landmarks=90)
    assert places is not None
    assert places.min() == 0
    assert places.max() == 1
    centers = np.stack([places[cluster == c].mean(axis=0) for c in range(3)])
    away = np.linalg.norm(places[:, None] - centers[None], axis=2)
    assert (away.argmin(axis=1) == cluster).all()
    assert len(np.unique(places, axis=0)) == 300  # no image hides another one
    np.testing.assert_array_equal(places, lay_out(vectors, cluster, landmarks=90))
