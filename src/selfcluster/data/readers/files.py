"""Files on disk or on remote storage: find the images below a folder, and read one file without ever blocking.

No Python object is kept per image: names are one buffer, sizes and times are arrays (see `names.py`).
"""

from __future__ import annotations

import heapq
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np

from selfcluster.data import store
from selfcluster.data.kinds import HEADER_BYTES, is_image
from selfcluster.data.listing import IMAGE_SUFFIX_BYTES, Listing, suffix_of
from selfcluster.data.names import Names, NameTable
from selfcluster.data.store import ReadLog, with_retries

_EMPTY = np.empty(0, dtype=np.int64)


class Files:
    """Reads files below a folder by their names."""

    def __init__(self, root: bytes, listing: Listing) -> None:
        self.root, self._listing = root, listing

    def read(self, i: int, log: ReadLog) -> bytes:
        """The bytes of file i."""
        location = store.join(self.root, self._listing.names.raw(i))
        data, info = with_retries(lambda: store.read(location), log)
        if (info.size, info.mtime_ns) != (self._listing.sizes[i], self._listing.mtimes[i]):
            log.note_change(i)
        return data

    def take(self, rows: np.ndarray) -> Files:
        """The reader of a subset."""
        return Files(self.root, self._listing.take(rows))

    def storage_order(self) -> np.ndarray:
        """(N,) the rows as they are: a file system has no better order than the names."""
        return np.arange(len(self._listing.names))


def scan(root: bytes, suffixes: tuple[bytes, ...] = IMAGE_SUFFIX_BYTES, each_place: bool = False) -> Listing:
    """Return all files below `root` whose name ends in one of `suffixes`, bytewise sorted by their path below it.

    A file without any suffix counts if its first bytes are those of an image. Symbolic links are followed, each real
    folder once and each real file once (by device and inode; a real path wins over one through a link). FIFOs, devices,
    sockets, broken links and unreadable folders are skipped and named. Names that begin with a dot are passed over.

    Args:
        root: a folder, or the address of one.
        suffixes: in lower case.
        each_place: keep a file in every folder that links to it. Labels from folders need this: a picture that is
            linked into two class folders is a sample of both.
    """
    if store.is_remote(root):
        return _scan_remote(root, suffixes)
    table, numbers = NameTable(), array("q")  # size, mtime, device, inode, through a link: five a file
    listing = Listing(table.finish(), _EMPTY, _EMPTY)
    entered: set[tuple[int, int]] = set()
    folders: list[bytes] = [b""]
    links: list[bytes] = []  # folders behind links wait until all real ones are known, then go in sorted order
    while folders or links:
        through_link = not folders
        folder = heapq.heappop(links) if through_link else folders.pop()
        for name, status, is_link in _entries(root, folder, entered, listing):
            if stat.S_ISDIR(status.st_mode):
                if is_link or through_link:
                    heapq.heappush(links, name)
                else:
                    folders.append(name)
            elif not _is_wanted(root, name, status, suffixes):
                listing.pass_over(name)
            elif not stat.S_ISREG(status.st_mode):
                listing.skip(name, "not_regular")
            else:
                table.append(name)
                numbers.extend(
                    (
                        status.st_size,
                        status.st_mtime_ns,
                        _signed(status.st_dev),
                        _signed(status.st_ino),
                        is_link or through_link,
                    )
                )
    return _sorted_once(table.finish(), np.array(numbers, dtype=np.int64).reshape(-1, 5), listing, each_place)


def _is_wanted(root: bytes, name: bytes, status: os.stat_result, suffixes: tuple[bytes, ...]) -> bool:
    if name.lower().endswith(suffixes):
        return True
    if suffix_of(name) or suffixes is not IMAGE_SUFFIX_BYTES or not stat.S_ISREG(status.st_mode):
        return False
    try:
        return is_image(store.read(os.path.join(root, name), 0, HEADER_BYTES)[0])
    except OSError:
        return False


def _scan_remote(root: bytes, suffixes: tuple[bytes, ...]) -> Listing:
    table, numbers = NameTable(), array("q")
    listing = Listing(table.finish(), _EMPTY, _EMPTY)
    for name, info in store.list_files(root):
        if any(part.startswith(b".") for part in name.split(b"/")):
            listing.passed["hidden"] += 1
        elif not name.lower().endswith(suffixes):
            listing.pass_over(name)
        else:
            table.append(name)
            numbers.extend(info)
    names = table.finish()
    order = names.order()
    listing.names = names.take(order)
    listing.sizes, listing.mtimes = np.array(numbers, dtype=np.int64).reshape(-1, 2)[order].T
    return listing


def _entries(
    root: bytes, folder: bytes, entered: set[tuple[int, int]], listing: Listing
) -> Iterator[tuple[bytes, os.stat_result, bool]]:
    """Yield (name below root, status, whether it is a link) for each entry of a folder, unless it was visited."""
    path = os.path.join(root, folder) if folder else root
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in entered:
            return  # a loop, or a second way to a visited folder
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    listing.passed["hidden"] += 1
                    continue
                name = folder + b"/" + entry.name if folder else entry.name
                try:
                    yield name, entry.stat(), entry.is_symlink()
                except OSError as error:
                    listing.skip(name, "broken_link" if entry.is_symlink() else store.bad_image(error).reason)
    except OSError as error:
        if not folder:
            raise
        listing.skip(folder, f"folder {store.bad_image(error).reason}")


def _sorted_once(names: Names, numbers: np.ndarray, listing: Listing, each_place: bool) -> Listing:
    order = names.order()
    numbers = numbers[order]
    keep = np.ones(len(order), dtype=bool)
    if not each_place:
        position = np.arange(len(order))
        by_file = np.lexsort((position, numbers[:, 4], numbers[:, 3], numbers[:, 2]))  # device, inode, real path first
        keys = numbers[by_file, 2:4]
        again = np.zeros(len(order), dtype=bool)
        again[1:] = (keys[1:] == keys[:-1]).all(axis=1) & (keys[1:, 1] != 0)  # inode 0: the file system has none
        keep[by_file[again]] = False
    repeated = order[~keep]
    for i in repeated[:1000]:
        listing.skip(names.raw(int(i)), "same_file")
    listing.passed["same_file"] = len(repeated)
    listing.names, listing.sizes, listing.mtimes = names.take(order[keep]), numbers[keep, 0], numbers[keep, 1]
    listing.passed += Counter()  # drops the reasons that did not occur
    return listing


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
