"""The logistic probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from selfcluster.evaluation.protocols.logistic import PENALTIES, _hold_out, _Probe, logistic


def blobs(n: int, classes: int, width: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    centers = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return centers[labels] + spread * rng.normal(size=(n, width)), labels


def test_agrees_with_scikit_learn():
    x, y = blobs(200, 4, 5, seed=1)
    probe = _Probe(torch.tensor(x), torch.tensor(y), 4).fit(0.01, 500)
    standard = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=1 / (0.01 * 200), tol=1e-10, max_iter=2000).fit(standard, y)
    np.testing.assert_allclose(probe.weight.detach(), theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(probe.scores(torch.tensor(x)).softmax(dim=1), theirs.predict_proba(standard), atol=1e-5)


def test_single_precision_finds_the_same_classifier():
    x, y = blobs(200, 4, 5, seed=1)
    double, single = (
        _Probe(torch.tensor(x, dtype=dtype), torch.tensor(y), 4).fit(1e-3, 500).weight.detach().double()
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(single, double, atol=2e-2, rtol=0)


def test_scale_and_offset_of_the_features_do_not_matter():
    x, y = blobs(200, 3, 4, seed=1, spread=2)
    test, wanted = blobs(100, 3, 4, seed=2, spread=2)
    scale, offset = np.array([1e-3, 1.0, 50.0, 1e3]), np.array([9.0, 0.0, -4.0, 1e4])
    plain = logistic(x, y, test, wanted)
    assert plain == logistic(x * scale + offset, y, test * scale + offset, wanted)
    constant = logistic(np.c_[x, np.ones(200)], y, np.c_[test, np.ones(100)], wanted)
    assert constant["top1"] == plain["top1"]


def test_separable_classes_are_told_apart_and_shuffled_labels_are_not():
    x, y = blobs(300, 10, 16, seed=1, spread=0.1)
    test, wanted = blobs(200, 10, 16, seed=2, spread=0.1)
    found = logistic(torch.tensor(x, dtype=torch.float32), y * 7, test.astype(np.float32), wanted * 7)
    assert found["top1"] == found["top5"] == 1.0
    assert (found["classes"], found["n_train"], found["n_test"]) == (10, 300, 200)
    shuffled = np.random.default_rng(3).permutation(y)
    assert logistic(x, shuffled, test, wanted)["top1"] < 0.35


def test_the_penalty_is_chosen_on_training_images_only():
    rng = np.random.default_rng(4)
    x, y = blobs(60, 2, 40, seed=1, spread=4)
    x = np.c_[x, rng.normal(size=(60, 40))]
    test = rng.normal(size=(50, 80))
    chosen = {logistic(x, y, test * factor, rng.integers(0, 2, 50))["penalty"] for factor in (1, -1, 5)}
    assert len(chosen) == 1
    assert chosen < set(PENALTIES)
    assert logistic(x, y, test, np.ones(50, dtype=int), penalty=0.25)["penalty"] == 0.25


def test_the_held_out_part_is_a_share_of_each_class_and_leaves_it_an_image():
    y = torch.tensor([0] * 10 + [1] * 5 + [2])
    out = _hold_out(y, 3, 0.2, seed=0)
    assert [int(out[y == label].sum()) for label in range(3)] == [2, 1, 0]
    assert torch.equal(out, _hold_out(y, 3, 0.2, seed=0))
    assert [int(_hold_out(y, 3, 0.99, seed=0)[y == label].sum()) for label in range(3)] == [9, 4, 0]


def test_one_image_a_class_and_unknown_classes_are_possible():
    found = logistic([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]], [0, 1, -1], [[0.1, 0.0], [0.9, 1.0], [5.0, 5.0]], [0, 1, 3])
    assert found["top1"] == pytest.approx(2 / 3)
    assert (found["n_train"], found["n_test"]) == (2, 3)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="train has one class only, 2"):
        logistic([[0.0], [1.0]], [2, 2], [[0.0]], [2])
    with pytest.raises(ValueError, match="test: none of the 1"):
        logistic([[0.0], [1.0]], [1, 2], [[0.0]], [-1])


def test_a_fit_that_was_cut_short_says_so():
    x = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    assert logistic(x, y, x, y, penalty=0.1)["converged"]
    assert not logistic(x, y, x, y, penalty=0.1, max_iter=2)["converged"]
