"""Builds the package's C++ kernels on first use, and tries each library in a separate process before it is used.

Installation needs no compiler. Without a compiler, on another processor, or with SELFCLUSTER_NATIVE=0 in the
environment, torch computes the same results. SELFCLUSTER_NATIVE=avx2, or another of `INSTRUCTIONS`, switches better
instructions off; the results do not change. Libraries are in the user's cache folder, under a hash of their source.
The separate process protects this one from a compiler or processor whose code crashes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

# what multiplies 8-bit numbers, by the levels of clustering/native.hpp, the best last
INSTRUCTIONS = {"avx2": 1, "avxvnni": 2, "avx512": 3, "avx512vnni": 4, "amx": 5}
BEST = max(INSTRUCTIONS.values())
FAILURES = (OSError, subprocess.SubprocessError, AttributeError, RuntimeError)  # the last: no home folder
building = threading.Lock()  # threads that ask for a kernel at once wait for one build
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno")
_SECONDS = 120


class Kernel(Protocol):
    """A built library: it is opened from its path, and can compare a few of its results with the right ones."""

    def __init__(self, path: Path) -> None: ...

    def agrees(self) -> bool: ...


K = TypeVar("K", bound=Kernel)


class OnDemand(Generic[K]):
    """A kernel that is built, tried and checked when it is first asked for.

    A call returns it, or None where it is switched off, cannot be built or run, or errs.

    Args:
        kernel: the class of the kernel, at the top of its module.
        sources: C++ files and headers of one library.
        options: of the compiler.
        flags: instructions that the processor must have, by their names in /proc/cpuinfo.
    """

    def __init__(self, kernel: type[K], sources: Sequence[Path], options: Sequence[str], flags: Sequence[str]) -> None:
        self._kernel, self._sources, self._options, self._flags = kernel, sources, options, flags
        self._found: list[K | None] = []

    def __call__(self) -> K | None:
        if not allowed():
            return None
        with building:
            if not self._found:
                self._found.append(self.load())
        return self._found[0]

    def load(self) -> K | None:
        """Return the kernel, or None. The answer is not kept."""
        if not is_known_platform() or not all(map(has_flag, self._flags)):
            return None
        module, name = self._kernel.__module__, self._kernel.__name__
        trial = f"import pathlib, sys, {module} as module; module.{name}(pathlib.Path(sys.argv[1])).agrees()"
        try:
            path = library(self._sources, *self._options)
            if path is None or not survives(path, trial):
                return None
            kernel = self._kernel(path)
            return kernel if kernel.agrees() else None
        except FAILURES:
            return None


def allowed() -> int:
    """Return the best level of `INSTRUCTIONS` that the environment allows, 0 for none.

    Raises:
        ValueError: SELFCLUSTER_NATIVE is neither 0 nor 1 nor one of `INSTRUCTIONS`.
    """
    limit = os.environ.get("SELFCLUSTER_NATIVE", "1")
    if limit in ("0", "1"):
        return BEST * int(limit)
    if limit not in INSTRUCTIONS:
        raise ValueError(f"SELFCLUSTER_NATIVE={limit}: set it to 0, 1, {' or '.join(INSTRUCTIONS)}, or unset it")
    return INSTRUCTIONS[limit]


def is_known_platform() -> bool:
    """Whether the kernels are written for this operating system and processor."""
    return sys.platform.startswith("linux") and platform.machine() == "x86_64"


def has_flag(name: str) -> bool:
    """Whether the processor names this set of instructions among its flags."""
    return name in _processor_flags().split()


def library(sources: Sequence[Path], *options: str) -> Path | None:
    """Return the library of C++ sources and headers, built unless it is in the cache; None without a compiler.

    If processes build it at once, the last rename wins.

    Raises:
        OSError, subprocess.SubprocessError, RuntimeError: it cannot be built or stored.
    """
    text = b"".join(path.read_bytes() for path in sources) + " ".join((*_FLAGS, *options)).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfcluster"
    target = cache / f"native-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if target.exists():
        return target
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        built = Path(folder) / target.name
        files = [str(path) for path in sources if path.suffix == ".cpp"]
        command = [*compiler.split(), *_FLAGS, *options, *files, "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        os.replace(built, target)
    return target


def survives(path: Path, trial: str, level: int = 1) -> bool:
    """Whether a separate process can run `trial`, Python code whose arguments are a library's path and a level.

    The answer is stored beside the library.
    """
    known, here = path.with_suffix(f".tried-{level}"), hashlib.sha256(_processor_flags().encode()).hexdigest()
    with suppress(OSError):
        if known.read_text() == here:
            return True
    if not sys.executable:  # an interpreter inside another program cannot be started again
        return True
    words = [sys.executable, "-c", trial, str(path), str(level)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if subprocess.run(words, env=environment, capture_output=True, timeout=_SECONDS).returncode < 0:
        return False  # ended by a signal: an illegal instruction or a bad address
    with suppress(OSError):
        known.write_text(here)
    return True


def _processor_flags() -> str:
    """Return what identifies this processor's instructions, because different machines may share a home folder."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), "")
