"""Images that could not be used: one line of JSON each, counted, and the end of the run when there are too many.

The limit is a share of all N images: the run fails when more than max(1, floor(max_bad x N)) are bad, so that one bad
file never ends a run, however small the folder; with max_bad = 0 the first one does.
"""

from __future__ import annotations

import bisect
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np

from selfcluster import distributed
from selfcluster.data.errors import BadImage
from selfcluster.data.names import Names, to_name

Find = tuple[int, str, str]  # row, reason, detail


class TooManyBadImages(RuntimeError):
    """More images are bad than `max_bad` allows."""


class Quarantine:
    """The bad images of one source, known to this rank.

    `path`: the file `{path, reason, detail}` a line, or None to keep no file; images listed in it by an earlier run are
    bad from the start. Rank 0 writes; the other ranks' finds reach it at `sync`, which all ranks call together.
    """

    def __init__(self, ids: Names, path: str | os.PathLike[str] | None, max_bad: float, rank: int) -> None:
        if not 0 <= max_bad <= 1:
            raise ValueError(f"max_bad={max_bad}; a share between 0 and 1 is needed")
        self._ids, self._path, self._rank = ids, Path(path) if path is not None else None, rank
        self._max_bad = max_bad
        self.allowed = max(1, int(max_bad * len(ids))) if max_bad > 0 else 0
        self.bad = np.zeros(len(ids), dtype=bool)
        self.reasons: Counter[str] = Counter()
        self._first: list[str] = []
        self._pending: list[Find] = []
        self._read()

    def __len__(self) -> int:
        return int(self.bad.sum())

    def add(self, row: int, error: BadImage) -> None:
        """Image `row` is bad. Adding it again changes nothing.

        Raises:
            TooManyBadImages: names the counts, the first few images and the way out.
        """
        if self._note(row, error.reason, error.detail):
            find = (row, error.reason, error.detail)
            self._pending.append(find)
            if self._rank == 0:
                self._write([find])
            self._check()

    def sync(self) -> None:
        """Exchange finds between the ranks; all of them call this at the same point."""
        finds = [find for part in distributed.gather_objects(self._pending) for find in part]
        self._pending = []
        new = [find for find in finds if self._note(*find)]
        if self._rank == 0:
            self._write(new)
        self._check()

    def _note(self, row: int, reason: str, detail: str) -> bool:
        if self.bad[row]:
            return False
        self.bad[row] = True
        self.reasons[reason] += 1
        if len(self._first) < 5:
            self._first.append(f"{self._ids[row]} ({reason})")
        return True

    def _check(self) -> None:
        if len(self) <= self.allowed:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        raise TooManyBadImages(
            f"{len(self)} of {len(self._ids)} images are bad ({len(self) / len(self._ids):.1%}: {reasons}), "
            f"{self.allowed} are allowed by max_bad={self._max_bad:g}; first: {'; '.join(self._first)}. "
            f"Repair or remove them{f' (listed in {self._path})' if self._path else ''}, or raise --max-bad"
        )

    def _read(self) -> None:
        if self._path is None or not self._path.exists():
            return
        rows = range(len(self._ids))
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                name = to_name(entry["path"])
            except (ValueError, KeyError, TypeError):
                continue  # a line cut by a kill: its image will be found again
            row = bisect.bisect_left(rows, name, key=self._ids.raw)
            if row < len(rows) and self._ids.raw(row) == name:  # else an image of another set
                self._note(row, str(entry.get("reason", "")), str(entry.get("detail", "")))

    def _write(self, finds: list[Find]) -> None:
        if self._path is None or not finds:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            if file.tell() and not _ends_a_line(self._path):
                file.write("\n")
            for row, reason, detail in finds:
                file.write(json.dumps({"path": self._ids[row], "reason": reason, "detail": detail}) + "\n")


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
