"""k-means of some images by number: the same whoever holds what, and as k-means from the same start."""

import pytest
import torch

from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.members import cluster_members, fill_up_


def rows(n=120, d=5):
    return torch.randn((n, d), generator=torch.Generator().manual_seed(0))


def test_it_is_k_means_of_the_members_from_random_members():
    x, members = rows(), torch.arange(0, 120, 2)
    found = cluster_members(x, torch.arange(120), members, 6, max_iter=10, seed=3)
    start = members[torch.randperm(60, generator=torch.Generator().manual_seed(3))[:6]]
    expected = KMeans(6, init=x[start], max_iter=10, random_state=3).fit(x[members])
    assert torch.equal(found.labels, expected.labels_)
    assert torch.equal(found.centers, expected.cluster_centers_)
    assert found.inertia == expected.inertia_


def test_the_order_in_which_rows_are_held_changes_nothing():
    x, members = rows(), torch.arange(10, 90)
    mixed = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    one = cluster_members(x, torch.arange(120), members, 7, max_iter=10, seed=0)
    other = cluster_members(x[mixed], mixed, members, 7, max_iter=10, seed=0)
    assert torch.equal(one.labels, other.labels)
    torch.testing.assert_close(one.centers, other.centers)


def test_fewer_members_than_clusters_leave_copies():
    x = rows()
    found = cluster_members(x, torch.arange(120), torch.tensor([7, 9, 50]), 5, max_iter=10, seed=0)
    assert sorted(found.labels.tolist()) == [0, 1, 2]
    assert found.inertia == pytest.approx(0, abs=1e-9)
    assert torch.equal(found.centers[found.labels], x[[7, 9, 50]])
    assert torch.equal(found.centers[3:], found.centers[:2])


@pytest.mark.parametrize("sizes", [(100, 0, 3), (10, 1, 1), (5, 4, 3), (4, 4, 4)])
def test_small_clusters_are_filled_up_from_the_largest(sizes):
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    before = labels.clone()
    fill_up_(labels, 3, 4, torch.Generator().manual_seed(0))
    after = labels.bincount(minlength=3)
    assert after.min() >= 4
    assert after.sum() == sum(sizes)
    kept = torch.tensor(sizes) >= 4
    moved = before != labels
    assert (before[moved] == int(torch.tensor(sizes).argmax())).all() or sizes == (100, 0, 3)
    if kept.all():
        assert not moved.any()
