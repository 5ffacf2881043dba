"""Small clusters: emptying and splitting by hand, against float64 distances, and alike on two processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcluster.clustering.memory import CentroidMemory
from selfcluster.clustering.rebalance import rebalance

# cluster 0 is two clumps, cluster 1 one clump, cluster 2 a single sample that is nearest to cluster 1
CLUMPS = torch.tensor([[0.0], [0.1], [0.2], [10.0], [10.1], [10.2], [20.0], [20.1], [20.2], [20.3], [19.0]])
LABELS = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2]


def memory_of(rows: torch.Tensor, labels: torch.Tensor, k: int) -> CentroidMemory:
    centroids = CentroidMemory(k, rows.shape[1])
    centroids.recompute(rows, labels)
    return centroids


def random_case(seed: int, n: int = 300, k: int = 10) -> tuple[torch.Tensor, torch.Tensor, CentroidMemory]:
    """Gaussian rows; sizes fall with the cluster's number, every eleventh sample has no label."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 5, generator=g)
    labels = (torch.rand(n, generator=g) ** 4 * k).long()
    labels[::11] = -1
    return rows, labels, memory_of(rows, labels, k)


def test_by_hand() -> None:
    outcomes = set()
    for seed in range(12):
        labels = torch.tensor(LABELS)
        centroids = memory_of(CLUMPS, labels, 3)
        assert rebalance(CLUMPS, labels, centroids, 2, seed=seed) == 1
        first, second = labels[0].item(), labels[3].item()
        assert {first, second} == {0, 2}  # the clumps of the largest cluster have parted
        assert labels.tolist() == [first] * 3 + [second] * 3 + [1] * 5  # and the single sample went to its neighbor
        assert centroids.counts.tolist() == [3, 5, 3]
        means = torch.tensor([[0.1], [10.1]]) if first == 0 else torch.tensor([[10.1], [0.1]])
        torch.testing.assert_close(centroids.rows[[0, 2]], means)
        torch.testing.assert_close(centroids.rows[1], torch.tensor([20.15]))  # till the next update of the centroids
        assert centroids.involved.tolist() == [False, True, False]
        outcomes.add(first)
    assert outcomes == {0, 2}  # which half is taken is drawn


def test_a_second_half_is_not_drawn() -> None:
    """With "second" the remade cluster's half is k-means' own number 1."""
    from selfcluster import randomness
    from selfcluster.clustering.kmeans import KMeans

    for seed in range(6):
        labels = torch.tensor(LABELS)
        rebalance(CLUMPS, labels, memory_of(CLUMPS, labels, 3), 2, half="second", seed=seed)
        kmeans = KMeans(2, random_state=randomness.key(seed, "split", 0, 2) >> 33).fit(CLUMPS[:6])
        assert torch.equal(labels[:6] == 2, torch.as_tensor(kmeans.labels_) == 1)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("seed", range(3))
def test_emptied_samples_go_to_the_nearest_large_cluster(metric: str, seed: int) -> None:
    rows, labels, centroids = random_case(seed)
    before, sizes, c = labels.clone(), centroids.counts.clone(), centroids.rows.double().numpy()
    small = (sizes < 15).numpy()
    assert small.any()
    assert rebalance(rows, labels, centroids, 15, metric=metric, rounds=1, seed=seed) == small.sum()
    for i in range(len(rows)):
        x = rows[i].double().numpy()
        cost = ((x - c) ** 2).sum(axis=1) if metric == "l2" else -(c @ x)
        was, now = int(before[i]), int(labels[i])
        if was < 0:
            assert now == -1
        elif small[now]:
            continue  # part of a half that a remade cluster got
        elif small[was]:
            assert now == np.where(small, np.inf, cost).argmin()
        else:
            assert now == was
    assert torch.equal(centroids.counts, torch.bincount(labels[labels >= 0], minlength=10))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), least=st.integers(1, 12))
def test_none_is_small_afterwards(seed: int, least: int) -> None:
    rows, labels, centroids = random_case(seed)
    rebalance(rows, labels, centroids, least, seed=seed)
    assert centroids.counts.min() >= least
    assert torch.equal(centroids.counts, torch.bincount(labels[labels >= 0], minlength=10))
    assert rebalance(rows, labels, centroids, least, seed=seed) == 0


def test_nothing_happens_where_all_or_none_are_small() -> None:
    for least in (1, 100):
        labels = torch.tensor(LABELS)
        centroids = memory_of(CLUMPS, labels, 3)
        assert rebalance(CLUMPS, labels, centroids, least) == 0
        assert labels.tolist() == LABELS
        assert not centroids.involved.any()


def test_rows_that_are_all_alike_are_halved() -> None:
    rows, labels = torch.ones(8, 2), torch.zeros(8, dtype=torch.int64)
    centroids = memory_of(rows, labels, 2)
    assert rebalance(rows, labels, centroids, 1) == 1
    assert centroids.counts.tolist() == [4, 4]


def test_an_unknown_half_is_refused() -> None:
    with pytest.raises(ValueError, match="half='first' must be 'random' or 'second'"):
        rebalance(CLUMPS, torch.tensor(LABELS), CentroidMemory(3, 1), 1, half="first")


def outcome(seed: int) -> list[np.ndarray]:
    rows, labels, centroids = random_case(seed)
    rebalance(rows, labels, centroids, 20, seed=seed)
    return [t.numpy() for t in (labels, centroids.counts, centroids.rows, centroids.involved)]


@pytest.mark.slow
def test_two_processes_are_one(ranks) -> None:
    whole = outcome(3)
    for part in ranks.run(outcome, 3):
        for mine, expected in zip(part, whole, strict=True):
            np.testing.assert_allclose(mine, expected, atol=1e-6)
