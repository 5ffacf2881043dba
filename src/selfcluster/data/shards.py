"""A folder of tar files as one set of images: an index made once, then one `pread` an image.

Members are only ever read, never unpacked: their names are opaque ids `shard.tar/member`, so `../x` or `/etc/x` is just
a name. Links and other special members are skipped. A cut or damaged tar is an error that says where: the standard
library reads one that ends at a member's edge, or has a damaged header in the middle, as a complete shorter archive.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from typing import BinaryIO

import numpy as np

from selfcluster.data.decode import BadImage
from selfcluster.data.files import IMAGE_SUFFIXES, DataError, Listing, ReadLog, read_file, with_retries
from selfcluster.data.names import Names, NameTable, to_id

_IMAGES = tuple(s.encode() for s in IMAGE_SUFFIXES)
_BLOCK = 512


class Tars:
    """Where each image's bytes lie: shard number, offset and size, three arrays."""

    def __init__(self, root: bytes, shards: Names, where: np.ndarray, mtimes: np.ndarray) -> None:
        self.root, self._shards = root, shards
        self._where = where  # (N, 3) int64: shard, offset, size
        self._mtimes = mtimes  # (shards,) ns

    def read(self, i: int, log: ReadLog) -> bytes:
        """Image i's bytes.

        Raises:
            BadImage: vanished, truncated, read_error, ...
        """
        shard, offset, size = (int(x) for x in self._where[i])
        path = os.path.join(self.root, self._shards.raw(shard))
        data, status = with_retries(lambda: read_file(path, offset, size), log)
        if status.st_mtime_ns != self._mtimes[shard]:
            log.note_change(i)
        if len(data) < size:
            raise BadImage("truncated", f"{self._shards[shard]} ends {size - len(data)} bytes early")
        return data

    def take(self, rows: np.ndarray) -> Tars:
        """The reader of a subset."""
        return Tars(self.root, self._shards, self._where[rows], self._mtimes)

    def storage_order(self) -> np.ndarray:
        """(N,) the rows in the order in which they lie on disk."""
        return np.lexsort((self._where[:, 1], self._where[:, 0]))


def index_tars(root: bytes, shards: Listing) -> tuple[Listing, Tars]:
    """Walk every tar's headers.

    Args:
        root: the folder.
        shards: the tar files below it.

    Returns:
        the images, bytewise sorted by id, and their reader.

    Raises:
        DataError: a tar is cut or damaged (names the shard, the member and the byte), or holds a member twice.
    """
    found = Listing(Names.of([]), np.empty(0), np.empty(0), shards.skipped, shards.passed)
    table, numbers = NameTable(), array("q")
    for shard in range(len(shards.names)):
        _walk(root, shards.names.raw(shard), shard, table, numbers, found)
    where = np.array(numbers, dtype=np.int64).reshape(-1, 3)  # shard, offset, size
    names = table.finish()
    order = names.order()
    found.names, where = names.take(order), where[order]
    for i in range(1, len(order)):
        if found.names.raw(i) == found.names.raw(i - 1):
            raise DataError(f"member {found.names[i]!r} occurs twice; every image needs its own name")
    found.sizes, found.mtimes = where[:, 2], shards.mtimes[where[:, 0]]
    return found, Tars(root, shards.names, where, shards.mtimes)


def _walk(root: bytes, shard_name: bytes, shard: int, table: NameTable, numbers: array[int], found: Listing) -> None:
    path = os.path.join(root, shard_name)
    members = 0
    # errors="surrogateescape" is tarfile's default: the member's own bytes come back on encoding
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        offset = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] # or it keeps an object a member
                    offset = member.offset
                    if member.offset_data + member.size > length:
                        raise tarfile.ReadError(f"its {member.size:,} bytes end beyond the file's {length:,}")
                    name = shard_name + b"/" + member.name.encode("utf-8", "surrogateescape")
                    members += 1
                    if not name.lower().endswith(_IMAGES):
                        found.passed[os.path.splitext(name)[1].lower().decode("ascii", "replace") or "no suffix"] += 1
                    elif not member.isreg() or member.issparse():
                        found.skip(name, "not_regular")
                    else:
                        table.append(name)
                        numbers.extend((shard, member.offset_data, member.size))
                    offset = tar.offset
                _check_end(file, tar.offset)
        except tarfile.TarError as error:
            raise DataError(
                f"{to_id(shard_name)}: cut or damaged at member {members}, byte {offset:,}: {error}; "
                f"fetch it again or move it out of {to_id(root)}"
            ) from error


def _check_end(file: BinaryIO, offset: int) -> None:
    """A tar ends with two blocks of zeros and nothing else after them."""
    file.seek(offset)
    tail = file.read(2 * _BLOCK)
    if len(tail) < 2 * _BLOCK:
        raise tarfile.ReadError("the end-of-archive mark is missing")
    while tail:
        if tail.strip(b"\0"):
            raise tarfile.ReadError("neither a valid header nor the end-of-archive mark")
        tail = file.read(1 << 20)
