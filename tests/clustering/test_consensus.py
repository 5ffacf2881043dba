"""Consensus clusterings against the co-association matrix itself, and on clusterings with a known truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from selfcluster.clustering.consensus import consensus
from selfcluster.clustering.scores import ari


def noisy(truth: np.ndarray, runs: int, wrong: float, seed: int = 0) -> np.ndarray:
    """Clusterings that move a share of the samples to a random cluster and rename all clusters."""
    rng = np.random.default_rng(seed)
    k, table = truth.max() + 1, []
    for _ in range(runs):
        row = np.where(rng.random(len(truth)) < wrong, rng.integers(0, k, len(truth)), truth)
        table.append(rng.permutation(k)[row])
    return np.stack(table)


def test_equals_average_linkage_on_the_co_association_matrix() -> None:
    table = np.random.default_rng(0).integers(0, 4, size=(6, 40))
    together = np.mean([row[:, None] == row for row in table], axis=0)
    tree = linkage(squareform(1 - together), method="average")
    found = consensus(table, k=5)
    expected = fcluster(tree, 5, criterion="maxclust")
    assert ari(found.labels, expected) == 1.0
    support = [together[i, found.labels == found.labels[i]].mean() for i in range(40)]
    np.testing.assert_allclose(found.support, support)
    assert found.agreement == pytest.approx(np.mean(support))


def test_recovers_the_truth_and_its_number_of_clusters() -> None:
    truth = np.random.default_rng(1).integers(0, 5, 300)
    found = consensus(noisy(truth, 20, 0.25))
    assert found.n_clusters == 5
    assert ari(found.labels, truth) > 0.98
    assert 0.5 < found.agreement < 0.9


def test_agreeing_clusterings_are_their_own_consensus() -> None:
    truth = np.random.default_rng(2).integers(0, 3, 50)
    found = consensus([truth, (truth + 1) % 3, torch.from_numpy(truth)])
    assert found.n_clusters == 3
    assert ari(found.labels, truth) == 1.0
    np.testing.assert_allclose(found.support, 1.0)
    assert consensus([[4] * 6, [1] * 6]).n_clusters == 1


def test_beyond_the_limit_a_sample_is_linked_and_the_rest_looked_up() -> None:
    truth = np.random.default_rng(3).integers(0, 4, 20_000)
    found = consensus(noisy(truth, 15, 0.2), limit=200, seed=5)
    assert found.n_clusters == 4
    assert ari(found.labels, truth) > 0.97
    assert np.array_equal(found.labels, consensus(noisy(truth, 15, 0.2), limit=200, seed=5).labels)


def test_a_sample_without_a_cluster_in_one_clustering_is_judged_by_the_others() -> None:
    truth = np.repeat([0, 1], 10)
    table = np.stack([truth, truth, truth])
    table[0, :3] = -1
    found = consensus(table, k=2)
    assert ari(found.labels, truth) == 1.0
    np.testing.assert_allclose(found.support, 1.0)


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match="got 1"):
        consensus([[0, 1, 1]])
    with pytest.raises(ValueError, match=r"\(3,\), \(2,\)"):
        consensus([[0, 1, 1], [0, 1]])
    with pytest.raises(ValueError, match="k=9"):
        consensus([[0, 1, 1], [0, 1, 0]], k=9)
    with pytest.raises(ValueError, match="limit=1"):
        consensus([[0, 1, 1], [0, 1, 0]], limit=1)
