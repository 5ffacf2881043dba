"""Queue, sample, label and centroid memories: values by hand, and two routes that agree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from selfcluster.clustering.memory import CentroidMemory, FeatureQueue, LabelMemory, SampleMemory, last_of_each


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 12), sizes=st.lists(st.integers(0, 20), max_size=6))
def test_a_queue_is_the_newest_rows_newest_batch_first(length: int, sizes: list[int]) -> None:
    queue, expected, number = FeatureQueue(length, 1), [], 0
    for size in sizes:
        batch = [float(number + i) for i in range(size)]
        number += size
        queue.push(torch.tensor(batch).view(-1, 1))
        expected = (batch + expected)[:length]
        assert queue.rows.flatten().tolist() == expected
        assert queue.full == (len(expected) == length)
        assert queue.storage[len(expected) :].eq(0).all()


def test_a_queue_survives_its_checkpoint() -> None:
    queue, other = FeatureQueue(4, 2), FeatureQueue(4, 2)
    assert set(queue.state_dict()) == {"storage", "count"}
    queue.push(torch.randn(3, 2))
    other.push(torch.randn(5, 2))
    assert other.full
    other.load_state_dict(queue.state_dict())
    assert not other.full
    assert torch.equal(other.rows, queue.rows)


def test_a_queue_can_start_full() -> None:
    queue, rows = FeatureQueue(3, 2), torch.randn(3, 2)
    queue.fill(rows)
    assert queue.full
    assert torch.equal(queue.rows, rows)


@given(index=st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_last_of_each(index: list[int]) -> None:
    expected = [max(j for j, other in enumerate(index) if other == value) for value in index]
    assert last_of_each(torch.tensor(index)).tolist() == expected


def test_a_write_replaces_and_the_last_duplicate_wins() -> None:
    memory, features = SampleMemory(5, 3), torch.randn(4, 3)
    written = memory.write(torch.tensor([3, 0, 3, 1]), features, epoch=7)
    assert torch.equal(written, features)
    assert torch.equal(memory.rows[[3, 0, 1]], features[[2, 1, 3]])
    assert memory.rows[[2, 4]].eq(0).all()
    assert memory.written.tolist() == [7, 7, -1, 7, -1]
    assert memory.fresh(7).tolist() == [True, True, False, True, False]
    assert not memory.fresh(8).any()
    assert set(memory.state_dict()) == {"rows", "written"}


def test_a_momentum_write_is_odc_eq_2() -> None:
    old, f = torch.tensor([0.6, 0.8]), torch.tensor([5.0, 0.0])
    for normalized in (False, True):
        memory = SampleMemory(2, 2, momentum=0.25, normalize=normalized)
        memory.fill(old.expand(2, 2))
        memory.write(torch.tensor([1]), f[None], epoch=1)
        expected = 0.75 * old + 0.25 * torch.tensor([1.0, 0.0])  # the feature enters with length 1
        expected = normalize(expected, dim=0) if normalized else expected
        torch.testing.assert_close(memory.rows[1], expected)
        torch.testing.assert_close(memory.rows[0], old)


def test_a_first_momentum_write_is_not_mixed_with_nothing() -> None:
    memory = SampleMemory(1, 2, momentum=0.5, normalize=False)
    memory.write(torch.tensor([0]), torch.tensor([[0.0, 4.0]]), epoch=0)
    torch.testing.assert_close(memory.rows[0], torch.tensor([0.0, 1.0]))


def test_duplicates_in_a_momentum_write_start_from_the_same_row() -> None:
    memory = SampleMemory(1, 2, momentum=0.5, normalize=False)
    memory.fill(torch.tensor([[1.0, 0.0]]))
    memory.write(torch.tensor([0, 0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), epoch=0)
    torch.testing.assert_close(memory.rows[0], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(("momentum", "normalize"), [(None, False), (0.5, False), (0.5, True)])
@pytest.mark.parametrize("block", [1, 5, 23, 100])
def test_a_write_in_blocks_is_the_write(momentum: float | None, normalize: bool, block: int) -> None:
    g = torch.Generator().manual_seed(0)
    whole, parts = (SampleMemory(23, 3, momentum, normalize) for _ in range(2))
    for epoch, size in ((0, 20), (1, 23)):  # the second meets rows that are written and rows that are not
        index, f = torch.randperm(23, generator=g)[:size], torch.randn(size, 3, generator=g)
        whole.write(index, f, epoch)
        parts.write_in_blocks(index, f, epoch, block)
        assert torch.equal(parts.rows, whole.rows)
        assert torch.equal(parts.written, whole.written)


def test_ranks_of_unequal_shares_write_equally_many_blocks(monkeypatch) -> None:
    """Three ranks with 0, 4 and 19 of 23 samples meet in every collective write, with at most 5 + 2 rows together."""
    sizes = []
    for share in (0, 4, 19):
        memory, calls = SampleMemory(23, 3), []
        monkeypatch.setattr(memory, "write", lambda index, features, epoch, calls=calls: calls.append(len(index)))
        memory.write_in_blocks(torch.arange(share), torch.randn(share, 3), epoch=0, block=5)
        assert sum(calls) == share
        sizes.append(calls)
    assert [len(calls) for calls in sizes] == [5, 5, 5]
    assert max(map(sum, zip(*sizes, strict=True))) <= 7


def test_labels() -> None:
    memory = LabelMemory(4)
    memory.write(torch.tensor([2, 0, 2]), torch.tensor([5, 6, 7]))
    assert memory.labels.tolist() == [6, -1, 7, -1]


def test_centroids_are_the_members_means_in_float64() -> None:
    g = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(200, 6, generator=g), torch.randint(-1, 5, (200,), generator=g)
    labels[labels == 3] = 2  # cluster 3 is empty
    memory = CentroidMemory(5, 6)
    memory.rows.fill_(9.0)
    memory.recompute(rows, labels)
    for c in (0, 1, 2, 4):
        torch.testing.assert_close(
            memory.rows[c].double(), rows[labels == c].double().mean(dim=0), rtol=1e-6, atol=1e-7
        )
    assert memory.rows[3].eq(9).all()
    assert memory.counts.tolist() == [int((labels == c).sum()) for c in range(5)]


def test_only_the_named_centroids_change() -> None:
    rows, labels = torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1])
    memory = CentroidMemory(2, 1)
    memory.recompute(rows, labels, torch.tensor([1]))
    assert memory.rows.flatten().tolist() == [0.0, 7.0]
    assert memory.counts.tolist() == [2, 1]


def test_nearest_centroids_by_both_metrics() -> None:
    memory = CentroidMemory(3, 2)
    memory.rows.copy_(torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.0, 0.5]]))
    memory.counts.copy_(torch.tensor([1, 1, 0]))
    f = torch.tensor([[0.9, 0.2]])
    assert memory.nearest(f, "l2").tolist() == [0]
    assert memory.nearest(f, "inner_product").tolist() == [1]  # the longer centroid wins a raw product
    assert memory.nearest(torch.tensor([[0.0, 0.5]]), "l2").tolist() == [0]  # the empty one is never chosen
    with pytest.raises(ValueError, match="cosine"):
        memory.nearest(f, "cosine")


def test_label_writes_say_what_moved() -> None:
    """Image 2 goes from 5 to 8 (its last write), image 0 gets its first label, image 3 stays."""
    memory = LabelMemory(4)
    memory.labels.copy_(torch.tensor([-1, 4, 5, 6]))
    before, after = memory.write(torch.tensor([2, 0, 2, 3]), torch.tensor([7, 9, 8, 6]))
    assert list(zip(before.tolist(), after.tolist(), strict=True)) == [(8, 8), (-1, 9), (5, 8), (6, 6)]


def test_moves_are_counted_and_mark_their_clusters() -> None:
    memory = CentroidMemory(10, 1)
    memory.counts[5:7] = 1
    memory.move(torch.tensor([8, -1, 5, 6]), torch.tensor([8, 9, 8, 6]))
    assert memory.counts.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 1, 1]
    assert memory.involved.nonzero().flatten().tolist() == [5, 8, 9]
    labels = torch.tensor([6, 8, 9])
    memory.recompute(torch.tensor([[1.0], [2.0], [3.0]]), labels, memory.involved)
    assert memory.rows.flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 2, 3]  # 6 was not involved, 5 is empty
    assert not memory.involved.any()


def test_a_row_can_be_foretold() -> None:
    memory = SampleMemory(3, 2, momentum=0.5)
    memory.fill(torch.eye(2)[[0, 1, 0]])
    index, f = torch.tensor([1, 2]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    before, foretold = memory.rows.clone(), memory.moved(index, f)
    assert torch.equal(memory.rows, before)
    memory.write(index, f, epoch=0)
    assert torch.equal(memory.rows[index], foretold)
