"""Files that are written whole: a reader sees the complete new file or the old one, never a part."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from selfcluster.faults import fault_point

log = logging.getLogger("selfcluster.files")

Content = str | bytes | Callable[[Path], object]

COPY_RUN = "copy the run to a folder that can be written to"  # where a command has no flag for another place
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NUMBER = re.compile(r"\[errno -?\d+\] ", re.IGNORECASE)
_TEMPORARY = re.compile(r"\.selfcluster-(\d+)-.*")


def write_atomically(path: Path, content: Content, size: int | None = None) -> None:
    """Write under a temporary name in the same folder, flush to the disk, rename.

    Args:
        path: in a folder that exists.
        content: text (as UTF-8), bytes, or a function that writes the file at the path it is given. If that fails,
            nothing of it stays.
        size: about how many bytes a function writes, for the message when the disk is full.

    Raises:
        OSError: the file cannot be written. A full disk is reported with the bytes needed and free.

    >>> write_atomically(Path("status.json"), "{}")  # doctest: +SKIP
    """
    write_together({path: content}, size)


def write_together(contents: Mapping[Path, Content], size: int | None = None) -> None:
    """Write several files that belong together: all are on the disk before the first gets its name.

    A kill between two renames leaves a new file beside an old one, so one of them must name the other's hash.
    """
    temporaries = {path: _temporary(path) for path in contents}
    try:
        for path, content in contents.items():
            try:
                _write(temporaries[path], content)
            except OSError as error:
                raise unwritten(path, error, _size(content, size)) from error
            fault_point("files.before_rename")
        for path, temporary in temporaries.items():
            try:
                temporary.replace(path)
            except OSError as error:
                raise unwritten(path, error, _size(contents[path], size)) from error
            fault_point("files.after_rename")
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise


class PatientLog:
    """A file that only grows. Entries that a full disk does not take wait in memory until there is room.

    The first failure is a warning, and none is an error.

    Args:
        path: of the file; its folder is made where it is missing.
        consequence: what the failure means for the program, in words, for the warning.
    """

    def __init__(self, path: Path, consequence: str) -> None:
        self.path = path
        self.waiting: list[bytes] = []
        self._consequence, self._has_warned = consequence, False

    def add(self, *entries: bytes) -> None:
        """Append entries, after those that wait."""
        self.waiting += entries
        self.flush()

    def flush(self) -> None:
        """Try to write what waits."""
        if not self.waiting:
            return
        size: int | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                size = file.tell()
                file.write(b"".join(self.waiting))
        except OSError as error:
            if size is not None:
                with suppress(OSError):
                    os.truncate(self.path, size)  # or the next entry would be glued to this one's beginning
            if not self._has_warned:
                self._has_warned = True
                warn_unwritten(self.path, error, self._consequence)
            return
        self.waiting.clear()


def warn_unwritten(path: Path, error: OSError, consequence: str) -> None:
    """Log a warning that names the file, the error, the bytes free and what follows."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # what `unwritten` was made from
    free = f"{free_bytes(path.parent):,}"
    log.warning("%s cannot be written (%s, %s bytes are free); %s", path, reason_of(cause), free, consequence)


def unwritten(path: Path, error: OSError, needed: int | None = None) -> OSError:
    """Return an error that names the file which could not be written, not its temporary name.

    If the disk is full, the message also gives the bytes needed and the bytes free.
    """
    if error.errno is None:
        return error
    if error.errno not in _FULL:
        return OSError(error.errno, reason_of(error), str(path))
    needs = "" if needed is None else f"about {needed:,} bytes are needed and "
    message = f"{path} cannot be written, the disk is full: {needs}{free_bytes(path.parent):,} are free"
    return OSError(error.errno, message + ". Free some space or write to another disk.")


def message_of(error: BaseException) -> str:
    """Return an exception's message. For an error of the operating system: the reason and the file, without its number.

    >>> message_of(PermissionError(13, "Permission denied", "photos/a.jpg"))
    'Permission denied: photos/a.jpg'
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{reason_of(error)}: {os.fsdecode(error.filename)}"
    text = error.strerror if isinstance(error, OSError) else None
    return _NUMBER.sub("", text or str(error)) or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return an exception's message in one line, without the file and the number of an error of the operating system.

    >>> reason_of(PermissionError(13, "Permission denied", "photos/a.jpg"))
    'Permission denied'
    """
    text = error.strerror if isinstance(error, OSError) else None
    return " ".join(_NUMBER.sub("", text or str(error)).split()) or type(error).__name__


def free_bytes(folder: Path) -> int:
    """Return how many bytes may still be written to a folder's disk, the folder made or not."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def temporaries(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder that were begun and not finished: by a killed process, or one that still works."""
    return (path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name))


def remove_temporaries(folder: Path) -> None:
    """Remove the files that killed processes left unfinished in a folder and in the folders directly below it."""
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
        for path in list(temporaries(place)):
            match = _TEMPORARY.fullmatch(path.name)
            if match is not None and not _is_alive(int(match[1])):
                path.unlink(missing_ok=True)


def make_writable(folder: Path, advice: str = "choose another --out") -> None:
    """Make the folder if it is missing, and write a file in it as a trial, before long work whose result goes there.

    Args:
        folder: of the result.
        advice: what the user can do if that fails, for the message.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(folder / "probe")
        _write(probe, "x")
        probe.unlink()
    except OSError as error:
        free = f", {free_bytes(folder):,} bytes are free" if error.errno in _FULL else ""
        raise ValueError(f"{folder}: cannot be written to ({reason_of(error)}{free}); {advice}") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".selfcluster-{os.getpid()}-{path.name}")


def _write(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # before the rename, or a crash leaves the new name on an empty file


def _size(content: Content, size: int | None) -> int | None:
    if callable(content):
        return size
    return len(content.encode() if isinstance(content, str) else content)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # an earlier process of that number, since this one holds nothing open here
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
