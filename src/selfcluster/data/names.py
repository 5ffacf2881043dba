r"""Names of images in one buffer of bytes with an offset each: a million paths are two arrays, not a million objects.

A name is bytes, as the file system has it. Its id is text: bytes outside UTF-8 are written `\xNN`, and so is a
backslash before an x (`\x5cx`). Different names have different ids, and every id can be printed and stored.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


def to_id(name: bytes) -> str:
    r"""Return the id of a name.

    >>> print(to_id(b"caf\xe9.jpg"))
    caf\xe9.jpg
    """
    return name.replace(b"\\x", b"\\x5cx").decode("utf-8", "backslashreplace")


def to_name(id: str) -> bytes:
    """Return the name that an id was made from."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda hit: bytes([int(hit[1], 16)]), id.encode("utf-8", "surrogateescape"))


class Names(Sequence[str]):
    """A sequence of ids that stores bytes: `names[i]` is text, `names.raw(i)` bytes, a slice is a list of text."""

    def __init__(self, buffer: bytes | bytearray, offsets: np.ndarray) -> None:
        self.buffer = bytes(buffer)
        self.offsets = np.asarray(offsets, dtype=np.int64)  # (N + 1,)

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Names:
        """Return the names as one buffer."""
        table = NameTable()
        for name in names:
            table.append(name)
        return table.finish()

    def raw(self, i: int) -> bytes:
        """Return the bytes of name i."""
        i = range(len(self))[i]
        return self.buffer[self.offsets[i] : self.offsets[i + 1]]

    def take(self, rows: np.ndarray) -> Names:
        """Return the names at `rows`, in that order."""
        return Names.of(self.raw(int(i)) for i in rows)

    def order(self) -> np.ndarray:
        """Return (N,) int64: the positions in bytewise order of the names; equal names keep their order."""
        return np.array(sorted(range(len(self)), key=self.raw), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [to_id(self.raw(i)) for i in range(*index.indices(len(self)))]
        return to_id(self.raw(index))

    def __iter__(self) -> Iterator[str]:
        return (to_id(self.raw(i)) for i in range(len(self)))


class NameTable:
    """Names that are collected one by one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lengths = array("q")

    def append(self, name: bytes) -> None:
        """Add one name."""
        self._buffer += name
        self._lengths.append(len(name))

    def __len__(self) -> int:
        return len(self._lengths)

    def finish(self) -> Names:
        """Return the names added so far."""
        return Names(
            self._buffer, np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(self._lengths, dtype=np.int64))])
        )
