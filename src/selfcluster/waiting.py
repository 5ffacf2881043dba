"""Threads that wait for each other: they sleep, and where the work is too short to share, there is only one.

Call `let_threads_sleep` before NumPy and torch are imported. Spinning threads take the processor from the programs
beside them, which then take longer, and so do we. Torch's OpenMP, two epochs on the digits beside four busy loops on
two cores: 99.9 s with spinning threads, 35.6 s with sleeping ones; on the quiet machine 12.7 and 13.0 s for five
epochs, below the 3 % that we allow. NumPy's OpenBLAS on the quiet machine: products of 2,000 x 512 take as long
(0.44 and 0.45 s for 40), scikit-learn's logistic regression 0.08 and 0.03 s. So both are always done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
_OPENBLAS = {"OPENBLAS_THREAD_TIMEOUT": "4"}  # NumPy's products: 2 ** 4 turns of a loop, then sleep; its own is 2 ** 26


def let_threads_sleep() -> None:
    """Set how OpenMP and OpenBLAS wait, for this process and its children, where the user has not done so."""
    for reader, settings in (("torch", _OPENMP), ("numpy", _OPENBLAS)):
        loaded = reader in sys.modules  # the library has read its settings by then
        if not loaded and not any(name in os.environ for name in settings):
            os.environ.update(settings)


def busy_advice(threads: int, load: float, cores: int) -> str:
    """What to try where more programs compute than there are cores; empty where there is nothing to try.

    Beside four busy loops on two cores, training with one thread was 2.4 times as fast as with two. The number of
    threads decides the last bits of a result, so it is left to the user, and does not follow the load.

    Args:
        threads: that torch takes.
        load: how many programs wanted to compute in the last minute, on average; `os.getloadavg()[0]`.
        cores: of the machine.

    >>> busy_advice(threads=2, load=5.04, cores=2)
    'other programs keep the processor busy (load 5.0 on 2 cores). With OMP_NUM_THREADS=1 this command is faster'
    >>> busy_advice(threads=2, load=1.9, cores=2)
    ''
    """
    if threads == 1 or load <= cores:
        return ""
    words = "With OMP_NUM_THREADS=1 this command is faster"
    return f"other programs keep the processor busy (load {load:.1f} on {cores} cores). {words}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread of the processor in this block, or function, and as many as before after it.

    With several threads an operation ends when the last of them has had its turn on the processor. Beside busy programs
    that is a wait of milliseconds for work of microseconds.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_on_single_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `function` of every item, in order: several at a time, each on one thread; a single item has them all.

    For work too short to share between threads, such as k-means of a few thousand rows. Choosing a number of clusters
    for 5,398 photographs and making them took 26 to 28 s on two cores with shared fits, and 13 to 15 s with one thread
    a fit.

    >>> map_on_single_threads(abs, [-1, -2])
    [1, 2]
    """
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with one_thread(), ThreadPoolExecutor(min(len(items), os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))
