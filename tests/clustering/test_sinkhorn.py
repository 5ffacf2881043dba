"""Sinkhorn codes against the half-steps of the paper in float64, their invariances, and DINO's centering by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from selfcluster.clustering import native
from selfcluster.clustering.sinkhorn import Centering, batch_softmax, sinkhorn
from tests.conftest import threads


def reference(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Eq. 3 and 4 of arXiv 2006.09882 in float64: the K x B matrix, scaled to its marginals half-step by half-step."""
    q = torch.exp(scores.double() / epsilon).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / k
        q = q / q.sum(dim=0, keepdim=True) / b
    return (q * b).T


def cosines(b: int, k: int, seed: int = 0, d: int = 16) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(b, d, generator=g), dim=1) @ normalize(torch.randn(k, d, generator=g), dim=1).T


@settings(max_examples=40, deadline=None)
@given(
    b=st.integers(1, 90),
    k=st.integers(1, 40),
    epsilon=st.sampled_from([0.03, 0.05, 0.2]),
    iterations=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_equals_the_half_steps_in_float64(b: int, k: int, epsilon: float, iterations: int, seed: int) -> None:
    scores = cosines(b, k, seed)
    codes = sinkhorn(scores, epsilon, iterations)
    torch.testing.assert_close(codes.double(), reference(scores, epsilon, iterations), rtol=0, atol=2e-6)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(b), rtol=0, atol=1e-6)


def test_at_the_size_of_a_batch() -> None:
    scores = cosines(1024, 600, d=64)  # several blocks of rows
    error = (sinkhorn(scores).double() - reference(scores, 0.05, 3)).abs().max()
    assert error < 1e-6


@pytest.mark.parametrize("engine", ["compiled", "torch"])
@pytest.mark.parametrize(("b", "q", "k"), [(1, 0, 1), (33, 0, 17), (50, 20, 16), (7, 1, 33), (300, 40, 515)])
def test_both_engines_equal_the_half_steps(engine: str, b: int, q: int, k: int, monkeypatch) -> None:
    if engine == "torch":
        monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
    elif not native.available():
        pytest.skip("no compiled kernel here")
    scores, extra = cosines(b, k), cosines(q, k, 1)
    wide = torch.zeros(b, k + 5)
    wide[:, 2:-3] = scores
    for iterations in (1, 3, 10):
        true = reference(torch.cat([scores, extra]), 0.05, iterations)[:b]
        for given_scores in (scores, wide[:, 2:-3], scores.t().contiguous().t()):  # rows far apart, columns far apart
            codes = sinkhorn(given_scores, 0.05, iterations, extra if q else None)
            torch.testing.assert_close(codes.double(), true, rtol=0, atol=1e-6)


@pytest.mark.skipif(not native.available(), reason="no compiled kernel here")
class TestCompiled:
    def raised(self) -> Tensor:
        """Row maxima, and entries of a row, more than 60 epsilon apart, in falling and in rising order."""
        scores = cosines(64, 20) * 0.1 - 0.9
        scores[3] += 2.5
        scores[60] += 4.0
        scores[5, 7] = 3.0
        return scores

    @pytest.mark.parametrize("iterations", [1, 3])
    def test_floors_are_those_of_the_torch_path(self, iterations: int, monkeypatch) -> None:
        codes = [sinkhorn(self.raised(), 0.04, iterations)]
        monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
        codes.append(sinkhorn(self.raised(), 0.04, iterations))
        torch.testing.assert_close(codes[0], codes[1], rtol=1e-3, atol=1e-6)

    def test_the_reference_may_rise_on_the_way(self) -> None:
        scores = cosines(200, 30) + torch.linspace(-0.5, 0.5, 200)[:, None]
        for order in (slice(None), torch.arange(199, -1, -1)):
            true = reference(scores[order], 0.05, 3)
            torch.testing.assert_close(sinkhorn(scores[order]).double(), true, rtol=0, atol=2e-6)

    def test_the_number_of_threads_hardly_matters_and_repeating_not_at_all(self) -> None:
        scores, found = cosines(500, 600), []
        for count in (1, 3, 3):
            with threads(count):
                found.append(sinkhorn(scores))
        assert torch.equal(found[1], found[2])
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("compiled", ["0", "1"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_not_hidden(bad: float, compiled: str, monkeypatch) -> None:
    monkeypatch.setenv("SELFCLUSTER_NATIVE", compiled)
    scores = cosines(40, 20)
    scores[3, 5] = bad
    assert sinkhorn(scores, check_finite=False).isnan().any()
    with pytest.raises(ValueError, match=r"scores has 1 values that are NaN or \+inf"):
        sinkhorn(scores)
    with pytest.raises(ValueError, match="extra has 1 values"):
        sinkhorn(cosines(4, 20), extra=scores)
    with pytest.raises(ValueError, match="scores has 1 values"):
        sinkhorn(scores.numpy())
    scores[3, 5] = -torch.inf  # the least similarity: a share of nearly 0
    codes = sinkhorn(scores)
    assert codes.isfinite().all()
    assert codes[3, 5] < 1e-20
    assert sinkhorn(cosines(40, 20) * 3e38, epsilon=1e38).isfinite().all()  # finite, though their sum is not


def test_float64_scores_are_worked_on_in_float64() -> None:
    scores = cosines(50, 7).double()
    torch.testing.assert_close(sinkhorn(scores), reference(scores, 0.05, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.02, 0.01, 1e-3, 1e-6])
def test_float64_at_small_epsilon_equals_half_steps_on_logarithms(epsilon: float) -> None:
    """Scores differ by up to 2 / epsilon = two million: exp would underflow in float64, too."""
    scores = cosines(50, 7).double()
    logs = (scores / epsilon).T  # (K, B)
    for _ in range(3):
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
    torch.testing.assert_close(sinkhorn(scores, epsilon), logs.T.exp(), rtol=1e-9, atol=1e-12)


def test_float64_takes_rows_and_columns_of_minus_infinity_and_a_queue() -> None:
    scores, extra = cosines(50, 7).double(), cosines(20, 7).double().neg()
    both = reference(torch.cat([scores, extra]), 0.05, 3)[:50]
    torch.testing.assert_close(sinkhorn(scores, extra=extra), both, rtol=0, atol=1e-12)
    scores[:, 2] = -torch.inf
    scores[4] = -torch.inf
    codes = sinkhorn(scores)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(50).double(), rtol=0, atol=1e-12)
    assert codes.isfinite().all()
    assert sinkhorn(scores[:0]).shape == (0, 7)


@pytest.mark.parametrize(("b", "k"), [(7, 13), (64, 3000), (1, 5)])
def test_constant_scores_give_exactly_one_over_k(b: int, k: int) -> None:
    assert (sinkhorn(torch.full((b, k), 0.3)) == torch.tensor(1.0) / k).all()


def test_two_by_two_by_hand() -> None:
    # both samples prefer cluster 0 alike: balancing leaves each of them undecided
    torch.testing.assert_close(sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]])), torch.full((2, 2), 0.5))
    # one iteration with epsilon 1, by hand: columns (4, 2) become (1/4, 1/2), the first row (3, 1) -> (3/4, 1/2) / 1.25
    scores = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    expected = torch.tensor([[0.6, 0.4], [1 / 3, 2 / 3]])
    torch.testing.assert_close(sinkhorn(scores, epsilon=1.0, iterations=1), expected)


def test_columns_become_equal_with_more_iterations() -> None:
    scores = cosines(60, 6)
    spread = [(sinkhorn(scores, 0.05, n).sum(dim=0) - 10).abs().max().item() for n in (1, 3, 10, 300)]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 1e-3


def test_invariances() -> None:
    scores = cosines(40, 9)
    codes = sinkhorn(scores)
    rows, columns = torch.randperm(40), torch.randperm(9)
    torch.testing.assert_close(sinkhorn(scores[rows][:, columns]), codes[rows][:, columns], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sinkhorn(scores + 5), codes, rtol=1e-4, atol=1e-5)  # 5.3's bits, not 0.3's
    # a preference of all samples alike is what the column step removes
    torch.testing.assert_close(sinkhorn(scores + 0.1 * torch.randn(9)), codes, rtol=1e-3, atol=1e-5)


def test_a_constant_on_one_row_counts_until_convergence() -> None:
    scores, raised = cosines(40, 9), cosines(40, 9)
    raised[0] += 0.5
    assert (sinkhorn(raised) - sinkhorn(scores)).abs().max() > 1e-3  # so the row's maximum may not simply be dropped
    torch.testing.assert_close(sinkhorn(raised, 0.1, 500), sinkhorn(scores, 0.1, 500), rtol=0, atol=1e-5)


def test_extra_rows_join_the_balancing_and_are_not_returned() -> None:
    scores, extra = cosines(30, 8, 1), cosines(50, 8, 2)
    whole = sinkhorn(torch.cat([scores, extra]))
    torch.testing.assert_close(sinkhorn(scores, extra=extra), whole[:30], rtol=1e-5, atol=1e-6)
    assert (whole[:30] - sinkhorn(scores)).abs().max() > 1e-3


@pytest.mark.parametrize("epsilon", [0.02, 0.005, 1e-4])
def test_an_outlier_leaves_no_nan(epsilon: float) -> None:
    scores = cosines(64, 20) * 0.1 - 0.9
    scores[0] = -1.0
    scores[0, 0] = 1.0
    codes = sinkhorn(scores, epsilon)
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(64), rtol=0, atol=1e-5)
    assert codes[0].argmax() == 0


def test_autocast_gradient_and_input_are_left_alone() -> None:
    scores = cosines(20, 5).requires_grad_()
    before = scores.detach().clone()
    codes = sinkhorn(scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn(scores), codes)
    assert codes.dtype == torch.float32
    assert not codes.requires_grad
    assert torch.equal(scores.detach(), before)
    assert sinkhorn(scores.bfloat16()).dtype == torch.float32


def test_no_rows() -> None:
    assert sinkhorn(torch.empty(0, 4)).shape == (0, 4)
    assert sinkhorn(torch.empty(0, 4), extra=cosines(3, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sinkhorn(torch.zeros(3)), r"\(3,\)"),
        (lambda: sinkhorn(torch.zeros(3, 2), epsilon=0.0), "epsilon=0.0"),
        (lambda: sinkhorn(torch.zeros(3, 2), iterations=0), "iterations=0"),
        (lambda: sinkhorn(torch.zeros(3, 2), extra=torch.zeros(3, 4)), r"\(3, 4\)"),
    ],
)
def test_errors_name_the_value(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_batch_softmax_is_a_softmax_over_the_batch_with_rows_scaled() -> None:
    scores = cosines(30, 8)
    expected = torch.softmax(scores.double() / 0.05, dim=0)
    expected = expected / expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(batch_softmax(scores).double(), expected, rtol=0, atol=1e-6)


def test_centering_by_hand() -> None:
    centering = Centering(2, momentum=0.9)
    outputs = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    torch.testing.assert_close(centering(outputs, 0.5), torch.softmax(outputs / 0.5, dim=1))
    centering.update(outputs)  # the mean is (2, 4), a tenth of it counts
    torch.testing.assert_close(centering.state_dict()["center"], torch.tensor([0.2, 0.4]))
    centering.update(outputs)
    torch.testing.assert_close(centering.center, torch.tensor([0.38, 0.76]))
    torch.testing.assert_close(centering(outputs, 0.5), torch.softmax((outputs - centering.center) / 0.5, dim=1))


def test_centering_removes_a_dominant_cluster() -> None:
    centering, outputs = Centering(4, momentum=0.0), cosines(100, 4) + torch.tensor([5.0, 0, 0, 0])
    assert (centering(outputs, 0.04).argmax(dim=1) == 0).all()
    centering.update(outputs)
    assert (centering(outputs, 0.04).argmax(dim=1).bincount(minlength=4) > 5).all()


def test_arrays_come_back_as_arrays() -> None:
    scores = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
    found = sinkhorn(scores.numpy(), extra=scores[:3].numpy())
    assert isinstance(found, np.ndarray)
    assert torch.equal(torch.from_numpy(found), sinkhorn(scores, extra=scores[:3]))


def test_arrays_may_be_views_and_extra_rows_an_array():
    scores = np.random.default_rng(0).normal(size=(12, 5)).astype("f")
    np.testing.assert_array_equal(sinkhorn(scores[:, ::-1]), sinkhorn(scores[:, ::-1].copy()))
    both = sinkhorn(torch.from_numpy(scores), extra=scores[:4])
    assert torch.equal(both, sinkhorn(torch.from_numpy(scores), extra=torch.from_numpy(scores[:4])))
