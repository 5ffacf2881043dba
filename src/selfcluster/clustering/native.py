"""The compiled assignment kernel (native.cpp): built on first use where a C++ compiler is at hand, absent otherwise.

Installing needs no compiler and nothing here ever fails: without a compiler, on another processor, or with
SELFCLUSTER_NATIVE=0 in the environment the kernel is not `available()` and torch does the work, with the same labels.
The library lives in the user's cache folder, named by a hash of its source, and is checked against float64 on loading.

Letters: n rows, d dimensions, k centroids.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno")
_BUILD_SECONDS = 120
_MAX_DIMENSIONS = 65_536  # 255 * 127 * d must fit 32 bits
_PROBE_ROWS = 1024
_MUCH = 1 / 16  # share of the centroids compared exactly above which plain products are faster


class _Kernel:
    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        self._level = library.selfcluster_level
        self._nearest, self._add = library.selfcluster_nearest, library.selfcluster_add
        self.listed = library.selfcluster_nearest_listed
        self.listed.argtypes = [
            pointer, size, pointer, size, pointer, pointer, size, pointer, size, pointer, ctypes.c_int, ctypes.c_int,
            pointer, pointer,
        ]  # fmt: skip
        self._nearest.argtypes = [pointer, size, size, pointer, size, ctypes.c_int, ctypes.c_int, pointer, pointer]
        self._add.argtypes = [pointer, size, size, pointer, pointer, size, ctypes.c_int, pointer]
        self._nearest.restype = self.listed.restype = self._add.restype = size
        self.level = int(self._level())

    def nearest(self, x: Tensor, centroids: Tensor, labels: Tensor, distances: Tensor | None, level: int) -> int:
        """Fill labels (n,) int64 and distances (n,) float32; returns how many distances were computed exactly."""
        n, d = x.shape
        compared = self._nearest(
            x.data_ptr(), n, d, centroids.data_ptr(), len(centroids), level, torch.get_num_threads(),
            labels.data_ptr(), None if distances is None else distances.data_ptr(),
        )  # fmt: skip
        if compared < 0:
            raise MemoryError(f"no memory to assign {n} rows to {len(centroids)} centroids")
        return compared

    def add(self, sums: Tensor, x: Tensor, labels: Tensor, weight: Tensor | None) -> None:
        n, d = x.shape
        pointer = None if weight is None else weight.data_ptr()
        if self._add(
            x.data_ptr(), n, d, labels.data_ptr(), pointer, len(sums), torch.get_num_threads(), sums.data_ptr()
        ):
            raise MemoryError(f"no memory to add up {n} rows")


def available() -> bool:
    """Whether the kernel runs here; the first call may compile it (some seconds, once for a user)."""
    return os.environ.get("SELFCLUSTER_NATIVE", "1") != "0" and _kernel() is not None


def takes(x: Tensor) -> bool:
    """Whether the kernel is available and made for rows like these."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.shape[1] <= _MAX_DIMENSIONS and available()


def nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, int]:
    """Exact nearest centroids of as many leading rows as the kernel is the right tool for.

    Args:
        x: (n, d) float32 on the CPU.
        centroids: (k, d) float32.

    Returns:
        labels (m,) int64 and squared distances (m,) float32 of the first m rows, and m: n as a rule, less where the
        data leaves too many candidates for 8-bit products to pay (tight groups of centroids far from the others).

    Raises:
        ValueError: the kernel cannot take this.
    """
    kernel = _kernel()
    if kernel is None or not takes(x):
        raise ValueError("engine='native' needs float32 rows on a CPU with AVX512-VNNI or AMX, and a C++ compiler")
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
    """Labels (n,) by 8-bit products alone: right but where two centroids are within a percent of one another."""
    kernel = _kernel()
    if kernel is None or not takes(x):
        raise ValueError("the compiled kernel cannot take this")
    labels = torch.empty(len(x), dtype=torch.int64)
    kernel.nearest(x.contiguous(), centroids.contiguous(), labels, None, kernel.level)
    return labels


def nearest_listed(
    x: Tensor, centroids: Tensor, order: Tensor, begin: Tensor, lists: Tensor, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`nearest` where the rows order[begin[g]:begin[g + 1]] are compared with few centroids only.

    Those are lists[g], and the row's own last[i] where `last` is given. `order` and `last` (n,), `begin` (g + 1,),
    `lists` (g, m), rising in each row; all int64.
    """
    kernel = _kernel()
    if kernel is None or not takes(x):
        raise ValueError("the compiled kernel cannot take this")
    x, centroids, order, begin, lists = (t.contiguous() for t in (x, centroids, order, begin, lists))
    last = None if last is None else last.contiguous()
    labels, distances = torch.empty(len(x), dtype=torch.int64), torch.empty(len(x))
    regions, m = lists.shape
    if kernel.listed(
        x.data_ptr(), x.shape[1], centroids.data_ptr(), len(centroids), order.data_ptr(), begin.data_ptr(), regions,
        lists.data_ptr(), m, None if last is None else last.data_ptr(), kernel.level, torch.get_num_threads(),
        labels.data_ptr(), distances.data_ptr(),
    ) < 0:  # fmt: skip
        raise MemoryError(f"no memory to assign {len(x)} rows to {m} of {len(centroids)} centroids each")
    return labels, distances


def add(sums: Tensor, x: Tensor, labels: Tensor, weight: Tensor | None) -> None:
    """sums[labels[i]] += weight[i] x[i], in float64, in an order that does not depend on the number of threads."""
    kernel = _kernel()
    if kernel is None:
        raise ValueError("the compiled kernel is not available")
    kernel.add(sums, x.contiguous(), labels, None if weight is None else weight.double().contiguous())


@functools.cache
def _kernel() -> _Kernel | None:
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    try:
        path = _library(compiler)
        kernel = _Kernel(path) if path else None
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    return kernel if kernel is not None and kernel.level and _agrees(kernel) else None


def _library(compiler: str | None, *defines: str) -> Path | None:
    """The built library, from the cache if it is there. Concurrent processes each build, and the last rename wins."""
    text = _SOURCE.read_bytes() + " ".join((*_FLAGS, *defines)).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfcluster"
    target = cache / f"native-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if target.exists():
        return target
    if compiler is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        built = Path(folder) / target.name
        command = [*compiler.split(), *_FLAGS, *defines, str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, timeout=_BUILD_SECONDS)
        os.replace(built, target)
    return target


def _agrees(kernel: _Kernel) -> bool:
    """A kernel that a compiler or processor bends is not used: labels must be float64's on a small set."""
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(200, 70, generator=generator), torch.randn(130, 70, generator=generator)
    labels, distances = torch.empty(200, dtype=torch.int64), torch.empty(200)
    kernel.nearest(x, c, labels, distances, kernel.level)
    true = (x.double()[:, None] - c.double()).square().sum(dim=2).min(dim=1)
    return bool((labels == true.indices).all()) and torch.allclose(distances.double(), true.values, rtol=1e-5)
