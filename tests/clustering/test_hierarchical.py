import numpy as np
import pytest
import torch

from selfcluster.clustering.hierarchical import HierarchicalKMeans
from selfcluster.clustering.kmeans import KMeans

X = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))


def test_two_levels_are_k_means_within_k_means():
    model = HierarchicalKMeans(3, 4, random_state=0).fit(X)
    part = model.labels_ // 4
    assert torch.equal(part, KMeans(3, random_state=0, max_iter=10).fit(X).labels_)
    total = 0.0
    for p in range(3):
        own = X[part == p]
        centers = model.cluster_centers_[4 * p : 4 * p + 4]
        squares = torch.cdist(own.double(), centers.double()).square()
        assert torch.equal(model.labels_[part == p] % 4, squares.argmin(dim=1))
        total += float(squares.amin(dim=1).sum())
    assert model.inertia_ == pytest.approx(total, rel=1e-5)
    assert len(model.history_) == 4


def test_predict_gives_the_labels_back_and_kinds_agree():
    model = HierarchicalKMeans(3, 4, spherical=True, random_state=0).fit(X)
    assert torch.equal(model.predict(X), model.labels_)
    numpy = HierarchicalKMeans(3, 4, spherical=True, random_state=0).fit(X.numpy())
    assert isinstance(numpy.labels_, np.ndarray)
    assert (numpy.labels_ == model.labels_.numpy()).all()
    assert (numpy.predict(X.numpy()) == numpy.labels_).all()


def test_more_parts_cost_no_inertia_over_one_level():
    assert HierarchicalKMeans(4, 5, random_state=0).fit(X).inertia_ < KMeans(4, random_state=0).fit(X).inertia_


def test_a_part_smaller_than_its_clusters_keeps_the_surplus_empty():
    x = torch.cat([torch.zeros(1, 2) + 100, torch.randn(30, 2, generator=torch.Generator().manual_seed(1))])
    model = HierarchicalKMeans(2, 5, random_state=0, init="k-means++").fit(x)
    part = int(model.labels_[0]) // 5
    assert (model.labels_ // 5 == part).sum() == 1
    assert model.cluster_centers_.shape == (10, 2)
    assert (model.cluster_centers_[5 * part : 5 * part + 5] == 100).all()
    assert torch.equal(model.predict(x), model.labels_)


def test_weights_reach_both_levels():
    weight = torch.ones(400)
    weight[200:] = 0
    model = HierarchicalKMeans(2, 3, random_state=0, max_iter=200).fit(X, sample_weight=weight)
    part = model.labels_[:200] // 3
    for p in range(2):
        mean = X[:200][part == p].mean(dim=0)
        torch.testing.assert_close(model.part_centers_[p], mean, rtol=1e-4, atol=1e-4)


def test_a_part_mostly_of_weight_zero_has_as_many_clusters_as_rows_that_count():
    x = np.concatenate([np.zeros((50, 2)), np.full((50, 2), 9.0)]) + np.random.default_rng(0).normal(size=(100, 2))
    weight = np.ones(100)
    weight[:48] = 0
    labels = HierarchicalKMeans(2, 4, random_state=0).fit(x, sample_weight=weight).labels_
    assert len(set(labels[:50]) & set(labels[50:])) == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_a_file_is_clustered_as_its_rows_in_memory(weighted, tmp_path):
    file = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=tuple(X.shape))
    file[:] = X.numpy()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(X)) if weighted else None
    memory, disk = (HierarchicalKMeans(3, 4, random_state=0).fit(x, sample_weight=weight) for x in (X.numpy(), file))
    assert (memory.labels_ == disk.labels_).all()
    assert disk.inertia_ == pytest.approx(memory.inertia_)
    assert (memory.predict(X.numpy()) == disk.predict(file)).all()
