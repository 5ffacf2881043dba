"""Images that could not be used: one line of JSON each, counted, and the end of the run when there are too many.

The limit is a share of all N images: the run fails when more than max(1, floor(max_bad x N)) are bad, so that one bad
file never ends a run, however small the folder; with max_bad = 0 the first one does. Before it fails, all images are
looked at (for at most a minute), so that the message gives the true count.
"""

from __future__ import annotations

import bisect
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from selfcluster import distributed
from selfcluster.data.errors import PASSING, BadImage
from selfcluster.data.names import Names, to_name
from selfcluster.data.problems import Finding, accepting_share, grouped, listed
from selfcluster.files import PatientLog, write_atomically

Find = tuple[int, str, str]  # row, reason, detail
# given (N,) what is known to be bad: more finds, and how many images were looked at
Survey = Callable[[np.ndarray], tuple[list[Find], int]]


class TooManyBadImages(RuntimeError):
    """More images are bad than `max_bad` allows."""


class Quarantine:
    """The bad images of one source, known to this rank.

    Images listed in the file by an earlier run are bad from the start, except those whose reason may have passed (the
    storage was away, memory was short): `retried` counts these, they are read again, and their lines are removed.
    Rank 0 writes; the other ranks' finds reach it at `sync`, which all ranks call together.

    Args:
        ids: of the images.
        path: the file `{path, reason, detail}` a line, or None to keep no file.
        max_bad: share of the images that may be bad.
        rank: this process among all.
        survey: looks at all images before the limit ends the run; None looks at no more.
    """

    def __init__(
        self,
        ids: Names,
        path: str | os.PathLike[str] | None,
        max_bad: float,
        rank: int,
        survey: Survey | None = None,
    ) -> None:
        if not 0 <= max_bad <= 1:
            raise ValueError(f"--max-bad {max_bad:g}: must be from 0 to 1")
        self._ids, self._path, self._rank = ids, Path(path) if path is not None else None, rank
        self._max_bad, self._survey = max_bad, survey
        self.allowed = max(1, int(max_bad * len(ids))) if max_bad > 0 else 0
        self.bad = np.zeros(len(ids), dtype=bool)
        self.reasons: Counter[str] = Counter()
        self.retried = 0
        self._findings: list[Finding] = []
        self._pending: list[Find] = []
        kept = "bad images are left out all the same, and the list is written when there is room"
        self._log = None if self._path is None else PatientLog(self._path, kept)
        self._read()

    def __len__(self) -> int:
        return int(self.bad.sum())

    def add(self, row: int, error: BadImage) -> None:
        """Record that image `row` is bad. Recording it again changes nothing.

        Raises:
            TooManyBadImages: gives the counts, the first few images and the way out.
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
        self._findings.append(Finding(self._ids[row], reason, detail))
        return True

    def _check(self) -> None:
        if len(self) <= self.allowed:
            return
        known, looked_at = len(self), len(self._ids)
        if self._survey is not None:
            finds, count = self._survey(self.bad)
            looked_at = known + count
            new = [find for find in finds if self._note(*find)]
            if self._rank == 0:
                self._write(new)
        raise TooManyBadImages(self._message(looked_at))

    def _message(self, looked_at: int) -> str:
        total, bad = len(self._ids), len(self)
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        first = "; ".join(f"{finding.id} ({finding.reason})" for finding in self._findings[:5])
        if looked_at < total:
            counted = f"{bad} of the {looked_at} images read so far (of {total} in all)"
            share = accepting_share(min(total, -(-bad * total // looked_at)), total)
            flag = f"if the rest is similar, --max-bad {share:g} accepts them"
        else:
            counted = f"{bad} of {total} images"
            flag = f"--max-bad {accepting_share(bad, total):g} accepts them"
        passing = sum(count for reason, count in self.reasons.items() if reason in PASSING)
        again = f"\n{passing} of these errors may be temporary: the next start reads those images again"
        place = f" (listed in {self._path})" if self._path else ""
        return (
            f"{counted} are bad ({bad / looked_at:.1%}: {reasons}), "
            f"and --max-bad {self._max_bad:g} allows {self.allowed}; first: {first}.\n"
            f"{listed(grouped(self._findings))}\n"
            f"Repair or remove them{place}; {flag}{again if passing else ''}"
        )

    def _read(self) -> None:
        if self._path is None:
            return
        rows = range(len(self._ids))
        kept: list[str] = []
        for entry in read_entries(self._path):
            if may_have_passed(entry):
                self.retried += 1
                continue
            kept.append(json.dumps(entry))
            name = to_name(entry["path"])
            row = bisect.bisect_left(rows, name, key=self._ids.raw)
            if row < len(rows) and self._ids.raw(row) == name:  # else an image of another set
                self._note(row, str(entry.get("reason", "")), str(entry.get("detail", "")))
        if self.retried and self._rank == 0:
            write_atomically(self._path, "".join(line + "\n" for line in kept))

    def _write(self, finds: list[Find]) -> None:
        """Append lines. A full disk does not end the run: they wait in memory, and are written when there is room."""
        if self._log is None:
            return
        entries = ({"path": self._ids[row], "reason": reason, "detail": detail} for row, reason, detail in finds)
        lines = [(json.dumps(entry) + "\n").encode() for entry in entries]
        if lines and not self._log.waiting and not _ends_a_line(self._log.path):  # cut by a kill
            lines[0] = b"\n" + lines[0]
        self._log.add(*lines)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a quarantine file that name an image; a line cut by a kill is left out. No file: none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            to_name(entry["path"])
        except (ValueError, KeyError, TypeError):
            continue  # its image will be found again
        found.append(entry)
    return found


def may_have_passed(entry: Mapping[str, object]) -> bool:
    """Whether the reason of a quarantine's line is one that passes: the storage was away, or memory was short."""
    return entry.get("reason") in PASSING


def _ends_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return True
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
