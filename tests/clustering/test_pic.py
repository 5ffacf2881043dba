"""Power iteration clustering against a dense float64 version, on groups it must find, and on duplicates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcluster.clustering.pic import PowerIterationClustering
from selfcluster.clustering.scores import ari


def groups(sizes: list[int], seed: int = 0, spread: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around random directions, and which group each is of."""
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.normal(size=(len(sizes), 8)), sizes, axis=0)
    X = centers + spread * rng.normal(size=centers.shape)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X.astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


def reference(X: np.ndarray, m: int, sigma: float, alpha: float, iterations: int) -> list[int]:
    """The steps of arXiv 1807.05520's appendix with dense matrices, one node at a time."""
    n = len(X)
    square = ((X[:, None].astype(np.float64) - X) ** 2).sum(axis=2)
    np.fill_diagonal(square, np.inf)
    near = np.argsort(square, axis=1)[:, :m]
    A = np.zeros((n, n))
    for i in range(n):
        A[i, near[i]] = np.exp(-square[i, near[i]] / sigma**2)
    W, v = A + A.T, np.full(n, 1 / n)
    for _ in range(iterations):
        v = alpha * W.T @ v + (1 - alpha) / n
        v /= np.abs(v).sum()
    climb = W * (v[None] - v[:, None])
    label = []
    for i in range(n):
        while climb[i].max() > 0:
            i = int(climb[i].argmax())
        label.append(i)
    final = list(label)
    for i in range(n):
        if label.count(label[i]) == 1:
            final[i] = next((label[j] for j in near[i] if label.count(label[j]) > 1), label[i])
    return final


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("m", [1, 3, 5])
def test_equals_the_dense_version(seed: int, m: int) -> None:
    X = np.random.default_rng(seed).normal(size=(80, 4)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    fitted = PowerIterationClustering(m, sigma=0.5).fit(X)
    expected = reference(X, m, 0.5, 0.001, 200)
    assert ari(fitted.labels_, [sorted(set(expected)).index(e) for e in expected]) == 1.0
    assert fitted.n_clusters_ == len(set(expected)) == len(set(fitted.labels_.tolist()))


def test_never_joins_groups_that_no_edge_joins() -> None:
    X, truth = groups([30, 50, 20])
    labels = PowerIterationClustering(5).fit_predict(X)
    for label in set(labels.tolist()):
        assert len(set(truth[labels == label].tolist())) == 1


def test_a_permutation_of_rows_permutes_labels() -> None:
    X, _ = groups([30, 40], spread=0.2)
    order = np.random.default_rng(1).permutation(len(X))
    labels = PowerIterationClustering(5).fit_predict(X)
    assert ari(PowerIterationClustering(5).fit_predict(X[order]), labels[order]) == 1.0


def test_duplicates_share_a_label_and_leave_none_alone() -> None:
    X, _ = groups([20, 20], spread=0.2)
    copies = np.concatenate([X, np.repeat(X[:1], 12, axis=0), np.repeat(X[25:26], 3, axis=0)])
    labels = PowerIterationClustering(5).fit_predict(copies)
    assert len(set(labels[[0, *range(40, 52)]].tolist())) == 1
    assert len(set(labels[[25, *range(52, 55)]].tolist())) == 1
    equal = PowerIterationClustering(5).fit(np.tile(X[:1], (9, 1)))
    assert equal.n_clusters_ == 1


def test_labels_count_from_zero_and_follow_the_kind_of_input() -> None:
    X, _ = groups([10, 10, 10])
    fitted = PowerIterationClustering(3).fit(torch.from_numpy(X))
    assert isinstance(fitted.labels_, torch.Tensor)
    assert fitted.labels_[0] == 0
    assert sorted(set(fitted.labels_.tolist())) == list(range(fitted.n_clusters_))
    np.testing.assert_array_equal(fitted.labels_.numpy(), PowerIterationClustering(3).fit(X).labels_)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_neighbors": 0}, "n_neighbors=0"),
        ({"n_neighbors": 30}, "n_samples=30"),
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_errors_name_the_value(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PowerIterationClustering(**arguments).fit(groups([30])[0])


def test_rows_that_are_too_long_for_sigma_are_said_to_be():
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match=r"every row is a cluster of its own, because sigma=0\.2 is too small"):
        PowerIterationClustering().fit(rng.normal(size=(60, 8)).astype("f") * 100)
