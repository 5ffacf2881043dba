"""Balanced assignment against the plain matrix scaling in float64, its marginals, and every way to hand in scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfcluster.clustering.balanced import balanced_assignment, balanced_labels


def reference(scores: Tensor, sharpness: float, marginals: Tensor, rounds: int = 3000) -> Tensor:
    """Algorithm of arXiv 1911.05371, section 3.1, in float64: P^lambda scaled to its marginals; rows then sum to 1."""
    p = torch.log_softmax(scores.double(), dim=1).mul(sharpness).exp()
    a, b = torch.ones(len(p), dtype=torch.float64) / len(p), torch.ones(p.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        b = marginals / (a @ p)
        a = 1 / len(p) / (p @ b)
    return a[:, None] * p * b * len(p)


def logits(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.3


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 60), k=st.integers(1, 8), seed=st.integers(0, 50))
def test_the_plan_is_the_scaled_matrix_and_meets_the_marginals(n: int, k: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(k, generator=g).double() + 0.2
    target /= target.sum()
    scores = logits(n, k, seed)
    found = balanced_assignment(scores, sharpness=5.0, marginals=target, tolerance=1e-4, soft=True, max_iter=5000)
    assert found.converged
    assert found.codes is not None
    torch.testing.assert_close(found.codes.double(), reference(scores, 5.0, target), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.codes.double().mean(dim=0), target, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.codes.sum(dim=1), torch.ones(n))
    assert torch.equal(found.labels, found.codes.argmax(dim=1))
    assert torch.equal(found.counts, found.labels.bincount(minlength=k))


def test_a_sharp_plan_gives_equal_hard_clusters() -> None:
    found = balanced_assignment(logits(1000, 10), sharpness=25.0)
    assert found.converged
    assert found.row_error < 0.1
    assert (found.counts - 100).abs().max() <= 10
    assert (logits(1000, 10) + torch.tensor([3.0] + [0.0] * 9)).argmax(dim=1).bincount()[0] == 1000  # what it undoes
    skewed = balanced_assignment(logits(1000, 10) + torch.tensor([3.0] + [0.0] * 9), sharpness=25.0)
    assert (skewed.labels == found.labels).float().mean() > 0.99


def test_row_scales_cancel_so_logits_serve_as_log_probabilities() -> None:
    scores = logits(200, 6)
    one, other = (balanced_assignment(s, sharpness=10.0) for s in (scores, torch.log_softmax(scores, dim=1)))
    assert torch.equal(one.labels, other.labels)
    torch.testing.assert_close(one.potentials, other.potentials, rtol=0, atol=1e-4)


def test_the_row_error_is_that_of_the_columns_correction() -> None:
    scores = logits(50, 4)
    found = balanced_assignment(scores, sharpness=5.0, tolerance=0.0, max_iter=3)
    x = scores.double() * 5
    f, rows = torch.zeros(4, dtype=torch.float64), torch.empty(0)
    for _ in range(3):  # rows to 1/N, then columns to 1/K; the error is measured before the next rows
        plan = torch.softmax(x + f, dim=1) / 50
        correction = 0.25 / plan.sum(dim=0)
        rows = (plan * correction).sum(dim=1)
        f = f + correction.log()
    assert found.row_error == pytest.approx(float((rows * 50 - 1).abs().sum()), rel=1e-3)
    assert not found.converged
    assert found.iterations == 3


@pytest.mark.parametrize("kind", ["array", "map", "blocks", "float64"])
def test_scores_may_come_in_any_form(kind: str, tmp_path, monkeypatch) -> None:
    scores = logits(300, 5)
    expected = balanced_assignment(scores, soft=True)
    monkeypatch.setattr("selfcluster.clustering.balanced._BLOCK", 5 * 64)  # several blocks
    if kind == "array":
        given_scores = scores.numpy()
    elif kind == "map":
        np.save(tmp_path / "s.npy", scores.numpy())
        given_scores = np.load(tmp_path / "s.npy", mmap_mode="r")
    elif kind == "blocks":
        given_scores = lambda: iter(scores.split(77))  # noqa: E731
    else:
        given_scores = scores.double()
    found = balanced_assignment(given_scores, soft=True)
    assert torch.equal(found.labels, expected.labels)
    assert found.codes is not None
    torch.testing.assert_close(found.codes.float(), expected.codes, rtol=0, atol=1e-4)


def test_the_error_of_many_samples_is_not_that_of_float32_sums() -> None:
    """One block of 20,000 rows: its column sums are off by 1e-5 of themselves in float32, all alike."""
    found = balanced_assignment(logits(20_000, 50), sharpness=25.0, tolerance=0.02, max_iter=100)
    assert found.converged


def test_a_hopeless_cluster_is_filled_without_nan() -> None:
    scores = logits(100, 3)
    scores[:, 0] -= 50.0  # e^-1250 in the plan: nothing in float32 or float64
    found = balanced_assignment(scores, sharpness=25.0)
    assert found.converged
    assert (found.counts - 33).abs().max() <= 3


def test_earlier_potentials_save_iterations() -> None:
    scores = logits(400, 8)
    first = balanced_assignment(scores, tolerance=1e-2)
    again = balanced_assignment(scores, tolerance=1e-2, potentials=first.potentials)
    assert again.iterations <= 2 < first.iterations
    assert torch.equal(again.labels, first.labels)


def test_random_balanced_labels() -> None:
    one, other = (balanced_labels(103, 10, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert sorted(one.bincount().tolist()) == [10] * 7 + [11] * 3
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sharpness": 0.0}, "sharpness=0.0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"marginals": [0.5, 0.5]}, r"\(2,\)"),
        ({"marginals": [0.5, 0.5, 0.0]}, "0.0"),
        ({"potentials": torch.zeros(4)}, r"\(4,\)"),
    ],
)
def test_errors_name_the_value(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        balanced_assignment(logits(9, 3), **arguments)


def test_bad_scores_are_errors() -> None:
    with pytest.raises(ValueError, match="NaN"):
        balanced_assignment(torch.full((4, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        balanced_assignment(torch.zeros(4))
    with pytest.raises(ValueError, match="no block"):
        balanced_assignment(lambda: iter([]))
    with pytest.raises(ValueError, match="int"):
        balanced_assignment(lambda: 3)
