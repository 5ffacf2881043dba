"""A folder of tar files as one set of images: an index made once, then one `pread` an image.

Members are only read, never unpacked. Their names are opaque ids `shard.tar/member`, so `../x` or `/etc/x` is just
a name. Links and other special members are skipped; hidden members (such as the `._` twins that macOS adds) are passed
over, as hidden files in folders are. A cut or damaged tar is an error that says where: the standard library reads one
that ends at a member's edge, or has a damaged header in the middle, as a complete shorter archive.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from typing import BinaryIO

import numpy as np

from selfcluster.data import store
from selfcluster.data.errors import BadImage, DataError
from selfcluster.data.kinds import HEADER_BYTES, is_image, recognize
from selfcluster.data.listing import IMAGE_SUFFIX_BYTES, Listing, suffix_of
from selfcluster.data.names import Names, NameTable, to_id
from selfcluster.data.store import ReadLog, with_retries

_BLOCK = 512
_PACKED = ("gzip", "zip", "7-Zip", "bzip2", "xz", "Zstandard", "RAR")


class Tars:
    """Where each image's bytes lie: shard number, offset and size, three arrays."""

    def __init__(self, root: bytes, shards: Names, where: np.ndarray, mtimes: np.ndarray) -> None:
        self.root, self._shards = root, shards
        self._where = where  # (N, 3) int64: shard, offset, size
        self._mtimes = mtimes  # (shards,) ns

    def read(self, i: int, log: ReadLog) -> bytes:
        """Return image i's bytes.

        Raises:
            BadImage: vanished, truncated, read_error, ...
        """
        shard, offset, size = (int(x) for x in self._where[i])
        location = store.join(self.root, self._shards.raw(shard))
        data, info = with_retries(lambda: store.read(location, offset, size), log)
        if info.mtime_ns != self._mtimes[shard]:
            log.note_change(i)
        if len(data) < size:
            raise BadImage("truncated", f"{self._shards[shard]} ends {size - len(data)} bytes early")
        return data

    def take(self, rows: np.ndarray) -> Tars:
        """Return the reader of a subset."""
        return Tars(self.root, self._shards, self._where[rows], self._mtimes)

    def storage_order(self) -> np.ndarray:
        """Return (N,) the rows in the order in which they lie on disk."""
        return np.lexsort((self._where[:, 1], self._where[:, 0]))


def index_tars(root: bytes, shards: Listing) -> tuple[Listing, Tars]:
    """Index every tar by walking its headers.

    Args:
        root: the folder.
        shards: the tar files below it.

    Returns:
        the images, bytewise sorted by id, and their reader.

    Raises:
        DataError: a tar is cut or damaged (names the shard, the member and the byte), or holds a member twice.
    """
    listing = Listing(Names.of([]), np.empty(0), np.empty(0), shards.skipped, shards.passed)
    table, numbers = NameTable(), array("q")
    for shard in range(len(shards.names)):
        _walk(root, shards.names.raw(shard), shard, table, numbers, listing)
    where = np.array(numbers, dtype=np.int64).reshape(-1, 3)  # shard, offset, size
    names = table.finish()
    order = names.order()
    listing.names, where = names.take(order), where[order]
    for i in range(1, len(order)):
        if listing.names.raw(i) == listing.names.raw(i - 1):
            raise DataError(f"member {listing.names[i]!r} occurs twice; each image needs a different name")
    listing.sizes, listing.mtimes = where[:, 2], shards.mtimes[where[:, 0]]
    return listing, Tars(root, shards.names, where, shards.mtimes)


def _walk(root: bytes, shard_name: bytes, shard: int, table: NameTable, numbers: array[int], listing: Listing) -> None:
    location = store.join(root, shard_name)
    members = 0
    # errors="surrogateescape" is tarfile's default: the member's own bytes come back on encoding
    with store.open_file(location) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        kind = recognize(file.read(HEADER_BYTES)).name
        if kind in _PACKED:
            raise DataError(f"{to_id(shard_name)} is packed ({kind}): unpack it into a folder or into a plain .tar")
        file.seek(0)
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
                    if os.path.basename(name).startswith(b"."):
                        listing.passed["hidden"] += 1
                    elif not _is_wanted(file, name, member):
                        listing.pass_over(name)
                    elif not member.isreg() or member.issparse():
                        listing.skip(name, "not_regular")
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


def _is_wanted(file: BinaryIO, name: bytes, member: tarfile.TarInfo) -> bool:
    """Whether a member is an image: by its suffix, or by its first bytes where it has none."""
    if name.lower().endswith(IMAGE_SUFFIX_BYTES):
        return True
    if suffix_of(name) or not member.isreg() or member.issparse():
        return False
    place = file.tell()
    file.seek(member.offset_data)
    head = file.read(min(member.size, HEADER_BYTES))
    file.seek(place)
    return is_image(head)


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
