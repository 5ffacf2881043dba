"""The order of an epoch: laws of counting, for any plan and any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfcluster.data.order import epoch_order, rank_slice, shuffled
from selfcluster.types import EpochPlan


def test_a_shuffle_is_a_permutation_that_depends_on_seed_purpose_and_counter():
    first = shuffled(1000, 0, "a")
    assert sorted(first) == list(range(1000))
    for other in (shuffled(1000, 1, "a"), shuffled(1000, 0, "b"), shuffled(1000, 0, "a", 1)):
        assert (first != other).mean() > 0.9
    np.testing.assert_array_equal(first, shuffled(1000, 0, "a"))


def test_every_place_is_as_likely_for_every_image():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), shuffled(6, seed, "x")] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 52.6  # 99.9 % point, 25 degrees


def test_without_a_plan_no_image_comes_twice_and_the_rest_is_left_out():
    order = epoch_order(103, 10, 10, seed=0, epoch=3)
    assert order.shape == (10, 10)
    assert len(np.unique(order)) == 100
    assert (order != epoch_order(103, 10, 10, seed=0, epoch=4)).any()


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 5))
def test_ranks_slices_in_rank_order_are_the_batch(world, each, epoch):
    order = epoch_order(100, world * each, 2, seed=0, epoch=epoch)
    parts = [order[:, rank_slice(world * each, rank, world)] for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), order)


def test_a_balanced_epoch_draws_every_cluster_alike_and_never_minus_one():
    labels = np.array([-1] * 20 + [0] * 50 + [1] * 5 + [2] * 25 + [7] * 1)
    order = epoch_order(101, 10, 10, seed=0, epoch=0, plan=EpochPlan(balance=torch.from_numpy(labels))).ravel()
    drawn = np.bincount(labels[order], minlength=8)
    assert drawn[[0, 1, 2, 7]].tolist() == [25, 25, 25, 25]
    assert (labels[order] >= 0).all()
    times = np.bincount(order, minlength=101)
    assert times[labels == 0].max() == 1  # 25 draws of 50 images: none twice
    assert (times[labels == 1] == 5).all()  # 25 of 5: all of them five times
    assert (times[labels == 2] == 1).all()


@given(st.lists(st.integers(-1, 4), min_size=3, max_size=60), st.integers(1, 40), st.integers(0, 3))
def test_no_image_of_a_cluster_is_drawn_two_times_more_than_another(labels, count, seed):
    labels = np.array([0, *labels])
    order = epoch_order(len(labels), count, 1, seed, 0, EpochPlan(balance=torch.from_numpy(labels))).ravel()
    per_cluster = [np.bincount(labels[order], minlength=5)[k] for k in np.unique(labels[labels >= 0])]
    assert max(per_cluster) - min(per_cluster) <= 1
    for k in np.unique(labels[labels >= 0]):
        times = np.bincount(order, minlength=len(labels))[labels == k]
        assert times.max() - times.min() <= 1


def test_balanced_draws_are_flat_over_many_epochs():
    labels = np.repeat([0, 1], [3, 9])
    counts = np.zeros(12)
    for epoch in range(2000):
        counts += np.bincount(
            epoch_order(12, 8, 1, 0, epoch, EpochPlan(balance=torch.from_numpy(labels))).ravel(), minlength=12
        )
    assert counts[:3].sum() == counts[3:].sum() == 8000
    # 4 draws of 3 images: one each and one more, at random; 4 of 9: each with chance 4/9
    assert ((counts[:3] - 8000 / 3) ** 2 / (2000 * 2 / 9)).sum() < 13.8 * 1.5
    assert ((counts[3:] - 8000 / 9) ** 2 / (2000 * 20 / 81)).sum() < 26.1 * 9 / 8


def test_positions_of_clusters_are_mixed():
    labels = np.repeat([0, 1], 500)
    order = epoch_order(1000, 100, 10, 0, 0, EpochPlan(balance=torch.from_numpy(labels)))
    share = labels[order].mean(axis=1)
    assert (np.abs(share - 0.5) < 0.25).all()


def test_with_replacement_counts_follow_the_binomial():
    order = epoch_order(200, 200, 50, 0, 0, EpochPlan(replace=True)).ravel()
    counts = np.bincount(order, minlength=200)
    assert 130 < ((counts - 50) ** 2 / 50).sum() < 280  # chi-square, 199 degrees: 0.1 % points 143 and 267, widened
    labels = np.repeat([0, 1], [150, 50])
    balanced = epoch_order(200, 200, 5, 0, 0, EpochPlan(replace=True, balance=torch.from_numpy(labels))).ravel()
    assert np.bincount(labels[balanced]).tolist() == [500, 500]
    assert len(np.unique(balanced[:200])) < 190  # some come twice


def test_groups_have_equal_shares_of_every_batch_side_by_side():
    groups = np.array([0] * 5 + [1] * 40 + [2] * 20 + [-1] * 35)
    order = epoch_order(100, 12, 6, 0, 0, EpochPlan(groups=torch.from_numpy(groups)))
    np.testing.assert_array_equal(groups[order], np.tile(np.repeat([0, 1, 2], 4), (6, 1)))
    times = np.bincount(order.ravel(), minlength=100)
    assert set(times[groups == 0]) == {4, 5}  # 24 draws of 5
    assert times[groups == 1].max() == 1
    for rank in range(3):  # as many ranks as groups: each draws from its own
        assert (groups[order[:, rank_slice(12, rank, 3)]] == rank).all()


def test_clusters_are_balanced_inside_groups():
    groups = np.repeat([0, 1], 50)
    labels = np.concatenate([np.repeat([0, 1], [45, 5]), np.repeat([2, 3, 4], [30, 10, 10])])
    plan = EpochPlan(groups=torch.from_numpy(groups), balance=torch.from_numpy(labels))
    drawn = np.bincount(labels[epoch_order(100, 10, 6, 0, 0, plan).ravel()])
    assert drawn.tolist() == [15, 15, 10, 10, 10]


def test_what_cannot_be_drawn_is_an_error_with_the_numbers():
    with pytest.raises(ValueError, match="20 images an epoch are needed, more than the 15 images"):
        epoch_order(15, 10, 2, 0, 0)
    with pytest.raises(ValueError, match="every label is -1"):
        epoch_order(4, 2, 1, 0, 0, EpochPlan(balance=torch.full((4,), -1)))
    with pytest.raises(ValueError, match="batch_size=10 must be a multiple of the number of groups, 3"):
        epoch_order(9, 10, 1, 0, 0, EpochPlan(groups=torch.arange(9) % 3))
    with pytest.raises(ValueError, match=r"balance has shape \(3,\), \(4,\) is needed"):
        epoch_order(4, 2, 1, 0, 0, EpochPlan(balance=torch.zeros(3)))


def test_the_order_of_a_seed_does_not_change_between_releases():
    assert epoch_order(12, 4, 3, seed=7, epoch=2).tolist() == [[3, 6, 7, 8], [5, 4, 11, 10], [9, 0, 2, 1]]
