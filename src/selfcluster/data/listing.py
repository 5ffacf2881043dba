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
_HARMLESS = ("hidden", "no suffix")
_WORDS = {
    "same_file": "links to images that are used already (same_file)",
    "not_regular": "pipes, devices or folders named like images (not_regular)",
    "broken_link": "links that lead nowhere (broken_link)",
    "no_permission": "files without read permission (no_permission)",
}
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


def left_out(passed: Counter[str]) -> str:
    """Return what a scan did not use, as the end of a sentence; empty where it used everything."""
    note, warning = passed_over(passed)
    return note + (f"; {warning}" if warning else "")


def passed_over(passed: Counter[str]) -> tuple[str, str]:
    """Return a note on the files that a scan left out because of their suffix, and a warning about all others.

    The note continues a sentence that counts the images.

    >>> passed_over(Counter({".txt": 2, "same_file": 3}))
    ('; passed over: 2 .txt', 'left out: 3 links to images that are used already (same_file)')
    """
    harmless = {what: count for what, count in passed.items() if what.startswith(".") or what in _HARMLESS}
    note = ", ".join(f"{count} {what}" for what, count in sorted(harmless.items()))
    others = [f"{count} {_WORDS.get(what, what)}" for what, count in sorted(passed.items()) if what not in harmless]
    return f"; passed over: {note}" if note else "", f"left out: {', '.join(others)}" if others else ""
