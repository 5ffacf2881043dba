"""Read bytes and list files, on this machine or on remote storage; nothing else in the package opens image files.

A location is bytes: a path, or an address such as `s3://bucket/folder`, which goes to fsspec. An address is never
resolved or normalized as a path. `read` returns a file's bytes, `list_files` the files below a folder; both describe a
file by its size and modification time.
"""

from __future__ import annotations

import datetime
import errno
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from selfcluster.data.errors import BadImage, DataError
from selfcluster.files import reason_of

MAX_FILE_BYTES = 1 << 30  # a larger image is a mistake, and would fill the memory of every reading thread

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
_ADDRESS = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]+://")
# fsspec would run a command, or read an address inside an address
_REFUSED = ("pipe", "shell", "cmd")

T = TypeVar("T")


class Info(NamedTuple):
    """What identifies a version of a file; -1 where the store does not know."""

    size: int
    mtime_ns: int


class ReadLog:
    """What reading met without failing: retries, and files that changed since the scan. Safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.retries = 0
        self.changed: set[int] = set()

    def retried(self) -> None:
        """Count one more retry."""
        with self._lock:
            self.retries += 1

    def note_change(self, i: int) -> None:
        """Record that image `i` has another size or time than when it was scanned."""
        with self._lock:
            self.changed.add(i)


def is_remote(location: bytes) -> bool:
    """Whether the location is an address (`s3://...`) rather than a path.

    >>> is_remote(b"s3://bucket/photos"), is_remote(b"C:/photos")
    (True, False)
    """
    return _ADDRESS.match(location) is not None


def absolute(location: bytes) -> bytes:
    """The location, independent of the current folder; an address is returned as it is."""
    return location if is_remote(location) else os.path.abspath(location)


def join(folder: bytes, name: bytes) -> bytes:
    """The location of `name` in `folder`; an absolute path or an address stays itself."""
    if is_remote(name):
        return name
    return folder.rstrip(b"/") + b"/" + name if is_remote(folder) else os.path.join(folder, name)


def parent(location: bytes) -> bytes:
    """The folder that holds the location."""
    return location.rstrip(b"/").rpartition(b"/")[0] if is_remote(location) else os.path.dirname(location)


def read(location: bytes, offset: int = 0, size: int | None = None) -> tuple[bytes, Info]:
    """Return a regular file's bytes (or `size` of them from `offset`), and what identifies this version of it.

    Raises:
        BadImage: a FIFO or another special file (it never blocks on one), or a file above a gigabyte.
        OSError: as the operating system or the remote store says.
    """
    if is_remote(location):
        return _read_remote(location, offset, size)
    # O_NONBLOCK: opening a FIFO to read would otherwise wait for a writer
    handle = os.open(location, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb", buffering=0) as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not_regular", "not a regular file")
        _check_bytes(status.st_size if size is None else size)
        data = file.readall() if size is None else os.pread(handle, size, offset)
        return data, Info(status.st_size, status.st_mtime_ns)


def list_files(location: bytes) -> Iterator[tuple[bytes, Info]]:
    """Yield every file below a remote folder, as (name below it, info). Local folders are walked by `readers/files`."""
    system, path = _remote(location)
    root = path.rstrip("/")
    for name, details in sorted(system.find(root, detail=True).items()):
        yield name.removeprefix(root).lstrip("/").encode("utf-8", "surrogateescape"), _remote_info(details)


def open_file(location: bytes) -> BinaryIO:
    """Open a file for reading, with `seek`."""
    if not is_remote(location):
        return open(location, "rb")
    system, path = _remote(location)
    return cast(BinaryIO, system.open(path, "rb"))


def info(location: bytes) -> tuple[Info, bool, bool]:
    """Return (info, whether it is a folder, whether it is a regular file); raises OSError where nothing exists."""
    if is_remote(location):
        system, path = _remote(location)
        details = system.info(path)
        return _remote_info(details), details["type"] == "directory", details["type"] == "file"
    status = os.stat(location)
    kind = status.st_mode
    return Info(status.st_size, status.st_mtime_ns), stat.S_ISDIR(kind), stat.S_ISREG(kind)


def with_retries(read: Callable[[], T], log: ReadLog | None = None) -> T:
    """Call `read`; try again a few times after an error that may pass, then raise BadImage with the reason."""
    for wait in (*_WAITS, None):
        try:
            return read()
        except OSError as error:
            # a remote store's errors carry no number: they may pass, unless the file is missing or forbidden
            passing = error.errno in _TRANSIENT or (
                error.errno is None and not isinstance(error, FileNotFoundError | PermissionError)
            )
            if not passing or wait is None:
                raise bad_image(error) from error
            if log is not None:
                log.retried()
            time.sleep(wait)
        except MemoryError as error:
            raise BadImage("no_memory", "not enough memory for its bytes") from error
        except ValueError as error:  # a name that no file can have, such as one with a zero byte
            raise BadImage("vanished", str(error)) from error
    raise AssertionError("the last try returns or raises")


def bad_image(error: OSError) -> BadImage:
    """The reason that an error of the operating system stands for."""
    reasons = {
        errno.ENOENT: "vanished",
        errno.ENOTDIR: "vanished",
        errno.EISDIR: "not_regular",
        errno.ENXIO: "not_regular",
        errno.EACCES: "no_permission",
        errno.EPERM: "no_permission",
    }
    by_type = "vanished" if isinstance(error, FileNotFoundError) else "read_error"
    return BadImage(reasons.get(error.errno or 0, by_type), reason_of(error))


def _read_remote(location: bytes, offset: int, size: int | None) -> tuple[bytes, Info]:
    system, path = _remote(location)
    details = _remote_info(system.info(path))
    _check_bytes(details.size if size is None else size)
    if size is None:
        return system.cat_file(path), details
    return system.cat_file(path, start=offset, end=offset + size), details


def _remote(location: bytes) -> tuple[Any, str]:
    """The fsspec file system and the path in it. fsspec keeps one file system an address and its options."""
    text = location.decode("utf-8", "surrogateescape")
    protocol = text.partition("://")[0]
    if protocol in _REFUSED or "::" in text:
        raise DataError(
            f"no data at {text!r}: for safety, selfcluster does not read addresses "
            "that run commands or contain other addresses"
        )
    try:
        import fsspec
    except ImportError as error:
        raise DataError(
            f"{text}: reading remote storage needs fsspec; install it with: pip install 'selfcluster[remote]'"
        ) from error
    try:
        return fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise DataError(f"{text}: {error}") from error


def _remote_info(details: dict[str, Any]) -> Info:
    changed = next((details[key] for key in ("mtime", "LastModified", "last_modified", "created") if key in details), 0)
    if isinstance(changed, datetime.datetime):
        changed = changed.timestamp()
    return Info(int(details.get("size") or 0), int(float(changed) * 1e9) if isinstance(changed, int | float) else 0)


def _check_bytes(count: int) -> None:
    if count > MAX_FILE_BYTES:
        raise BadImage("too_large", f"{count:,} bytes, more than {MAX_FILE_BYTES:,}")
