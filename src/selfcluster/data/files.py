"""Files on disk: find the images below a folder, read a list of paths, and read one file without ever blocking.

Nothing here keeps a Python object per image: names are one buffer, sizes and times are arrays (see `names.py`).
"""

from __future__ import annotations

import csv
import errno
import heapq
import os
import stat
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from selfcluster.data.decode import BadImage
from selfcluster.data.names import Names, NameTable, to_id

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_IMAGES = tuple(s.encode() for s in IMAGE_SUFFIXES)
MAX_FILE_BYTES = 1 << 30  # an image of a gigabyte is a mistake, and would fill the memory of every worker
_LISTED = 1000  # skipped files named one by one; the rest are only counted

# errors that pass: network file systems, a full table of open files, an interrupted call
_TRANSIENT = {
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EINTR,
    errno.ETIMEDOUT,
    errno.EBUSY,
    errno.EMFILE,
    errno.ENFILE,
}
_WAITS = (0.05, 0.2, 0.8)  # seconds before the second, third and fourth try

T = TypeVar("T")


class DataError(ValueError):
    """Data that cannot be used as asked; the message names it and the way out."""


@dataclass
class Listing:
    """What a scan found: N names with their sizes and modification times (ns), and what it passed over."""

    names: Names
    sizes: np.ndarray  # (N,) int64, -1 where the file was missing
    mtimes: np.ndarray  # (N,) int64
    skipped: list[tuple[str, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)  # reason or suffix -> how many

    def skip(self, name: bytes, reason: str) -> None:
        """Count a file that is not used, and name it while the list is short."""
        self.passed[reason] += 1
        if len(self.skipped) < _LISTED:
            self.skipped.append((to_id(name), reason))


class ReadLog:
    """What reading met without failing: retries, and files that changed since the scan. Safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.retries = 0
        self.changed: set[int] = set()

    def retried(self) -> None:
        """One more retry."""
        with self._lock:
            self.retries += 1

    def note_change(self, i: int) -> None:
        """Image `i` has another size or time than when it was scanned."""
        with self._lock:
            self.changed.add(i)


def with_retries(read: Callable[[], T], log: ReadLog | None = None) -> T:
    """Call `read`; try again a few times after an error that may pass, then raise BadImage with the reason."""
    for wait in (*_WAITS, None):
        try:
            return read()
        except OSError as error:
            if error.errno not in _TRANSIENT or wait is None:
                raise _bad(error) from error
            if log is not None:
                log.retried()
            time.sleep(wait)
        except MemoryError as error:
            raise BadImage("read_error", "not enough memory for its bytes") from error
        except ValueError as error:  # a name that no file can have, such as one with a zero byte
            raise BadImage("vanished", str(error)) from error
    raise AssertionError("the last try returns or raises")


def read_file(path: bytes, offset: int = 0, size: int | None = None) -> tuple[bytes, os.stat_result]:
    """A regular file's bytes (or `size` of them from `offset`) and its status. A FIFO raises, it never blocks."""
    # O_NONBLOCK: opening a FIFO to read would otherwise wait for a writer
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb", buffering=0) as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not_regular", "not a regular file")
        if (status.st_size if size is None else size) > MAX_FILE_BYTES:
            raise BadImage("too_large", f"{status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        if size is None:
            return file.readall(), status
        return os.pread(handle, size, offset), status


def scan(root: bytes, suffixes: tuple[bytes, ...] = _IMAGES) -> Listing:
    """All files below `root` whose name ends in one of `suffixes`, bytewise sorted by their path below it.

    Symbolic links are followed, each real folder once and each real file once (by device and inode; a real path wins
    over one through a link). FIFOs, devices, sockets, broken links and unreadable folders are skipped and named. Names
    that begin with a dot are passed over.
    """
    table, numbers = NameTable(), array("q")  # size, mtime, device, inode, through a link: five a file
    found = Listing(table.finish(), np.empty(0), np.empty(0))
    entered: set[tuple[int, int]] = set()
    folders: list[bytes] = [b""]
    links: list[bytes] = []  # folders behind links wait until all real ones are known, then go in sorted order
    while folders or links:
        through_link = not folders
        folder = heapq.heappop(links) if through_link else folders.pop()
        for name, status, is_link in _entries(root, folder, entered, found):
            if stat.S_ISDIR(status.st_mode):
                if is_link or through_link:
                    heapq.heappush(links, name)
                else:
                    folders.append(name)
            elif not name.lower().endswith(suffixes):
                found.passed[os.path.splitext(name)[1].lower().decode("ascii", "replace") or "no suffix"] += 1
            elif not stat.S_ISREG(status.st_mode):
                found.skip(name, "not_regular")
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
    return _sorted_once(table.finish(), np.array(numbers, dtype=np.int64).reshape(-1, 5), found)


def read_list(path: str, column: str | None = None) -> tuple[Listing, list[str] | None]:
    """The images that a list names, and the text of `column` for each.

    A .txt has one path a line. A .csv or .parquet has a column `path`, or its first column is taken; a .csv's first row
    is its header unless its first cell names an existing file. Paths are relative to the list's folder, or absolute.

    Raises:
        DataError: no path in the list, a path twice, no such column.
    """
    folder = os.path.dirname(os.path.abspath(os.fsencode(path)))
    rows = {".txt": _text_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[os.path.splitext(path)[1].lower()]
    table, numbers, labels = NameTable(), array("q"), [] if column else None
    for name, label in rows(path, folder, column):
        table.append(name)
        if labels is not None:
            labels.append(label)
        try:
            status = os.stat(os.path.join(folder, name))
            numbers.extend((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):  # missing now; reading it says why
            numbers.extend((-1, -1))
    names = table.finish()
    if not len(names):
        raise DataError(f"{path} names no images")
    order = names.order()
    names = names.take(order)
    for i in range(1, len(names)):
        if names.raw(i) == names.raw(i - 1):
            raise DataError(
                f"{path} names {names[i]!r} twice; every image has one row, and its file is in the column `path`"
            )
    sizes, mtimes = np.array(numbers, dtype=np.int64).reshape(-1, 2)[order].T
    if (sizes < 0).all():
        raise DataError(
            f"none of the {len(names):,} files of {path} exists, e.g. {names[0]!r}; "
            f"paths are relative to {to_id(folder)}"
        )
    return Listing(names, sizes, mtimes), labels and [labels[i] for i in order]


def _entries(
    root: bytes, folder: bytes, entered: set[tuple[int, int]], found: Listing
) -> Iterator[tuple[bytes, os.stat_result, bool]]:
    path = os.path.join(root, folder) if folder else root
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in entered:
            return  # a loop, or a second way to a folder that has been seen
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    found.passed["hidden"] += 1
                    continue
                name = folder + b"/" + entry.name if folder else entry.name
                try:
                    yield name, entry.stat(), entry.is_symlink()
                except OSError as error:
                    found.skip(name, "broken_link" if entry.is_symlink() else _bad(error).reason)
    except OSError as error:
        if not folder:
            raise
        found.skip(folder, f"folder {_bad(error).reason}")


def _sorted_once(names: Names, numbers: np.ndarray, found: Listing) -> Listing:
    order = names.order()
    numbers = numbers[order]
    position = np.arange(len(order))
    by_file = np.lexsort((position, numbers[:, 4], numbers[:, 3], numbers[:, 2]))  # device, inode, real path first
    keys = numbers[by_file, 2:4]
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (keys[1:] == keys[:-1]).all(axis=1) & (keys[1:, 1] != 0)  # inode 0: the file system has none
    keep = np.ones(len(order), dtype=bool)
    keep[by_file[again]] = False
    for i in order[~keep][:_LISTED]:
        found.skip(names.raw(int(i)), "same_file")
    found.passed["same_file"] = int((~keep).sum())
    found.names, found.sizes, found.mtimes = names.take(order[keep]), numbers[keep, 0], numbers[keep, 1]
    found.passed += Counter()  # drops the reasons that did not occur
    return found


def _text_rows(path: str, folder: bytes, column: str | None) -> Iterator[tuple[bytes, str]]:
    if column:
        raise DataError(f"{path} is a plain list of paths and has no column {column!r}; use a .csv or .parquet")
    with open(path, "rb") as file:
        for line in file:
            if name := line.rstrip(b"\r\n"):
                yield name, ""


def _csv_rows(path: str, folder: bytes, column: str | None) -> Iterator[tuple[bytes, str]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        first = next(rows, [])
        headed = "path" in first or not (first and os.path.isfile(os.path.join(folder, os.fsencode(first[0]))))
        where, label = _columns(path, first if headed else [], column)
        for row in rows if headed else (first, *rows):
            if len(row) > max(where, label or 0):
                yield row[where].encode("utf-8", "surrogateescape"), row[label] if label is not None else ""
            elif row:
                raise DataError(
                    f"{path} line {rows.line_num}: {len(row)} columns, {max(where, label or 0) + 1} are needed"
                )


def _parquet_rows(path: str, folder: bytes, column: str | None) -> Iterator[tuple[bytes, str]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        header = file.schema_arrow.names
        where, label = _columns(path, header, column)
        wanted = [header[where]] + ([header[label]] if label is not None else [])
        for batch in file.iter_batches(columns=wanted):
            names = batch.column(header[where]).to_pylist()
            labels = batch.column(header[label]).to_pylist() if label is not None else [""] * len(names)
            for name, text in zip(names, labels):
                yield name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape"), str(text)


def _columns(path: str, header: list[str], column: str | None) -> tuple[int, int | None]:
    where = header.index("path") if "path" in header else 0
    if column is None:
        return where, None
    if column not in header:
        raise DataError(f"{path} has no column {column!r}; its columns are {', '.join(header) or 'unnamed'}")
    return where, header.index(column)


def _bad(error: OSError) -> BadImage:
    reasons = {
        errno.ENOENT: "vanished",
        errno.ENOTDIR: "vanished",
        errno.EISDIR: "not_regular",
        errno.ENXIO: "not_regular",
        errno.EACCES: "no_permission",
        errno.EPERM: "no_permission",
    }
    return BadImage(reasons.get(error.errno or 0, "read_error"), error.strerror or str(error))


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
