"""The contract of a reader, and the table of readers that `open_source` asks.

A reader from another package registers itself with `register_reader`, or through an entry point in the group
`selfcluster.readers` whose object is an `Opener`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from selfcluster.data.listing import Listing
from selfcluster.data.store import ReadLog

GROUP = "selfcluster.readers"


class Reader(Protocol):
    """Reads image i of a set: the bytes of an image file, or (H, W, 1 or 3) uint8 pixels."""

    def read(self, i: int, log: ReadLog) -> bytes | np.ndarray:
        """Return image i; raises BadImage where it cannot be read."""
        ...

    def take(self, rows: np.ndarray) -> Reader:
        """Return the reader of a subset."""
        ...

    def storage_order(self) -> np.ndarray:
        """Return (N,) the rows in the order in which reading is fastest."""
        ...


@dataclass(frozen=True)
class Opened:
    """A set of images that an opener found. `texts`: the requested column, one text an image, or None."""

    reader: Reader
    listing: Listing
    kind: str
    texts: list[str] | None = None


class Opener(Protocol):
    """Opens a location as a set of images where it recognizes it."""

    def matches(self, location: str) -> bool:
        """Return whether this opener reads the location; must be fast, and must not raise."""
        ...

    def open(self, location: str, column: str | None) -> Opened:
        """Return the images; `column` names the labels that the user asked for, in sources that have columns."""
        ...


_openers: dict[str, Opener] = {}


def register_reader(name: str, opener: Opener) -> None:
    """Make `open_source` ask `opener` before its own readers. A second opener of the same name replaces the first.

    Args:
        name: what the opener reads, such as "lmdb".
        opener: an object with `matches` and `open`.
    """
    _openers[name] = opener


def find_opener(location: str) -> Opener | None:
    """Return the first registered opener that matches the location, entry points included."""
    for opener in [*_openers.values(), *_installed()]:
        if opener.matches(location):
            return opener
    return None


@functools.cache
def _installed() -> list[Opener]:
    from importlib.metadata import entry_points

    return [point.load() for point in entry_points(group=GROUP)]
