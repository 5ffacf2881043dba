"""Weighted nearest neighbors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from selfcluster.evaluation.labeled import top
from selfcluster.evaluation.protocols import knn as module
from selfcluster.evaluation.protocols.knn import knn, knn_map, knn_sweep, parse_numbers, rank_of, sweep_votes


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_votes_by_hand():
    cosines = torch.tensor([[1.0, 0.9, 0.8]], dtype=torch.float64)
    one, three = sweep_votes(cosines, torch.tensor([[1, 0, 0]]), 3, (1, 3), 0.1)
    none = -math.inf
    torch.testing.assert_close(one, torch.tensor([[none, 1.0, none]], dtype=torch.float64))
    torch.testing.assert_close(three, torch.tensor([[math.exp(-1) + math.exp(-2), 1.0, none]], dtype=torch.float64))


def test_ranks_by_hand():
    scores = torch.tensor([[0.5, -math.inf, 0.9, 0.5]]).expand(5, 4)
    assert rank_of(scores, torch.tensor([0, 1, 2, 3, -1])).tolist() == [1, 4, 0, 2, 4]


def test_a_class_without_a_vote_is_not_among_the_five_best():
    """Two of six classes have a vote: the third best is a class that no neighbor has."""
    train, labels = at(0, 20, 100, 120, 140, 160), [0, 1, 2, 3, 4, 5]
    found = knn(train, labels, at(5, 5, 5), [0, 1, 2], k=2)
    assert found["top1"] == pytest.approx(1 / 3)
    assert found["top5"] == pytest.approx(2 / 3)


def test_a_sweep_is_the_same_as_one_k_after_the_other_whatever_the_tile(monkeypatch):
    rng = np.random.default_rng(2)
    train, test = rng.normal(size=(200, 5)), rng.normal(size=(60, 5))
    labels, wanted = rng.integers(0, 7, 200), rng.integers(0, 8, 60)
    ks = (1, 3, 20, 50)
    apart = [knn(train, labels, test, wanted, k=k) for k in ks]
    assert knn_sweep(train, labels, test, wanted, ks=ks) == apart
    assert len({row["top1"] for row in apart}) > 1
    monkeypatch.setattr(module, "_HELD", 7 * 11)  # 11 test images a tile
    assert knn_sweep(train, labels, test, wanted, ks=ks) == apart


def test_several_labels_are_scored_by_average_precision_of_the_share_of_votes(monkeypatch):
    rng = np.random.default_rng(3)
    train, test = rng.normal(size=(90, 4)), rng.normal(size=(40, 4))
    tags, truth = (rng.integers(0, 2, size=(n, 3)) for n in (90, 40))
    truth = np.c_[truth, np.zeros((40, 2), int)]
    truth[7, 3] = 1  # a class that train lacks: all scores are 0, and precision is the share of positive images
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    cosines = unit[1] @ unit[0].T
    nearest = np.argsort(-cosines, axis=1)[:, :9]
    weights = np.exp((np.take_along_axis(cosines, nearest, 1) - 1) / 0.07)
    shares = (weights[:, :, None] * tags[nearest]).sum(1) / weights.sum(1, keepdims=True)
    steps = [average_precision_score(truth[:, c], shares[:, c]) for c in range(3)] + [1 / 40]
    for held in (1 << 24, 9 * 5 * 4):
        monkeypatch.setattr(module, "_HELD", held)
        monkeypatch.setattr(module, "class_precisions", lambda s, y, form="steps": _steps(s, y))
        found = knn_map(train, tags, test, truth, ks=(1, 9))[1]
        assert found["map"] == pytest.approx(np.mean(steps))
        assert (found["k"], found["classes"]) == (9, 4)


def _steps(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from selfcluster.evaluation.average_precision import class_precisions

    return class_precisions(scores, labels, "steps")


def test_the_list_of_k_is_read_and_nonsense_refused():
    assert parse_numbers("10,20, 10") == (10, 20)
    for wrong in ("", "10,", "ten", "0", "-3", "1.5"):
        with pytest.raises(ValueError, match="give whole numbers of at least 1"):
            parse_numbers(wrong)


def test_one_near_neighbor_outvotes_two_far_ones_only_at_a_low_temperature():
    train, labels = at(0, 40, 50), [1, 0, 0]  # the query at 10 degrees: cosines 0.985, 0.866, 0.766
    weights = np.exp((np.cos(np.radians([10, 30, 40])) - 1) / 0.07)
    assert weights[0] > weights[1] + weights[2]
    for temperature, right in ((0.07, 1.0), (1.0, 0.0)):
        assert knn(train, labels, at(10), [1], k=3, temperature=temperature)["top1"] == right


def test_agrees_with_a_float64_reference_whatever_the_lengths_of_the_features():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(300, 6)), rng.normal(size=(80, 6))
    labels, wanted = rng.integers(0, 8, 300) * 3, rng.integers(0, 9, 80) * 3  # class 24 is unknown to train
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    cosines = unit[1] @ unit[0].T
    right, among_five = 0, 0
    for row, label in zip(cosines, wanted, strict=True):
        votes = np.zeros(8)
        for i in np.argsort(-row)[:20]:
            votes[labels[i] // 3] += math.exp(row[i] / 0.07)
        order = list(np.argsort(-votes))
        right += order[0] * 3 == label
        among_five += label // 3 in [c for c in order[:5] if votes[c] > 0]
    scaled = train * rng.uniform(0.1, 9, (300, 1))
    found = knn(scaled, labels, torch.tensor(test), torch.tensor(wanted))
    assert found["top1"] == pytest.approx(right / 80)
    assert found["top5"] == pytest.approx(among_five / 80)
    assert (found["k"], found["classes"], found["n_train"], found["n_test"]) == (20, 8, 300, 80)


def test_leave_one_out_never_lets_an_image_vote_for_itself():
    pairs = at(0, 1, 90, 91)
    assert knn(pairs, [0, 0, 1, 1], k=1)["top1"] == 1.0
    assert knn(pairs, [0, 1, 0, 1], k=1)["top1"] == 0.0
    # exact copies: the image may not even be among its own nearest, and still a copy votes, never itself
    copies = np.ones((6, 2))
    found = knn(copies, [0, 0, 0, 0, 0, 1], k=2)
    assert found["top1"] == pytest.approx(5 / 6)
    assert found["k"] == 2


def test_leave_one_out_is_the_same_as_leaving_one_out():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    apart = [knn(np.delete(x, i, 0), np.delete(y, i), x[i : i + 1], y[i : i + 1], k=5)["top1"] for i in range(40)]
    assert knn(x, y, k=5)["top1"] == pytest.approx(np.mean(apart))


def test_unlabeled_images_take_no_part_and_k_is_cut_to_what_there_is():
    found = knn(at(0, 0, 90), [-1, 1, 0], at(0, 5), [1, -1])
    assert found == {"top1": 1.0, "k": 2, "classes": 2, "n_train": 2, "n_test": 1}


def test_what_cannot_be_judged_is_refused():
    x = at(0, 90)
    with pytest.raises(ValueError, match="none of the 2 images has a label"):
        knn(x, [-1, -1])
    with pytest.raises(ValueError, match="train has one class only, 4"):
        knn(x, [4, 4])
    with pytest.raises(ValueError, match="of 1 of 2 labeled images are not finite"):
        knn(x * [[1], [math.nan]], [0, 1])
    with pytest.raises(ValueError, match="2 features per image and test 3"):
        knn(x, [0, 1], np.ones((1, 3)), [0])
    with pytest.raises(ValueError, match="whole numbers"):
        knn(x, [0.5, 1.0])
    with pytest.raises(ValueError, match=r"features have the shape \(2, 2\) and labels \(3,\)"):
        knn(x, [0, 1, 1])
    with pytest.raises(ValueError, match="k=0"):
        knn(x, [0, 1], k=0)
    with pytest.raises(ValueError, match="no labels; say where they are with --labels-from"):
        knn(x, None)
    with pytest.raises(ValueError, match="this protocol takes one"):
        knn(x, np.ones((2, 3), int))
    with pytest.raises(ValueError, match="no image has a label"):
        knn_map(x, [[1, 0], [0, 1]], x, [[0, 0], [-1, 0]], ks=(1,))
    with pytest.raises(ValueError, match="several labels per image are 1, 0 or -1"):
        knn_map(x, [[3, 0], [0, 1]], x, [[0, 0], [1, 0]], ks=(1,))


def test_a_low_temperature_is_the_nearest_neighbor_and_equal_votes_go_to_the_lowest_class():
    far = torch.tensor([[0.3, 0.25, 0.2]])  # exp((0.3 - 1) / 0.001) would be zero in float32
    (votes,) = sweep_votes(far, torch.tensor([[2, 1, 0]]), 3, (3,), 0.001)
    assert votes.argsort(dim=1, descending=True).tolist() == [[2, 1, 0]]
    assert top(torch.zeros(4, 12), torch.zeros(4, dtype=torch.int64), 1) == 1.0
    assert top(torch.zeros(4, 12), torch.full((4,), 5), 5) == 0.0
