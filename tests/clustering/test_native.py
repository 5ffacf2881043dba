"""The compiled kernels with the processor's instruction sets switched off one after the other, against float64."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from selfcluster import compiler
from selfcluster.clustering import native
from selfcluster.clustering.assign import nearest_centroid
from selfcluster.clustering.neighbors import nearest
from selfcluster.clustering.sinkhorn import sinkhorn

# their names in /proc/cpuinfo
FLAGS = {
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "avx512": "avx512bw",
    "avx512vnni": "avx512_vnni",
    "amx": "amx_int8",
}
PROCESSOR = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []


@pytest.fixture(params=list(compiler.INSTRUCTIONS), autouse=True)
def limit(request, monkeypatch) -> str:
    """A kernel that errs is not used: where the processor has the instructions, that must fail and not skip."""
    if FLAGS[request.param] not in PROCESSOR or not native.available():
        pytest.skip(f"no {request.param} here, or no compiler")
    monkeypatch.setenv("SELFCLUSTER_NATIVE", request.param)
    assert native.instructions() == request.param
    return request.param


def gaps(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (100, 3, 2), (333, 65, 64), (150, 130, 200), (97, 16, 1100)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_labels_and_distances_are_float64s(n: int, d: int, k: int, offset: float) -> None:
    g = torch.Generator().manual_seed(n)
    x, c = torch.randn(n, d, generator=g) + offset, torch.randn(k, d, generator=g) + offset
    labels, distances, done = native.nearest(x, c)
    true = gaps(x, c).min(dim=1)
    assert torch.equal(labels, true.indices[:done])
    torch.testing.assert_close(distances.double(), true.values[:done], rtol=1e-5, atol=1e-12)


def test_near_ties_far_below_the_rounding_are_told_apart() -> None:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(4, 32, generator=g)
    c = (base[:, None] + 1e-5 * torch.randn(4, 25, 32, generator=g)).reshape(100, 32)  # four bundles of 25
    x = c.repeat(2, 1) + 1e-5 * torch.randn(200, 32, generator=g)
    assert torch.equal(nearest_centroid(x, c).labels, gaps(x, c).argmin(dim=1))


def test_sums_of_the_largest_numbers_do_not_overflow() -> None:
    """All numbers round to plus or minus the largest, so that products of 8 bits would overflow sums of 16."""
    g = torch.Generator().manual_seed(1)
    c = torch.randint(0, 2, (90, 256), generator=g) * 2.0 - 1
    x = torch.cat([c, -c, torch.ones(3, 256)])
    labels, distances, done = native.nearest(x, c)
    true = gaps(x, c).min(dim=1)
    assert done == len(x)
    assert torch.equal(labels, true.indices)
    torch.testing.assert_close(distances.double(), true.values)
    assert torch.equal(native.nearly_nearest(c, c), torch.arange(90))


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize(("n", "m", "d", "k"), [(130, 3000, 33, 7), (600, 90, 64, 90), (129, 65, 1, 3)])
def test_neighbors_are_those_of_a_full_sort(metric: str, n: int, m: int, d: int, k: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(m, d)).astype(np.float32)
    wide = x.astype(float), y.astype(float)
    true = wide[0] @ wide[1].T if metric == "inner_product" else -((wide[0][:, None] - wide[1][None]) ** 2).sum(axis=2)
    got = np.take_along_axis(true, nearest(x, y, k, metric=metric).indices, axis=1)
    np.testing.assert_allclose(got, -np.sort(-true, axis=1)[:, :k], rtol=0, atol=1e-13 * np.abs(true).max())


@pytest.mark.parametrize(("b", "k"), [(1, 1), (33, 17), (300, 515)])
def test_codes_are_sinkhorns(b: int, k: int) -> None:
    g = torch.Generator().manual_seed(0)
    z, c = (torch.nn.functional.normalize(torch.randn(m, 16, generator=g), dim=1) for m in (b, k))
    q = torch.exp((z @ c.T).double() / 0.05)
    for _ in range(3):
        q = q / q.sum(dim=0) / k
        q = q / q.sum(dim=1, keepdim=True) / b
    torch.testing.assert_close(sinkhorn(z @ c.T, 0.05, 3).double(), q * b, rtol=0, atol=1e-6)


def test_a_misspelled_set_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("SELFCLUSTER_NATIVE", "avx3")
    with pytest.raises(ValueError, match="SELFCLUSTER_NATIVE=avx3: set it to 0, 1, avx2"):
        native.available()


def test_instructions_that_crash_a_process_of_their_own_are_not_used(limit, monkeypatch, tmp_path) -> None:
    """Where a compiler or a processor is at fault, the next best instructions do the work, and the program lives on."""
    level = compiler.INSTRUCTIONS[limit]
    (tmp_path / "selfcluster").mkdir()
    for defines in ((), ("-DNARROW",)):
        shutil.copy(compiler.library(native._SOURCES, *defines), tmp_path / "selfcluster")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    crash = f"import os, sys; os.kill(os.getpid(), 11 if sys.argv[2] == '{level}' else 0)"
    monkeypatch.setattr(native, "_TRIAL", crash)
    kernel = native._kernel.__wrapped__(level)
    assert (kernel.level if kernel else 0) < level
    assert (kernel is None) == (limit == "avx2")
    tried = {int(path.suffix.rpartition("-")[2]) for path in tmp_path.rglob("*.tried-*")}
    assert tried == ({kernel.level} if kernel else set())
