"""Freed memory stays with the process, so that the next array of the same size need not be cleared again.

By default glibc returns large blocks to the kernel as soon as they are free. The kernel clears each page that it gives
out, and a network's outputs then cost as much time in the kernel as in the network: 35 s of 180 s for 5,398 photographs
(docs/LOG.md, 2026-11-28).
"""

from __future__ import annotations

import ctypes
import os

_TRIM, _MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_KEPT = 1 << 30  # bytes that may be free at the end of the heap
_LARGEST = 32 << 20  # the most that glibc allows; larger blocks are always returned
_PILLOW_BLOCKS = "64m"  # Pillow cuts a large image into blocks of 16 MiB, which would be kept; larger ones are returned


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of freed memory; return whether it does. Call it before Pillow is imported.

    Nothing changes without glibc, or if the user has set one of glibc's MALLOC_ variables.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    keeps = bool(mallopt(_TRIM, _KEPT) and mallopt(_MMAP, _LARGEST))
    if keeps:
        os.environ.setdefault("PILLOW_BLOCK_SIZE", _PILLOW_BLOCKS)
    return keeps
