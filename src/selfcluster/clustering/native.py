"""The compiled kernels (native_*.cpp), which are used if they can be built and run here.

`selfcluster.compiler` builds them. If they are not `available()`, torch computes the same results. At each loading
their results are compared with float64, because a compiler or a processor may have a bug.

Letters: n rows, d dimensions, k centroids (of Sinkhorn: clusters).
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcluster import compiler

_SOURCES = sorted(Path(__file__).parent.glob("native*.[ch]pp"))
_MAX_DIMENSIONS = 65_536  # 255 * 127 * d must fit 32 bits
_PROBE_ROWS = 1024
_SMALL = 1 << 17  # smaller score matrices run on one thread, because a second one would start too late
_MUCH = 1 / 16  # share of the centroids compared exactly above which plain products are faster
_TRIAL = """
import pathlib, sys
from selfcluster.clustering import native
native._agrees(native._Kernel(pathlib.Path(sys.argv[1]), int(sys.argv[2])))
"""

_SIZE, _POINTER, _INT, _FLOAT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_SCORES = [_POINTER, _SIZE, _SIZE, _SIZE, _FLOAT, _FLOAT]  # n, k, the rows' distance, 1 / epsilon, least exponent
_SIGNATURES = {
    "nearest": [_POINTER, _SIZE, _SIZE, _POINTER, _SIZE, _INT, _INT, _POINTER, _POINTER],
    "nearly_nearest": [_POINTER, _SIZE, _SIZE, _POINTER, _SIZE, _INT, _INT, _POINTER],
    "nearest_listed": [
        _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _INT, _INT,
        _POINTER, _POINTER,
    ],
    "add": [_POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, _INT, _POINTER],
    "neighbors": [_POINTER, _SIZE, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, _INT, _INT, _INT, _POINTER, _POINTER],
    "sinkhorn_start": [*_SCORES, _INT, _POINTER, _POINTER, _POINTER],
    "sinkhorn_columns": [*_SCORES, _POINTER, _POINTER, _POINTER, _INT, _POINTER],
    "sinkhorn_codes": [*_SCORES, _POINTER, _POINTER, _INT, _POINTER],
}  # fmt: skip


class _Kernel:
    def __init__(self, path: Path, most: int = compiler.BEST) -> None:
        library = ctypes.CDLL(str(path))
        self.level = int(library.selfcluster_level(most))
        self._functions: dict[str, Any] = {}
        for name, types in _SIGNATURES.items():
            function = self._functions[name] = getattr(library, f"selfcluster_{name}")
            function.argtypes, function.restype = types, _SIZE

    def call(self, name: str, *arguments: object) -> int:
        """Call a function of the library; tensors are passed as pointers."""
        result = self._functions[name](*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
        if result < 0:
            raise MemoryError(
                f"not enough memory for the compiled kernel {name!r}; SELFCLUSTER_NATIVE=0 uses torch instead"
            )
        return result

    def nearest(self, x: Tensor, centroids: Tensor, labels: Tensor, distances: Tensor, level: int) -> int:
        """Fill labels (n,) int64 and distances (n,) float32; returns how many distances were computed exactly."""
        threads = torch.get_num_threads()
        return self.call("nearest", x, *x.shape, centroids, len(centroids), level, threads, labels, distances)


def available() -> bool:
    """Whether the kernels run here. The first call may compile them (some seconds, once per user)."""
    return _chosen() is not None


def instructions() -> str | None:
    """Return which of `compiler.INSTRUCTIONS` the kernels use here; None if the kernels are not available."""
    kernel = _chosen()
    return (
        None if kernel is None else next(name for name, level in compiler.INSTRUCTIONS.items() if level == kernel.level)
    )


def takes(x: Tensor) -> bool:
    """Whether the kernel is available and can take these rows."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.shape[1] <= _MAX_DIMENSIONS and available()


def takes_scores(scores: Tensor) -> bool:
    """Whether `Exponentials` is available and can take these scores."""
    return scores.dtype == torch.float32 and scores.device.type == "cpu" and available()


def nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return exact nearest centroids, for as many of the first rows as the kernel is fast for.

    Args:
        x: (n, d) float32 on the CPU.
        centroids: (k, d) float32.

    Returns:
        labels (m,) int64 and squared distances (m,) float32 of the first m rows, and m: n as a rule, less where the
        data leaves too many candidates for 8-bit products to pay (tight groups of centroids far from the others).

    Raises:
        ValueError: the kernel cannot take this.
    """
    kernel = _chosen()
    if kernel is None or not takes(x):
        raise ValueError("engine='native' needs float32 rows on a CPU with AVX2 or better, and a C++ compiler")
    x, centroids = x.contiguous(), centroids.contiguous()
    n, k = len(x), len(centroids)
    labels, distances = torch.empty(n, dtype=torch.int64), torch.empty(n)
    probe = min(n, _PROBE_ROWS)
    for start, stop in ((0, probe), (probe, n)):
        if start == stop:
            break
        compared = kernel.nearest(x[start:stop], centroids, labels[start:stop], distances[start:stop], kernel.level)
        if stop == probe and k > 64 and compared > _MUCH * k * probe:
            return labels[:probe], distances[:probe], probe
    return labels, distances, n


def nearly_nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """Return labels (n,) by 8-bit products only; they may be wrong if two centroids differ by less than a percent."""
    kernel = _chosen()
    if kernel is None or not takes(x):
        raise ValueError("the compiled kernel cannot take this")
    x, centroids = x.contiguous(), centroids.contiguous()
    labels = torch.empty(len(x), dtype=torch.int64)
    threads = torch.get_num_threads()
    kernel.call("nearly_nearest", x, *x.shape, centroids, len(centroids), kernel.level, threads, labels)
    return labels


def nearest_listed(
    x: Tensor, centroids: Tensor, order: Tensor, begin: Tensor, lists: Tensor, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Apply `nearly_nearest` to groups of rows, each with its own list of centroids; also return distances.

    The rows order[begin[g]:begin[g + 1]] are compared with the centroids lists[g]. If `last` is given, a row is also
    compared with its last centroid, last[i], and leaves it only for a nearer one. `order`
    and `last` (n,), `begin` (g + 1,), `lists` (g, m), rising in each row; all int64.
    """
    kernel = _chosen()
    if kernel is None or not takes(x):
        raise ValueError("the compiled kernel cannot take this")
    x, centroids, order, begin, lists = (t.contiguous() for t in (x, centroids, order, begin, lists))
    last = None if last is None else last.contiguous()
    labels, distances = torch.empty(len(x), dtype=torch.int64), torch.empty(len(x))
    regions, m = lists.shape
    kernel.call(
        "nearest_listed", x, x.shape[1], centroids, len(centroids), order, begin, regions, lists, m, last, kernel.level,
        torch.get_num_threads(), labels, distances,
    )  # fmt: skip
    return labels, distances


def add(sums: Tensor, x: Tensor, labels: Tensor, weight: Tensor | None) -> None:
    """sums[labels[i]] += weight[i] x[i], in float64, in an order that does not depend on the number of threads."""
    kernel = _chosen()
    if kernel is None:
        raise ValueError("the compiled kernel is not available")
    weight = None if weight is None else weight.double().contiguous()
    kernel.call("add", x.contiguous(), *x.shape, labels, weight, len(sums), torch.get_num_threads(), sums)


def improve_neighbors(
    x: Tensor, database: Tensor, first: int, values: Tensor, indices: Tensor, *, inner_product: bool
) -> None:
    """Update the best k (values, indices) of each query with rows of `database`; of equals the lowest number wins.

    Args:
        x: (n, d) float32 queries.
        database: (m, d) float32 rows, the first of which is number `first`; higher numbers than any seen before.
        values: (n, k) float64, falling, at first minus infinity; inner products or negative squared distances.
        indices: (n, k) int64, at first -1.
        inner_product: the score; squared distances otherwise.
    """
    kernel = _chosen()
    if kernel is None or not takes(x):
        raise ValueError("the compiled kernel cannot take this")
    x, database = x.contiguous(), database.contiguous()
    kernel.call(
        "neighbors", x, *x.shape, database, len(database), first, values.shape[1], inner_product, kernel.level,
        torch.get_num_threads(), values, indices,
    )  # fmt: skip


class Exponentials:
    """M = exp(max((scores - top) / epsilon, lowest)). It is not stored: every pass computes its entries again.

    Args:
        scores: (n, k) float32 on the CPU, n above 0.
        epsilon, lowest: as above; `top` (n,) are the rows' maxima, which `start` finds.
    """

    def __init__(self, scores: Tensor, epsilon: float, lowest: float) -> None:
        kernel = _chosen()
        if kernel is None:
            raise ValueError("the compiled kernel is not available")
        scores = scores if scores.stride(1) == 1 else scores.contiguous()
        n, k = scores.shape
        in_base_2 = 1 / math.log(2)
        self._scores = scores, n, k, scores.stride(0), in_base_2 / epsilon, in_base_2 * lowest
        self._call, self._threads = kernel.call, 1 if n * k < _SMALL else min(n, torch.get_num_threads())
        self.top = scores.new_empty(n)

    def start(self) -> tuple[Tensor, float]:
        """M^T v (k,) float64 where v = exp((top - highest top) / epsilon), and the highest top."""
        total, highest = self._scores[0].new_zeros(self._scores[2], dtype=torch.float64), self.top.new_zeros(1)
        self._call("sinkhorn_start", *self._scores, self._threads, self.top, total, highest)
        return total, float(highest)

    def columns(self, *, u: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """M^T v (k,) float64 for v (n,) as given, or 1 / (M u)."""
        u = self.top.new_ones(self._scores[2]) if u is None else u
        total = u.new_zeros(len(u), dtype=torch.float64)
        self._call("sinkhorn_columns", *self._scores, self.top, u, v, self._threads, total)
        return total

    def codes(self, u: Tensor, out: Tensor) -> None:
        """The rows of M times u (k,), scaled to sum 1, into `out` (n, k) float32, contiguous."""
        self._call("sinkhorn_codes", *self._scores, self.top, u, self._threads, out)


def _chosen() -> _Kernel | None:
    """Return the kernel that the environment allows; see `compiler.allowed` for errors."""
    level = compiler.allowed()
    if level == 0:
        return None
    with compiler.building:
        return _kernel(level)


@functools.cache
def _kernel(most: int = compiler.BEST) -> _Kernel | None:
    """Return the best kernel up to a level. One build has the levels from AVX512 on, another has AVX2."""
    if not compiler.is_known_platform():
        return None
    wide = compiler.INSTRUCTIONS["avx512"] if compiler.has_flag("avx512bw") else compiler.BEST + 1
    for defines, levels in (((), range(most, wide - 1, -1)), (("-DNARROW",), range(min(most, wide - 1), 0, -1))):
        try:
            path = compiler.library(_SOURCES, *defines) if levels else None
            for level in levels:
                if path is None:
                    break
                kernel = _Kernel(path, level)
                if kernel.level == level and compiler.survives(path, _TRIAL, level) and _agrees(kernel):
                    return kernel
        except compiler.FAILURES:
            continue
    return None


def _agrees(kernel: _Kernel) -> bool:
    """Whether results on a small set equal float64's. If not, the compiler or processor has a bug."""
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(200, 70, generator=generator), torch.randn(130, 70, generator=generator)
    labels, distances = torch.empty(200, dtype=torch.int64), torch.empty(200)
    kernel.nearest(x, c, labels, distances, kernel.level)
    gaps = (x.double()[:, None] - c.double()).square().sum(dim=2)
    true = gaps.min(dim=1)
    if not bool((labels == true.indices).all()) or not torch.allclose(distances.double(), true.values, rtol=1e-5):
        return False
    values, indices = torch.full((200, 3), -torch.inf, dtype=torch.float64), torch.full((200, 3), -1)
    kernel.call("neighbors", x, 200, 70, c, 130, 0, 3, 0, kernel.level, 1, values, indices)
    total, top, highest = torch.zeros(70, dtype=torch.float64), torch.empty(200), torch.empty(1)
    kernel.call("sinkhorn_start", x, 200, 70, 70, 1.0, -60.0, 1, top, total, highest)
    sums = (x.double() - x.max()).exp2().sum(dim=0)
    return bool((indices == gaps.topk(3, largest=False).indices).all()) and torch.allclose(total, sums, rtol=1e-5)
