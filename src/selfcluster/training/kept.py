"""Store features on the disk during a pass over all images, so that an interrupted pass can continue.

Every half minute the new rows are written to a new file. It names its batches, and a key of what the features depend
on. A file with another key, or without the file before it, is removed, and its features are computed again.
n images so far, F features.
"""

from __future__ import annotations

import io
import logging
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfcluster.files import message_of, write_atomically

log = logging.getLogger("selfcluster.training")


class KeptRows:
    """The rows of the first `batches` batches of a pass: `index` (n,) int64, the images, and `rows` (n, F) float32.

    Args:
        folder: for the files; made when the first file is written.
        key: hash of what the features depend on. Files with another key are removed.
        every: seconds between two files.
    """

    def __init__(self, folder: Path, key: str, every: float = 30.0) -> None:
        self._folder, self._key, self._every = folder, key, every
        self.batches = 0
        self.index, self.rows = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
        self._new: list[tuple[Tensor, Tensor]] = []
        self._written, self._works = time.monotonic(), True
        self._read()
        self._end = self.batches

    def add(self, index: Tensor, rows: Tensor) -> None:
        """Add the rows (b, F) of the next batch, which may be empty; they are written after at most `every` seconds."""
        self._new.append((index.cpu(), rows.cpu()))
        self._end += 1
        if time.monotonic() - self._written >= self._every:
            self.write()

    def write(self) -> None:
        """Write the rows that are not on the disk yet. If the disk is full, warn once and store no further rows."""
        full = [(index, rows) for index, rows in self._new if len(index)]
        if full and self._works:
            content = io.BytesIO()
            index, rows = (torch.cat(part).numpy() for part in zip(*full, strict=True))
            np.savez(content, key=np.array(self._key), start=self.batches, end=self._end, index=index, rows=rows)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self._folder / f"{self._end:010}.npz", content.getvalue())
            except OSError as error:
                self._works = False
                log.warning(
                    "cannot save partial results (%s). Embedding goes on; if it is interrupted, it starts from the "
                    "beginning",
                    message_of(error),
                )
        self._new, self.batches, self._written = [], self._end, time.monotonic()

    def remove(self) -> None:
        """Remove the files: the pass is done and its result is stored."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> None:
        index, rows = [], []
        for path in sorted(self._folder.glob("*.npz")):
            try:
                with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as part:
                    if str(part["key"]) != self._key or int(part["start"]) != self.batches:
                        raise ValueError("of another pass")
                    index.append(torch.from_numpy(part["index"]))
                    rows.append(torch.from_numpy(part["rows"]))
                    self.batches = int(part["end"])
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                path.unlink()
        if index:
            self.index, self.rows = torch.cat(index), torch.cat(rows)
