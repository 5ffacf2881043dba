"""Clusters of a table: found where they are, distances by hand, wrong wishes refused."""

import numpy as np
import pytest

from selfcluster.clustering.scores import matching_accuracy
from selfcluster.evaluation.clustering import cluster_vectors
from selfcluster.evaluation.digits import score_digits
from selfcluster.evaluation.subject import LabeledFeatures, held_out, renumbered


@pytest.fixture(scope="module")
def blobs():
    """Six directions in 20 dimensions, 60 rows each, of lengths that mean nothing, and one strong common direction."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(6), 60)
    rows = np.eye(20)[truth] + 0.15 * rng.normal(size=(360, 20)) + 2 * np.ones(20)
    return (rows * rng.uniform(0.5, 3, (360, 1))).astype(np.float32), truth


@pytest.mark.parametrize("algorithm", ["kmeans", "hierarchical"])
def test_what_is_there_is_found(blobs, algorithm):
    x, truth = blobs
    labels, distances, _ = cluster_vectors(x, 6, algorithm)
    if algorithm == "kmeans":
        assert matching_accuracy(truth, labels) > 0.98
    assert labels.shape == distances.shape == (360,)
    assert (distances >= 0).all()


def test_distances_are_to_the_mean_of_the_unit_rows(blobs):
    x, _ = blobs
    labels, distances, _ = cluster_vectors(x, 4)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    for k in range(4):
        members = unit[labels == k]
        expected = np.linalg.norm(members - members.mean(axis=0), axis=1)
        np.testing.assert_allclose(distances[labels == k], expected, atol=1e-5)


def test_whitening_finds_what_a_loud_direction_hides():
    """Two classes apart in a quiet direction beside a loud one that means nothing: only whitened rows show them."""
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1], 200)
    rows = np.zeros((400, 6))
    rows[:, 0] = 10
    rows[:, 1] = rng.uniform(-3, 3, 400)
    rows[:, 2] = np.where(truth, 0.5, -0.5) + 0.05 * rng.normal(size=400)
    plain = cluster_vectors(rows, 2, whiten=0)[0]
    whitened = cluster_vectors(rows, 2, whiten=2)[0]
    assert matching_accuracy(truth, plain) < 0.7
    assert matching_accuracy(truth, whitened) > 0.95


def test_the_same_seed_gives_the_same_clusters(blobs):
    x, _ = blobs
    assert np.array_equal(cluster_vectors(x, 5, seed=3)[0], cluster_vectors(x, 5, seed=3)[0])


def test_rows_are_scaled_in_place_only_where_that_is_allowed(blobs):
    x = blobs[0].copy()
    expected = cluster_vectors(x, 6)
    np.testing.assert_array_equal(x, blobs[0])
    frozen = x.copy()
    frozen.setflags(write=False)
    for rows in (frozen, x):
        for one, other in zip(cluster_vectors(rows, 6, overwrite=True)[:2], expected):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(frozen, blobs[0])
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-6)


def test_auto_recommends_a_number_with_its_range(blobs):
    said = []
    labels, _, facts = cluster_vectors(blobs[0], "auto", say=said.append)
    assert facts["k_low"] <= facts["k"] <= facts["k_high"]
    assert facts["k_low"] <= 6 <= facts["k_high"]
    assert len(np.unique(labels)) == facts["k"]
    assert "is recommended" in said[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "--k 0: must be from 1 to 360, the number of images"),
        ((361,), "--k 361"),
        ((3, "ward"), "choose from kmeans, hierarchical, pic"),
        ((3, "pic"), "finds the number of clusters itself"),
    ],
)
def test_what_cannot_be_is_refused(blobs, arguments, words):
    with pytest.raises(ValueError, match=words):
        cluster_vectors(blobs[0], *arguments)


def test_pic_finds_clusters_among_few_images_of_many_features():
    """Whitened along as many axes as there are images, all would be equally far apart and each on its own."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 512)) * 2
    labels, _, _ = cluster_vectors((centers[np.arange(120) % 4] + rng.normal(size=(120, 512))).astype("f"), None, "pic")
    assert 2 <= len(np.unique(labels)) <= 30


def test_pic_finds_its_own_number(blobs):
    labels, _, _ = cluster_vectors(blobs[0], None, "pic")
    assert 2 <= len(np.unique(labels)) < 360


def test_a_split_is_seeded_and_whole():
    kept, held = held_out(10, 0.25, 0)
    assert sorted([*kept, *held]) == list(range(10))
    assert len(held) == 2
    assert np.array_equal(held_out(10, 0.25, 0)[1], held)
    assert len(held_out(3, 0.01, 0)[1]) == 1
    assert len(held_out(3, 0.99, 0)[0]) == 1


def features(names: list[str], labels: list) -> LabeledFeatures:
    n = len(labels)
    ids = [str(i) for i in range(n)]
    return LabeledFeatures(np.zeros((n, 2), "f"), np.array(labels), ids, ids, names, np.arange(n))


def test_labels_of_two_sets_meet_by_name():
    found = renumbered(features(["dog", "owl"], [1, 0, -1]), ["cat", "dog", "owl"])
    assert found.labels.tolist() == [2, 1, -1]
    assert found.class_names == ["cat", "dog", "owl"]


def test_a_class_that_training_lacks_gets_a_number_beyond_it():
    found = renumbered(features(["emu", "cat"], [0, 1]), ["cat", "dog"])
    assert found.labels.tolist() == [2, 0]


def test_several_labels_an_image_meet_by_name_as_well():
    found = renumbered(features(["owl", "cat"], [[1, 0], [1, 1]]), ["cat", "dog", "owl"])
    assert found.labels.tolist() == [[0, 0, 1], [1, 0, 1]]


def test_the_numbers_of_the_demo(blobs):
    numbers = score_digits(*blobs, 0)
    assert numbers["knn"] > 0.9
    assert numbers["matching"] > 0.98
    assert numbers["nmi"] > 0.95


def test_hdbscan_leaves_what_belongs_nowhere_in_a_group_of_its_own():
    """Three tight groups and rows far from everything: the groups are found, the others get -1."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 80)
    groups = 5 * np.eye(12)[truth] + 0.02 * rng.normal(size=(240, 12))
    far = rng.normal(size=(30, 12))
    rows = np.concatenate([groups, far]).astype(np.float32)
    labels, distances, facts = cluster_vectors(rows, None, "hdbscan", whiten=0)
    assert matching_accuracy(truth, labels[:240]) > 0.99
    assert (labels[240:] == -1).mean() > 0.6
    assert facts == {}
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    means = np.stack([unit[labels == k].mean(axis=0) for k in range(labels.max() + 1)])
    expected = np.linalg.norm(unit[:, None] - means, axis=2)
    nearest = np.where(labels >= 0, expected[np.arange(270), np.maximum(labels, 0)], expected.min(axis=1))
    np.testing.assert_allclose(distances, nearest, atol=1e-3)
    with pytest.raises(ValueError, match="hdbscan finds the number of clusters itself"):
        cluster_vectors(rows, 3, "hdbscan")
    noise = rng.normal(size=(60, 8)).astype(np.float32)
    labels, distances, _ = cluster_vectors(noise, None, "hdbscan")
    assert np.isfinite(distances).all()


def test_a_number_is_chosen_along_whitened_axes_where_features_are_wide():
    """Two loud axes split the rows in two; eight groups lie along quieter ones."""
    rng = np.random.default_rng(0)
    truth = np.arange(480) % 8
    rows = np.zeros((480, 300))
    rows[:, :8] = np.eye(8)[truth] + 0.05 * rng.normal(size=(480, 8))
    rows[:, 8] = 6 * rng.integers(0, 2, 480)
    rows[:, 9:] = 0.02 * rng.normal(size=(480, 291))
    facts = cluster_vectors(rows.astype(np.float32), "auto")[2]
    assert facts["k_low"] <= 16
    assert facts["k"] >= 6
