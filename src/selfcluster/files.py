"""Files that are written whole: a reader sees the complete new file or the old one, never a part."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write under a temporary name in the same folder, flush to the disk, rename.

    Args:
        path: in a folder that exists.
        content: text (as UTF-8), bytes, or a function that writes the file at the path it is given. If that fails,
            nothing of it stays.

    >>> write_atomically(Path("status.json"), "{}")  # doctest: +SKIP
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # before the rename, or a crash leaves the new name on an empty file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_writable(folder: Path) -> None:
    """Make the folder where it is missing and try to write in it, before work is done whose result goes there.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        write_atomically(probe, "x")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written to ({error}); choose another --out") from error
