import numpy as np
import pytest
import torch

from selfcluster.clustering.init import k_means_parallel, k_means_plus_plus, random_members
from selfcluster.clustering.rows import Rows

X = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))


def is_member(centers, x):
    return bool(
        (torch.cdist(centers.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist") == 0).any(1).all()
    )


@pytest.mark.parametrize("start", [random_members, k_means_plus_plus, k_means_parallel])
class TestEvery:
    def test_starts_are_different_members(self, start):
        centers = start(Rows(X), 20, seed=1)
        assert centers.shape == (20, 5)
        assert is_member(centers, X)
        assert len(centers.unique(dim=0)) == 20

    def test_a_seed_decides(self, start):
        first, again, other = (start(Rows(X), 10, seed=s) for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_as_many_as_there_are_rows(self, start):
        assert len(start(Rows(X[:7]), 7, seed=0).unique(dim=0)) == 7

    def test_rows_of_no_weight_are_not_chosen(self, start):
        weight = torch.ones(300, dtype=torch.float64)
        weight[100:] = 0
        for seed in range(5):
            assert is_member(start(Rows(X, weight=weight), 15, seed=seed), X[:100])

    def test_fewer_distinct_rows_than_clusters_still_give_k(self, start):
        assert start(Rows(X[:2].repeat(10, 1)), 5, seed=0).shape == (5, 5)


def test_random_members_are_uniform():
    drawn = torch.zeros(6)
    x = torch.arange(6.0)[:, None]
    for seed in range(1500):
        drawn[random_members(Rows(x), 2, seed).squeeze(1).long()] += 1
    np.testing.assert_allclose(drawn / 1500, np.full(6, 1 / 3), atol=0.05)


def test_too_few_rows_with_weight():
    weight = torch.zeros(300, dtype=torch.float64)
    weight[:3] = 1
    with pytest.raises(ValueError, match=r"only 3 rows .* n_clusters=4"):
        random_members(Rows(X, weight=weight), 4, seed=0)


def test_the_second_center_is_drawn_by_squared_distance():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = {(a, b): 0 for a in range(3) for b in range(3)}
    odds = {0: [0, 1 / 10, 9 / 10], 1: [1 / 5, 0, 4 / 5], 2: [9 / 13, 4 / 13, 0]}  # squared distances, normalized
    names = {0.0: 0, 1.0: 1, 3.0: 2}
    for seed in range(1500):
        a, b = k_means_plus_plus(Rows(x), 2, seed).squeeze(1).tolist()
        pairs[names[a], names[b]] += 1
    for a, row in odds.items():
        total = sum(pairs[a, b] for b in range(3))
        assert total / 1500 == pytest.approx(1 / 3, abs=0.05)
        np.testing.assert_allclose([pairs[a, b] / total for b in range(3)], row, atol=0.08)


@pytest.mark.parametrize("start", [k_means_plus_plus, k_means_parallel])
def test_spread_starts_lie_closer_to_the_data_than_random_ones(start):
    centers = 20 * torch.eye(5).repeat(2, 1) * torch.tensor([1.0] * 5 + [-1.0] * 5)[:, None]
    x = centers.repeat_interleave(200, 0) + torch.randn(2000, 5, generator=torch.Generator().manual_seed(1))

    def cost(c):
        return float(torch.cdist(x, c).square().amin(dim=1).sum())

    spread = np.median([cost(start(Rows(x), 10, s)) for s in range(9)])
    random = np.median([cost(random_members(Rows(x), 10, s)) for s in range(9)])
    assert spread < random / 5
