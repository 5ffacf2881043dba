"""Counter-based randomness: every random number is a pure function of its seed, purpose and position.

There is no generator state that a worker, a rank or a checkpoint would have to keep. The same key gives the same
uniforms in NumPy (loader threads) and in torch (the device), in any process and in any order.
The mixing function is the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, SplitMix64's increment
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_BITS = 24  # what a float32 in [0, 1) holds exactly
P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger("selfcluster")


def key(seed: int, purpose: str, *counters: int) -> int:
    """Return a 64-bit key of a seed, the name of a purpose and any number of counters (step, view, rank, ...)."""
    state = _mix(seed & _MASK)
    for part in (zlib.crc32(purpose.encode()), *counters):
        state = _mix((state + _GOLDEN + (int(part) & _MASK)) & _MASK)
    return state


@overload
def draw(seed: int, purpose: str, step: int, index: np.ndarray, view: int, n: int) -> np.ndarray: ...


@overload
def draw(seed: int, purpose: str, step: int, index: Tensor, view: int, n: int) -> Tensor: ...


def draw(seed: int, purpose: str, step: int, index: np.ndarray | Tensor, view: int, n: int) -> np.ndarray | Tensor:
    """Return uniforms in [0, 1). Row b depends on sample `index[b]` and on no other sample.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for ("crops", "color", ...); different purposes are independent.
        step: the step (or epoch) they are for.
        index: (B,) integers, a NumPy array or a torch tensor; the samples.
        view: which view of the sample.
        n: how many numbers a sample needs.

    Returns:
        (B, n) float32 of `index`'s kind, on its device. The bits are the same in NumPy and in torch.

    >>> bool((draw(0, "crops", 3, np.array([5, 7]), 0, 2)[1] == draw(0, "crops", 3, np.array([7]), 0, 2)[0]).all())
    True
    """
    base = key(seed, purpose, step, view)
    if isinstance(index, np.ndarray):
        return _draw_numpy(base, index, np.arange(1, n + 1))
    return _draw_torch(base, index, n)


class Uniforms:
    """`draw(...)` of NumPy samples whose numbers are computed when they are read: `uniforms[rows, columns]`.

    `rows` is a slice or numbers (R,) or (R, 1), as NumPy's indexing has them; the result is (R, columns).

    >>> whole = draw(0, "crops", 3, np.array([5, 7]), 0, 9)
    >>> bool((Uniforms(0, "crops", 3, np.array([5, 7]), 0)[:, [2, 8]] == whole[:, [2, 8]]).all())
    True
    """

    def __init__(self, seed: int, purpose: str, step: int, index: np.ndarray, view: int) -> None:
        self._base, self._index = key(seed, purpose, step, view), index

    def __getitem__(self, where: tuple[Any, Any]) -> np.ndarray:
        rows, columns = where
        return _draw_numpy(self._base, self._index[rows].reshape(-1), np.asarray(columns) + 1)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def _draw_numpy(base: int, index: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        rows = _mix_numpy(index.astype(np.int64).view(np.uint64) + np.uint64(base))
        columns = numbers.astype(np.uint64) * np.uint64(_GOLDEN)
        bits = _mix_numpy(rows[:, None] + columns[None, :])  # (B, n)
    return (bits >> np.uint64(64 - _BITS)).astype(np.float32) * np.float32(2.0**-_BITS)


def _mix_numpy(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def _draw_torch(base: int, index: torch.Tensor, n: int) -> torch.Tensor:
    import torch

    # torch has no unsigned 64-bit arithmetic: int64 wraps alike, and a logical shift is a shift and a mask
    columns = torch.arange(1, n + 1, dtype=torch.int64, device=index.device) * _signed(_GOLDEN)
    rows = _mix_torch(index.to(torch.int64) + _signed(base))
    bits = _mix_torch(rows[:, None] + columns[None, :])  # (B, n)
    return _shift(bits, 64 - _BITS).to(torch.float32) * 2.0**-_BITS


def _mix_torch(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_ONE_AT_A_TIME = threading.RLock()


def keeps_random_state(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function: it leaves the caller's random generators as they were, also after an error.

    Those of Python, NumPy and torch, torch's on every device in use. Calls of several threads take turns, because
    torch's dropout and initialization draw from one generator of the process; a call that waits says so. The work is
    done with torch's own defaults, float32 and gradients, whatever the caller has set.
    """

    @functools.wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _ONE_AT_A_TIME.acquire(blocking=False):
            log.warning(
                "%s waits for another selfcluster call in this process: both use torch's random generator",
                function.__name__,
            )
            _ONE_AT_A_TIME.acquire()
        try:
            with _random_state(), _defaults_of_torch():
                return function(*args, **kwargs)
        finally:
            _ONE_AT_A_TIME.release()

    return kept


@contextlib.contextmanager
def _defaults_of_torch() -> Iterator[None]:
    if "torch" not in sys.modules:  # then no one has changed them
        yield
        return
    import torch

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    before, numpys = random.getstate(), np.random.get_state()
    was_loaded = "torch" in sys.modules  # it is not imported for this: help and refusals stay fast
    states = _torch_states() if was_loaded else []
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpys)
        if was_loaded:
            for generator, state in states:
                generator.set_state(state)
        elif "torch" in sys.modules:
            import torch

            torch.default_generator.set_state(torch.Generator().get_state())  # as after a fresh import


def _torch_states() -> list[tuple[torch.Generator, Tensor]]:
    import torch

    generators = [torch.default_generator]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        generators += list(torch.cuda.default_generators)
    return [(generator, generator.get_state()) for generator in generators]
