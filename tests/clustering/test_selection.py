"""The recommended number of clusters on blobs, and that noise without clusters is called uncertain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcluster.clustering.selection import _candidates, _compressed, _Silhouette, _within_an_error, choose_k


def blobs(k: int, seed: int = 0, n: int = 40, d: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = 10 * np.concatenate([np.eye(d), -np.eye(d)])[:k]
    return (centers[:, None] + rng.normal(size=(k, n, d))).reshape(-1, d).astype(np.float32)


@pytest.mark.parametrize("k", [2, 4, 6])
def test_finds_the_blobs(k: int) -> None:
    found = choose_k(blobs(k), range(2, 9), repeats=3)
    assert found.k == k
    assert found.low <= k <= found.high
    assert found.certain, found.reason
    assert [row["k"] for row in found.table] == list(range(2, 9))
    best = max(found.table, key=lambda row: row["silhouette"])
    assert best["k"] == k


def test_uniform_noise_is_uncertain() -> None:
    X = np.random.default_rng(1).uniform(size=(300, 3)).astype(np.float32)
    found = choose_k(X, range(2, 8), repeats=3)
    assert not found.certain
    assert (found.low, found.high) == (2, 7)
    assert "no better than in random data" in found.reason


def test_the_seed_decides_and_tensors_are_arrays() -> None:
    X = blobs(3, n=25)
    one = choose_k(X, [2, 3, 5], seed=4, repeats=2)
    assert choose_k(torch.from_numpy(X), [5, 3, 2], seed=4, repeats=2) == one


def test_the_number_of_threads_does_not_matter() -> None:
    x = blobs(3)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(choose_k(x, range(2, 7), seed=4))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_candidates_not_tried_widen_the_range() -> None:
    found = choose_k(blobs(4), [2, 4, 8], repeats=2)
    assert (found.k, found.low, found.high) == (4, 3, 7)
    assert not found.certain


def test_the_gap_rule_by_hand() -> None:
    gap, error = np.array([0.0, 0.2, 0.5, 0.52]), np.array([0.1, 0.1, 0.1, 0.05])
    assert _within_an_error([1, 2, 3, 4], gap, error) == 3  # 0.5 >= 0.52 - 0.05, and 0.2 is not
    assert _within_an_error([1, 2, 3, 4], gap, error / 10) == 4


def test_default_candidates() -> None:
    assert _candidates(None, 200) == [2, 3, 4, 5, 6, 7, 8, 10]
    assert _candidates(None, 10**6)[-1] <= 100


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        choose_k(blobs(2), [1, 3])
    with pytest.raises(ValueError, match=r"\[90\].* 40"):
        choose_k(blobs(2), [90])
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        choose_k(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="repeats=1"):
        choose_k(blobs(2), [2, 3], repeats=1)
    spoilt = np.random.default_rng(0).normal(size=(30, 2))
    spoilt[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"row 7 of \(30, 2\) holds NaN or infinity"):
        choose_k(spoilt)


def test_a_quick_pass_finds_where_to_look() -> None:
    """Twelve groups in many dimensions, and a grid of candidates that is not compared in full."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(12, 200))
    X = (centers[np.arange(600) % 12] + 0.4 * rng.normal(size=(600, 200))).astype(np.float32)
    lines: list[str] = []
    found = choose_k(X, say=lines.append)
    grid = _candidates(None, len(X))
    assert found.low <= 12 <= found.high
    assert abs(found.k - 12) <= 2
    assert {row["k"] for row in found.table} < set(grid)
    assert "trying" in lines[0]
    assert "comparing k =" in lines[1]
    assert choose_k(X) == found


def test_the_leading_axes_keep_the_distances_between_clusters() -> None:
    rng = np.random.default_rng(0)
    X = np.zeros((300, 150), np.float32)
    X[:, :5] = rng.normal(size=(300, 5))
    X += 7
    short = _compressed(X, spherical=False)
    assert short.shape == (300, 64)
    direct = ((X[:, None] - X[None, :20]) ** 2).sum(axis=2)
    np.testing.assert_allclose(((short[:, None] - short[None, :20]) ** 2).sum(axis=2), direct, atol=1e-3)
    turned = _compressed(X, spherical=True)
    np.testing.assert_allclose(turned @ turned[:20].T, X @ X[:20].T, rtol=1e-4)


def test_the_silhouette_of_shared_distances_is_scikit_learns() -> None:
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 5, 200)
    labels[0] = 9  # a cluster of one
    for spherical, metric in ((False, "euclidean"), (True, "cosine")):
        score = _Silhouette(X, 0, spherical)(labels)
        assert score == pytest.approx(silhouette_score(X, labels, metric=metric), abs=1e-6)
    assert _Silhouette(X, 0, False)(np.zeros(200, int)) == -1
    assert _Silhouette(X, 0, False)(np.arange(200)) == -1
