import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcluster import compiler
from selfcluster.clustering import native
from selfcluster.clustering.assign import nearest_centroid, unit_rows
from tests.conftest import threads

ENGINES = [
    "float32",
    "bfloat16",
    pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no compiled kernel here")),
]


def reference(x, c):
    """argmin_j sum_l (x_il - c_jl)^2 in float64, the lowest number among equals."""
    gaps = np.asarray(x, np.float64)[:, None, :] - np.asarray(c, np.float64)[None]
    squares = (gaps**2).sum(axis=2)
    return squares.argmin(axis=1), squares.min(axis=1)


def check(x, c, **options):
    labels, distances = nearest_centroid(x, c, **options)
    true_labels, true_distances = reference(x, c)
    assert (labels.numpy() == true_labels).all()
    np.testing.assert_allclose(distances.numpy(), true_distances, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (100, 3, 2), (333, 65, 64), (150, 130, 200), (97, 16, 1100)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_labels_and_distances_are_float64s(engine, n, d, k, offset):
    g = torch.Generator().manual_seed(n)
    check(torch.randn(n, d, generator=g) + offset, torch.randn(k, d, generator=g) + offset, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_near_ties_far_below_bfloat16s_and_int8s_resolution_are_told_apart(engine):
    g = torch.Generator().manual_seed(0)
    base = torch.randn(4, 32, generator=g)
    c = (base[:, None] + 1e-5 * torch.randn(4, 25, 32, generator=g)).reshape(100, 32)  # four bundles of 25
    x = c.repeat(2, 1) + 1e-5 * torch.randn(200, 32, generator=g)
    check(x, c, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_centroids_go_to_the_lowest_number(engine):
    c = torch.tensor([[5.0, 0.0], [1.0, 1.0], [1.0, 1.0], [5.0, 0.0]]).repeat(40, 1)
    labels = nearest_centroid(torch.tensor([[1.0, 1.5], [6.0, 0.0], [3.0, 0.5]]), c, engine=engine).labels
    assert labels.tolist() == [1, 0, 0]  # the last is exactly halfway


@pytest.mark.parametrize("engine", ENGINES)
def test_one_centroid_much_longer_than_the_rest_costs_no_precision(engine):
    g = torch.Generator().manual_seed(1)
    c = torch.randn(80, 40, generator=g)
    c[7] *= 1e4
    check(torch.randn(200, 40, generator=g), c, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_heavy_tailed_columns(engine):
    g = torch.Generator().manual_seed(2)
    scale = 10 ** torch.linspace(-4, 3, 48)
    check(torch.randn(200, 48, generator=g) * scale, torch.randn(90, 48, generator=g) * scale, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_equal_to_a_centroid_is_at_distance_zero(engine):
    c = torch.randn(70, 9, generator=torch.Generator().manual_seed(3)) + 50
    labels, distances = nearest_centroid(c, c, engine=engine)
    assert labels.tolist() == list(range(70))
    assert (distances == 0).all()


@pytest.mark.parametrize("engine", ["float32", "bfloat16"])
def test_float64_rows_are_compared_in_float64(engine):
    x = torch.tensor([[1.0 + 1e-12]], dtype=torch.float64)
    c = torch.tensor([[1.0], [1.0 + 1.5e-12]], dtype=torch.float64)
    labels, distances = nearest_centroid(x, c, engine=engine)
    assert labels.item() == 1
    assert distances.dtype == torch.float64
    assert distances.item() == pytest.approx(2.5e-25, rel=1e-2)


def test_spherical_is_the_largest_cosine():
    g = torch.Generator().manual_seed(4)
    x, c = torch.randn(300, 20, generator=g), torch.randn(50, 20, generator=g)
    cosine = unit_rows(x.double()) @ unit_rows(c.double()).T
    labels, distances = nearest_centroid(x * torch.rand(300, 1, generator=g).mul(100), c * 7, spherical=True)
    assert (labels == cosine.argmax(dim=1)).all()
    torch.testing.assert_close(distances.double(), 2 - 2 * cosine.amax(dim=1), rtol=1e-4, atol=1e-5)


def test_inexact_answers_are_nearly_as_near():
    g = torch.Generator().manual_seed(5)
    x, c = torch.randn(500, 64, generator=g), torch.randn(100, 64, generator=g)
    fast = nearest_centroid(x, c, exact=False, engine="bfloat16").distances.sum()
    assert fast <= 1.001 * nearest_centroid(x, c).distances.sum()


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_small_integers_with_all_their_ties(engine, data):
    d = data.draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 2), min_size=d, max_size=d)
    x = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=12)), dtype=torch.float32)
    c = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=12)), dtype=torch.float32)
    check(x, c, engine=engine)


def test_shapes_and_engines_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(2, 5\)"):
        nearest_centroid(torch.zeros(4, 3), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="'int4'"):
        nearest_centroid(torch.zeros(4, 3), torch.zeros(2, 3), engine="int4")


@pytest.mark.skipif(not native.available(), reason="no compiled kernel here")
class TestNative:
    def test_threads_do_not_matter(self):
        g = torch.Generator().manual_seed(6)
        x, c = torch.randn(2000, 33, generator=g), torch.randn(70, 33, generator=g)
        found = []
        for count in (1, 3):
            with threads(count):
                labels, distances, _ = native.nearest(x, c)
                sums = torch.zeros(70, 33, dtype=torch.float64)
                native.add(sums, x, labels, None)
            found.append((labels, distances, sums))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_sums_are_float64s_and_weighted(self):
        g = torch.Generator().manual_seed(7)
        x, weight = torch.randn(900, 21, generator=g), torch.rand(900, generator=g, dtype=torch.float64)
        labels = torch.randint(0, 10, (900,), generator=g)
        for w in (None, weight):
            sums = torch.ones(10, 21, dtype=torch.float64)
            native.add(sums, x, labels, w)
            rows = x.double() if w is None else x.double() * w[:, None]
            true = torch.ones(10, 21, dtype=torch.float64).index_add_(0, labels, rows)
            torch.testing.assert_close(sums, true, rtol=1e-13, atol=1e-13)

    def test_bundled_centroids_are_left_to_plain_products(self):
        g = torch.Generator().manual_seed(8)
        c = 1e-3 * torch.randn(500, 16, generator=g)
        c[0] += 100  # the shift to the mean does not help: all but one lie within the rounding error
        x = 1e-3 * torch.randn(3000, 16, generator=g) + c[1]
        assert native.nearest(x, c)[2] < 3000
        assert (nearest_centroid(x, c).labels == nearest_centroid(x, c, engine="float32").labels).all()

    def test_infinity_and_nan_do_no_harm(self):
        x = torch.zeros(3, 5)
        x[0, 1], x[1, 2] = torch.inf, torch.nan
        labels = native.nearest(x, torch.eye(5)[:2])[0]
        assert labels.tolist() == [0, 0, 0]

    def test_it_can_be_turned_off(self, monkeypatch):
        monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
        assert not native.available()

    @pytest.mark.slow
    def test_the_tile_path_agrees_where_tiles_are_emulated(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        path = compiler.library(native._SOURCES, "-DEMULATE_TILES")
        assert path is not None
        kernel = native._Kernel(path)
        g = torch.Generator().manual_seed(9)
        for n, d, k in [(200, 70, 130), (65, 256, 64), (97, 3, 5)]:
            x, c = torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)
            labels, distances = torch.empty(n, dtype=torch.int64), torch.empty(n)
            kernel.nearest(x, c, labels, distances, level=compiler.INSTRUCTIONS["amx"])
            true_labels, true_distances = reference(x, c)
            assert (labels.numpy() == true_labels).all()
            np.testing.assert_allclose(distances.numpy(), true_distances, rtol=1e-5)
            values, indices = torch.full((n, 1), -torch.inf, dtype=torch.float64), torch.full((n, 1), -1)
            kernel.call("neighbors", x, n, d, c, k, 0, 1, 0, compiler.INSTRUCTIONS["amx"], 2, values, indices)
            assert (indices[:, 0].numpy() == true_labels).all()

    def test_a_compiler_that_fails_means_no_kernel(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("CXX", "false")
        with pytest.raises(subprocess.CalledProcessError):
            compiler.library(native._SOURCES)
        assert native._kernel.__wrapped__() is None
        assert list((tmp_path / "selfcluster").iterdir()) == []  # nothing half-built is left

    def test_a_kernel_that_errs_is_not_used(self):
        class Wrong:
            level = 1

            def nearest(self, x, centroids, labels, distances, level):
                labels.zero_()
                return 0

        assert not native._agrees(Wrong())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("engine", ["native", "bfloat16", "float32"])
def test_values_whose_squares_overflow_find_their_centroid(engine):
    if engine == "native" and not native.available():
        pytest.skip("no compiled kernel here")
    x, c = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.eye(40, 5) * 1e20
    c[5:] = torch.randn(35, 5, generator=torch.Generator().manual_seed(1))
    x[:5] = 0.9 * c[:5]
    true = torch.cdist(x.double(), c.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    assert torch.equal(nearest_centroid(x, c, engine=engine).labels, true)


@pytest.mark.parametrize("d", [3, 5, 8])
def test_the_bfloat16_bound_holds_where_half_a_square_rounds_badly(d):
    generator = torch.Generator().manual_seed(0)
    v = torch.randint(-47, 47, (400, d), generator=generator).float()
    v = (v / v.norm(dim=1, keepdim=True) * 47).round()  # |v|^2 / 2 lies half-way between two bfloat16 numbers
    c, x = torch.cat([v, -v]), (torch.randint(-47, 47, (4000, d), generator=generator) * 0.1).round()
    true = torch.cdist(x.double(), c.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    assert torch.equal(nearest_centroid(x, c, engine="bfloat16").labels, true)
