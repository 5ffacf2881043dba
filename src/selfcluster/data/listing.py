"""What a scan found: the names of the images, their sizes and times, and the files it passed over."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from selfcluster.data.names import Names, to_id

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
IMAGE_SUFFIX_BYTES = tuple(s.encode() for s in IMAGE_SUFFIXES)
_MAX_NAMED = 1000  # skipped files that are named one by one; the rest are only counted


@dataclass
class Listing:
    """N names with their sizes and modification times (ns), and what the scan passed over."""

    names: Names
    sizes: np.ndarray  # (N,) int64, -1 where the file was missing
    mtimes: np.ndarray  # (N,) int64
    skipped: list[tuple[str, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)  # reason or suffix -> how many

    def skip(self, name: bytes, reason: str) -> None:
        """Count a file that is not used, and name it while the list is short."""
        self.passed[reason] += 1
        if len(self.skipped) < _MAX_NAMED:
            self.skipped.append((to_id(name), reason))

    def pass_over(self, name: bytes) -> None:
        """Count a file that is no image, by its suffix."""
        self.passed[suffix_of(name) or "no suffix"] += 1

    def take(self, rows: np.ndarray) -> Listing:
        """The listing of a subset; what was passed over stays."""
        return Listing(self.names.take(rows), self.sizes[rows], self.mtimes[rows], self.skipped, self.passed)


def suffix_of(name: bytes) -> str:
    """The suffix in lower case, such as ".jpg"; empty where there is none.

    >>> suffix_of(b"a/b.JPG"), suffix_of(b"README")
    ('.jpg', '')
    """
    return os.path.splitext(name)[1].lower().decode("ascii", "replace")
