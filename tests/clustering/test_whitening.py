"""Whitening against NumPy's covariance in float64, its invariances, and every way to hand in rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcluster.clustering.whitening import Whitening


def rows(n: int = 400, d: int = 7, seed: int = 0, offset: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset


def reference(X: np.ndarray, dim: int) -> np.ndarray:
    """Centered, projected on the leading axes, each divided by its standard deviation; signs are free."""
    Z = X.astype(np.float64) - X.mean(axis=0)
    values, vectors = np.linalg.eigh(Z.T @ Z / len(Z))
    return Z @ vectors[:, ::-1][:, :dim] / np.sqrt(values[::-1][:dim])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_definition(dtype) -> None:
    X = rows().astype(dtype)
    Y = Whitening(4, normalize=False).fit_transform(X)
    expected = reference(X, 4)
    expected *= np.sign((expected * Y).sum(axis=0))
    assert Y.dtype == dtype
    np.testing.assert_allclose(Y, expected, rtol=0, atol=1e-3 if dtype == np.float32 else 1e-9)
    np.testing.assert_allclose(np.cov(Y.T.astype(np.float64), bias=True), np.eye(4), atol=1e-3)


def test_rows_have_length_one() -> None:
    Y = Whitening(4).fit_transform(rows())
    np.testing.assert_allclose(np.linalg.norm(Y, axis=1), 1, atol=1e-6)


def test_without_whitening_variances_are_the_eigenvalues() -> None:
    fitted = Whitening(3, whiten=False, normalize=False).fit(rows())
    Y = fitted.transform(rows())
    np.testing.assert_allclose(Y.var(axis=0), fitted.eigenvalues_, rtol=1e-6)
    np.testing.assert_allclose(fitted.components_ @ fitted.components_.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(fitted.mean_, rows().mean(axis=0), atol=1e-9)
    assert fitted.n_samples_ == 400


def test_a_far_origin_costs_no_digits() -> None:
    X = rows(offset=0.0).astype(np.float32)
    far = (X + np.float32(4096.0)).astype(np.float32)
    one, other = (Whitening(normalize=False).fit(x) for x in (far, far.astype(np.float64)))
    # about the origin, float32 products of 4096^2 would be wrong by 1
    np.testing.assert_allclose(one.eigenvalues_, other.eigenvalues_, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["tensor", "map", "blocks"])
def test_rows_may_come_in_any_form(kind: str, tmp_path, monkeypatch) -> None:
    X = rows()
    expected = Whitening(5).fit(X)
    monkeypatch.setattr("selfcluster.clustering.whitening._BLOCK", 7 * 64)  # several blocks
    if kind == "tensor":
        data = torch.from_numpy(X)
    elif kind == "map":
        np.save(tmp_path / "x.npy", X)
        data = np.load(tmp_path / "x.npy", mmap_mode="r")
    else:
        data = (X[i : i + 90] for i in range(0, 400, 90))
    fitted = Whitening(5).fit(data)
    np.testing.assert_allclose(fitted.components_, expected.components_, atol=1e-9)
    if kind == "tensor":
        Y = fitted.transform(torch.from_numpy(X))
        assert isinstance(Y, torch.Tensor)
        np.testing.assert_allclose(Y.numpy(), expected.transform(X), atol=1e-9)


def test_directions_without_variance_are_not_blown_up() -> None:
    X = np.zeros((100, 4), dtype=np.float32)
    X[:, :2] = rows(100, 2).astype(np.float32)
    fitted = Whitening(normalize=False).fit(X)
    noisy = X + np.random.default_rng(0).normal(size=X.shape).astype(np.float32) * 1e-4
    bound = 1e-4 * 5 / np.sqrt(1e-5 * fitted.eigenvalues_[0])
    assert np.abs(fitted.transform(noisy)[:, 2:]).max() < bound
    assert np.isfinite(fitted.transform(X)).all()


def test_equal_rows_become_zero_not_nan() -> None:
    Y = Whitening(2).fit_transform(np.full((5, 3), 2.0, dtype=np.float32))
    assert (Y == 0).all()


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match="dim=9"):
        Whitening(9).fit(rows())
    with pytest.raises(ValueError, match="got 1"):
        Whitening().fit(rows(1))
    with pytest.raises(ValueError, match="not fitted"):
        Whitening().transform(rows())
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        Whitening().fit(rows()).transform(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="NaN"):
        Whitening().fit(np.full((5, 3), np.nan))
    with pytest.raises(ValueError, match="int"):
        Whitening().fit(3)
