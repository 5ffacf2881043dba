"""Nearest neighbors against a full float64 sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcluster.clustering import native
from selfcluster.clustering.neighbors import nearest
from tests.conftest import threads


def scores(x: np.ndarray, y: np.ndarray, metric: str) -> np.ndarray:
    """(N, M) in float64, larger is nearer."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return x @ y.T if metric == "inner_product" else -((x[:, None] - y) ** 2).sum(axis=2)


def features(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.fixture
def small_tiles(monkeypatch) -> None:
    """Several tiles and blocks of queries, and groups that do not fill up."""
    monkeypatch.setattr("selfcluster.clustering.neighbors._QUERIES", 16)
    monkeypatch.setattr("selfcluster.clustering.neighbors._TILE", 16 * 333)
    monkeypatch.setattr("selfcluster.clustering.neighbors._HELD", 1 << 10)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_equals_a_full_sort(metric: str, precision: str, small_tiles: None) -> None:
    x, y = features(50, 12), features(1000, 12, 1) + 2.0
    found = nearest(x, y, 4, metric=metric, precision=precision)
    true = scores(x, y, metric)
    order = np.argsort(-true, axis=1)[:, :4]
    np.testing.assert_array_equal(found.indices, order)
    sign = 1 if metric == "inner_product" else -1
    np.testing.assert_allclose(found.values, sign * np.take_along_axis(true, order, axis=1), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 5), m=st.integers(1, 200), d=st.integers(1, 6), data=st.data())
def test_any_size(n: int, m: int, d: int, data) -> None:
    k = data.draw(st.integers(1, m))
    x, y = features(n, d), features(m, d, 1)
    found = nearest(x, y, k, metric="l2", precision="float32")
    expected = np.sort(-scores(x, y, "l2"), axis=1)[:, :k]
    assert found.indices.shape == (n, k)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-5)


def test_large_values_of_k_take_whole_tiles(small_tiles: None) -> None:
    x, y = features(5, 8), features(700, 8, 1)
    found = nearest(x, y, 600)
    np.testing.assert_array_equal(np.sort(found.indices), np.sort(np.argsort(-scores(x, y, "inner_product"))[:, :600]))


def test_a_row_is_not_its_own_neighbor_but_its_duplicate_is() -> None:
    x = features(30, 5)
    x[20] = x[3]
    found = nearest(x, x, 2, metric="l2", exclude_self=True)
    assert (found.indices != np.arange(30)[:, None]).all()
    assert found.indices[3, 0] == 20
    assert found.indices[20, 0] == 3
    assert found.values[3, 0] == 0
    all_equal = np.ones((40, 3), dtype=np.float32)
    found = nearest(all_equal, all_equal, 5, metric="l2", exclude_self=True)
    assert (found.indices != np.arange(40)[:, None]).all()
    assert all(len(set(row)) == 5 for row in found.indices.tolist())


def test_bfloat16_falls_back_where_it_cannot_tell(small_tiles: None) -> None:
    rng = np.random.default_rng(0)
    y = 1.0 + 1e-4 * rng.normal(size=(600, 8)).astype(np.float32)  # bfloat16 sees one point
    y[0] += 5.0  # and the mean does not take the offset away exactly
    found = nearest(y[:40], y, 3, metric="l2", precision="bfloat16")
    np.testing.assert_array_equal(found.indices, np.argsort(-scores(y[:40], y, "l2"), axis=1)[:, :3])


def test_kinds_of_input(tmp_path) -> None:
    x, y = features(9, 4), features(50, 4, 1)
    np.save(tmp_path / "y.npy", y)
    expected = nearest(x, y, 3)
    mapped = nearest(x, np.load(tmp_path / "y.npy", mmap_mode="r"), 3)
    tensors = nearest(torch.from_numpy(x).double(), torch.from_numpy(y).double(), 3)
    assert isinstance(tensors.indices, torch.Tensor)
    np.testing.assert_array_equal(mapped.indices, expected.indices)
    np.testing.assert_array_equal(tensors.indices.numpy(), expected.indices)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 51}, "50 rows"),
        ({"k": 50, "exclude_self": True}, "49 rows"),
        ({"metric": "cosine"}, "cosine"),
        ({"precision": "int8"}, "int8"),
    ],
)
def test_errors_name_the_value(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nearest(features(50, 4), features(50, 4, 1), **{"k": 3, **arguments})


def test_bad_rows_are_errors() -> None:
    bad = features(50, 4)
    bad[7, 2] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        nearest(features(5, 4), bad, 3)
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(9, 3\)"):
        nearest(features(5, 4), features(9, 3), 3)
    with pytest.raises(ValueError, match="5 and 9"):
        nearest(features(5, 4), features(9, 4), 3, exclude_self=True)


@pytest.mark.parametrize("engine", ["compiled", "torch"])
@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(130, 3000, 33, 7), (600, 90, 64, 90), (200, 1000, 5, 1), (129, 65, 1, 3)]
)
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_both_engines_equal_a_full_sort(
    engine: str, metric: str, n: int, m: int, d: int, k: int, offset: float, monkeypatch
) -> None:
    if engine == "torch":
        monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
    elif not native.available():
        pytest.skip("no compiled kernel here")
    monkeypatch.setattr("selfcluster.clustering.neighbors._HELD", 700 * d)  # several pieces of the database
    x, y = features(n, d) + np.float32(offset), features(m, d, 1) + np.float32(offset)
    found = nearest(x, y, k, metric=metric)
    true = scores(x, y, metric)
    got, best = np.take_along_axis(true, found.indices, axis=1), -np.sort(-true, axis=1)[:, :k]
    assert all(len(set(row)) == k for row in found.indices.tolist())
    # the neighbors are the best to float32's last bits: which of two closer than that comes first is not said
    bits = 1e-6 * np.abs(best).max() if engine == "torch" else 1e-13 * np.abs(best).max()
    np.testing.assert_allclose(got, best, rtol=0, atol=bits)
    sign = 1 if metric == "inner_product" else -1
    np.testing.assert_allclose(found.values, sign * best, rtol=1e-6, atol=1e-5 if engine == "torch" else 1e-6)


@pytest.mark.skipif(not native.available(), reason="no compiled kernel here")
class TestCompiled:
    @pytest.mark.parametrize("metric", ["inner_product", "l2"])
    def test_of_equals_the_lowest_numbers_win(self, metric: str, monkeypatch) -> None:
        monkeypatch.setattr("selfcluster.clustering.neighbors._HELD", 1 << 10)
        rng = np.random.default_rng(0)
        x, y = rng.integers(-2, 3, (200, 4)).astype(np.float32), rng.integers(-2, 3, (2000, 4)).astype(np.float32)
        order = np.argsort(-scores(x, y, metric), axis=1, kind="stable")[:, :25]
        np.testing.assert_array_equal(nearest(x, y, 25, metric=metric).indices, order)

    def test_rows_that_8_bits_cannot_tell_apart(self) -> None:
        y = 1.0 + 1e-4 * features(4000, 8)
        y[0] += 100.0  # the middle does not take the offset away, and most lists fill up
        found = nearest(y[:150], y, 5, metric="l2")
        np.testing.assert_array_equal(found.indices, np.argsort(-scores(y[:150], y, "l2"), axis=1)[:, :5])

    def test_zeros_threads_and_engines_agree(self, monkeypatch) -> None:
        x, y = features(300, 20), features(900, 20, 1)
        x[7], y[11], y[12] = 0, 0, 1e-38
        found = []
        for count in (1, 3):
            with threads(count):
                found.append(nearest(x, y, 10))
        np.testing.assert_array_equal(found[0].indices, found[1].indices)
        monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
        others = [i for i in range(300) if i != 7]  # everything is as near to a query of zeros
        np.testing.assert_array_equal(found[0].indices[others], nearest(x, y, 10).indices[others])
        np.testing.assert_array_equal(found[0].indices[7], np.arange(10))


def test_rows_far_from_the_origin_keep_what_differs():
    """float64 tells these apart and float32 does not; the shift is exact, so a float64 reference agrees."""
    database = 1e9 + np.arange(4.0)[:, None]
    found = nearest(database + 0.1, database, 1, metric="l2")
    assert found.indices.ravel().tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.values.ravel(), 0.01, rtol=1e-4)
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(500, 8)) + 1e6, rng.normal(size=(200, 8)) + 1e6
    squares = ((queries[:, None] - rows[None]) ** 2).sum(axis=2)
    for q, x in ((queries, rows), (torch.from_numpy(queries), torch.from_numpy(rows))):
        assert np.array_equal(np.asarray(nearest(q, x, 3, metric="l2").indices), squares.argsort(axis=1)[:, :3])
    whole = np.array([[1 << 40], [(1 << 40) + 3]])
    assert nearest(whole + 1, whole, 1, metric="l2").indices.ravel().tolist() == [0, 1]


@pytest.mark.skipif(not native.available(), reason="no compiled kernel here")
def test_rows_whose_squares_overflow_are_refused():
    rows = np.full((200, 16), 3e19, dtype=np.float32) * np.sign(np.random.default_rng(0).normal(size=(200, 16)))
    with pytest.raises(ValueError, match="divide all of them by the same number"):
        nearest(rows.astype("f"), rows[:40].astype("f"), 3, metric="l2")
