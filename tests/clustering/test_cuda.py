"""The Triton kernels against float64: in Triton's interpreter on a CPU, compiled where there is a GPU."""

import pytest
import torch

from selfcluster.clustering.sinkhorn import balanced, sinkhorn

pytest.importorskip("triton", reason="torch for CUDA brings Triton; this torch has none")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def kernels():
    from selfcluster.clustering.cuda import assign, sinkhorn, sums  # only the tests import them on a CPU

    return assign, sums, sinkhorn


def rows(n: int, d: int, k: int, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and, as centroids, rows of it moved a little: many near ties and some tight pairs."""
    generator = torch.Generator().manual_seed(n + d + k)
    x = torch.randn(n, d, generator=generator) + offset
    chosen = torch.randint(n, (k,), generator=generator)
    return x.to(DEVICE), (x[chosen] + 0.01 * torch.randn(k, d, generator=generator)).to(DEVICE)


def squared_distances(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return (x.double()[:, None] - centroids.double()).square().sum(dim=2)


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (129, 16, 130), (64, 70, 5), (200, 300, 40)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_labels_are_float64s(kernels, n, d, k, offset):
    x, centroids = rows(n, d, k, offset)
    labels, distances = kernels[0].nearest(x, centroids)
    true = squared_distances(x, centroids)
    assert torch.equal(labels, true.argmin(dim=1))
    torch.testing.assert_close(distances.double(), true.min(dim=1).values, rtol=1e-5, atol=1e-7)


def test_the_lowest_of_equal_centroids_wins(kernels):
    x, centroids = rows(50, 8, 6)
    labels, _ = kernels[0].nearest(x, centroids.repeat(30, 1))  # each centroid 30 times, in two tiles
    assert torch.equal(labels, squared_distances(x, centroids).argmin(dim=1))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_rows_that_overflow_bfloat16s_bound_are_compared_in_float64(kernels):
    x, centroids = rows(20, 4, 5)
    x[3], centroids[2] = 3e38, 2.9e38
    labels, _ = kernels[0].nearest(x, centroids)
    assert torch.equal(labels, squared_distances(x, centroids).argmin(dim=1))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), [(300, 70, 7), (5, 3, 9)])
def test_sums_are_float64s(kernels, weighted, n, d, k):
    generator = torch.Generator().manual_seed(n)
    x, labels = torch.randn(n, d, generator=generator), torch.randint(k, (n,), generator=generator)
    weight = torch.rand(n, generator=generator) if weighted else None
    before = torch.randn(k, d, dtype=torch.float64, generator=generator)
    found = before.to(DEVICE, copy=True)
    kernels[1].add_rows(found, x.to(DEVICE), labels.to(DEVICE), None if weight is None else weight.to(DEVICE))
    wide = x.double() if weight is None else x.double() * weight.double()[:, None]
    torch.testing.assert_close(found.cpu(), before.clone().index_add_(0, labels, wide), rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("b", "q", "k"), [(1, 0, 1), (33, 0, 17), (40, 21, 70), (70, 9, 300)])
def test_codes_are_float64s_half_steps(kernels, dtype, b, q, k):
    generator = torch.Generator().manual_seed(b)
    directions = [torch.nn.functional.normalize(torch.randn(m, 16, generator=generator), dim=1) for m in (b + q, k)]
    scores = (directions[0] @ directions[1].T).to(DEVICE, dtype)
    for iterations in (1, 3, 10):
        parts = [part for part in scores.split([b, q]) if len(part)]
        codes = balanced([kernels[2].Exponentials(p, 0.05, -60.0) for p in parts], scores[:b], 0.05, iterations)
        at_once = kernels[2].codes(parts, 0.05, -60.0, iterations)
        expected = torch.exp(scores.double() / 0.05).T
        for _ in range(iterations):  # eq. 3 and 4 of arXiv 2006.09882
            expected = expected / expected.sum(dim=1, keepdim=True) / k
            expected = expected / expected.sum(dim=0, keepdim=True) / (b + q)
        for found in (codes, at_once):
            torch.testing.assert_close(found.double(), (expected * (b + q)).T[:b], rtol=0, atol=2e-6)


def test_codes_of_rows_in_a_wider_matrix_and_of_several_tiles(kernels, monkeypatch):
    monkeypatch.setattr(kernels[2], "_TILE", 64)
    monkeypatch.setattr(kernels[2], "_PROGRAMS", 3)
    wide = torch.rand(50, 24, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    scores = wide[:, 2:18]
    codes = balanced([kernels[2].Exponentials(scores, 0.05, -60.0)], scores, 0.05, 3)
    for found in (codes, kernels[2].codes([scores], 0.05, -60.0, 3)):
        torch.testing.assert_close(found.cpu(), sinkhorn(scores.cpu()), rtol=0, atol=1e-6)
