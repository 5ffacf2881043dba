"""Stability of clusters: what another seed finds again."""

from __future__ import annotations

import numpy as np
import pytest

from selfcluster.reporting import stability
from selfcluster.reporting.stability import best_overlaps, cluster_stability


def blobs(count, each, dim=8, spread=0.05, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.eye(dim)[:count]
    vectors = np.repeat(centers, each, axis=0) + spread * rng.standard_normal((count * each, dim))
    return vectors.astype(np.float32), np.repeat(np.arange(count), each)


def test_overlaps_by_hand():
    clusters, others = np.array([0, 0, 0, 1, 1, 2]), np.array([4, 4, 1, 1, 1, 0])
    assert best_overlaps(clusters, others).tolist() == [pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0]


def test_groups_in_the_data_come_back_whole():
    vectors, cluster = blobs(4, 50)
    assert cluster_stability(vectors, cluster + 3) == {3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0}


def test_a_cluster_that_joins_halves_of_two_groups_is_less_stable_than_a_whole_group():
    vectors, cluster = blobs(4, 50)
    mixed = cluster.copy()
    mixed[:25], mixed[50:75] = 1, 0  # 0 and 1 each hold half of either group
    found = cluster_stability(vectors, mixed)
    assert (found[2], found[3]) == (1.0, 1.0)
    assert found[0] == found[1] == pytest.approx(25 / 75)


def test_images_without_a_cluster_or_a_finite_vector_do_not_count():
    vectors, cluster = blobs(3, 40)
    vectors[0], vectors[50, 2], cluster[90] = np.nan, np.inf, -1
    assert cluster_stability(vectors, cluster) == {0: 1.0, 1: 1.0, 2: 1.0}


def test_it_is_the_same_each_time_and_does_not_change_the_vectors():
    vectors, cluster = blobs(6, 30, spread=1.0)
    before = vectors.copy()
    assert cluster_stability(vectors, cluster) == cluster_stability(vectors, cluster)
    assert np.array_equal(vectors, before)


def test_no_stability_where_it_would_say_nothing():
    vectors, cluster = blobs(4, 4)
    assert cluster_stability(vectors, cluster) == {}  # four rows a cluster
    assert cluster_stability(vectors, np.zeros(16, int)) == {}  # one cluster
    assert cluster_stability(vectors[:0], cluster[:0]) == {}
    assert set(cluster_stability(np.ones((40, 3), np.float32), np.arange(40) % 2)) == {0, 1}  # all images equal


def test_more_clusters_than_are_made_again_at_once_fall_into_regions_and_none_is_left_out(monkeypatch):
    monkeypatch.setattr(stability, "_AT_ONCE", 8)
    vectors, cluster = blobs(20, 12, dim=24)
    mixed = cluster.copy()
    mixed[:6], mixed[12:18] = 1, 0  # 0 and 1 each hold half of either group
    found = cluster_stability(vectors, mixed + 100)
    assert set(found) == set(range(100, 120))
    assert all(found[number] == 1 for number in range(102, 120))
    assert found[100] <= 0.5
    assert found[101] <= 0.5


def test_a_region_holds_neighboring_clusters_and_no_more_than_can_be_made_at_once(monkeypatch):
    monkeypatch.setattr(stability, "_AT_ONCE", 3)
    own = np.repeat(np.arange(8), 5)
    x = np.array([0, 100, 2, 102, 1, 101, 3, 103])[own][:, None] + np.zeros((40, 2))
    regions = [set(own[rows].tolist()) for rows in stability._regions(x, own, seed=0)]
    assert sorted(map(sorted, regions)) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_regions_are_drawn_until_they_hold_enough_images(monkeypatch):
    monkeypatch.setattr(stability, "_AT_ONCE", 5)
    monkeypatch.setattr(stability, "_REGION_ROWS", 100)
    vectors, cluster = blobs(20, 12, dim=24)  # regions of 5 clusters, 60 images each
    assert len(cluster_stability(vectors, cluster)) == 10
