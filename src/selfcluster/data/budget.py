"""Limits on decoding: pixels of one image, and memory that all threads share."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_PIXELS = 64_000_000  # of an image, as decoded
_SHARE = 8  # decoding may use an eighth of the memory
_LEAST = 1 << 28


class MemoryBudget:
    """A number of bytes that threads hold parts of. A thread that finds too little left waits.

    One request may exceed the whole budget: it then waits until no other thread holds any, so that it is never refused.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold `count` bytes for the duration of the `with` block."""
        with self._changed:
            self._changed.wait_for(lambda: self.used == 0 or self.used + count <= self.limit)
            self.used += count
        try:
            yield
        finally:
            with self._changed:
                self.used -= count
                self._changed.notify_all()


def host_memory() -> int:
    """Return the bytes of memory that this process may use, its part among the processes of this host."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@functools.cache
def decoding() -> MemoryBudget:
    """Return the budget of all decoding threads of this process."""
    return MemoryBudget(max(_LEAST, host_memory() // _SHARE))
