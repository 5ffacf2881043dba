"""What people decide about the clusters of a run: names, merges, splits, rubbish, a selection. One JSON row an action.

`RUN/curation.jsonl` only ever grows: an undo is a row like any other. The state is what replaying all rows gives.
Rows may come from a browser or a downloaded file, so that each is checked before it is used.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from selfcluster.files import unwritten

CURATION = "curation.jsonl"
MAX_ROW_BYTES = 32 << 20  # a row that selects half a million images
_LONGEST_NAME = 200  # characters
_LONGEST_ID = 8192
_LARGEST = 1 << 31
_FIELDS: dict[str, tuple[str, ...]] = {
    "rename": ("cluster", "name"),
    "merge": ("cluster", "into"),
    "split": ("cluster", "images", "name"),
    "rubbish": ("cluster",),
    "keep": ("cluster",),
    "select": ("images",),
    "unselect": ("images",),
    "undo": (),
}
Row = dict[str, Any]


class CurationError(ValueError):
    """A row that cannot be used: the message names its line and what is wrong."""


@dataclass
class Curation:
    """The state after some rows. `start` holds every image's cluster in the table, by id; -1 = no cluster.

    `names` of clusters that have one; `merged`: cluster -> the cluster that took its images; `moved`: image -> the new
    cluster that a split gave it; `rubbish`: clusters to throw away; `selected`: images, in the order of selection.
    """

    start: Mapping[str, int]
    names: dict[int, str] = field(default_factory=dict)
    merged: dict[int, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    rubbish: set[int] = field(default_factory=set)
    selected: dict[str, None] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.numbers = self.numbers or {number for number in self.start.values() if number >= 0}

    def cluster_of(self, image: str) -> int:
        """Return the cluster that an image of the table is in now."""
        number = self.moved.get(image, self.start[image])
        while number in self.merged:
            number = self.merged[number]
        return number

    def name_of(self, cluster: int) -> str:
        """Return a cluster's name, or "cluster 7" where it has none."""
        return self.names.get(cluster) or ("no cluster" if cluster < 0 else f"cluster {cluster}")

    def add(self, row: Row) -> None:
        """Carry out one checked row other than undo; raise ValueError, and change nothing, where it does not fit."""
        action = row["action"]
        unknown = next((image for image in row.get("images", ()) if image not in self.start), None)
        if unknown is not None:
            raise ValueError(f"no image {_short(unknown)} in the table of clusters")
        if "cluster" in row:
            self._check_cluster(row["cluster"], none=action == "split")
        if action == "rename":
            self.names[row["cluster"]] = row["name"]
            if not row["name"]:
                del self.names[row["cluster"]]
        elif action == "merge":
            self._check_cluster(row["into"])
            if row["into"] == row["cluster"]:
                raise ValueError(f"cluster {row['cluster']} cannot be merged into itself")
            self.merged[row["cluster"]] = row["into"]
        elif action == "split":
            self._split(row)
        elif action == "rubbish":
            self.rubbish.add(row["cluster"])
        elif action == "keep":
            self.rubbish.discard(row["cluster"])
        elif action == "select":
            self.selected |= dict.fromkeys(row["images"])
        elif action == "unselect":
            for image in row["images"]:
                self.selected.pop(image, None)

    def _split(self, row: Row) -> None:
        stranger = next((image for image in row["images"] if self.cluster_of(image) != row["cluster"]), None)
        if stranger is not None:
            raise ValueError(
                f"image {_short(stranger)} is in cluster {self.cluster_of(stranger)}, not {row['cluster']}"
            )
        number = self.next_number
        self.numbers.add(number)
        self.moved |= dict.fromkeys(row["images"], number)
        if row["name"]:
            self.names[number] = row["name"]

    @property
    def next_number(self) -> int:
        """The number of the cluster that the next split makes: one more than the highest so far."""
        return max(self.numbers, default=-1) + 1

    def _check_cluster(self, cluster: int, none: bool = False) -> None:
        if cluster in self.merged:
            raise ValueError(f"cluster {cluster} was merged into {self.merged[cluster]}")
        if cluster not in self.numbers and not (none and cluster == -1):
            raise ValueError(f"no cluster {cluster} in the table of clusters")


def check_row(row: object) -> Row:
    """Return a row with its known fields only, or raise ValueError saying in a sentence what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("not an object with the field action")
    action = row.get("action")
    if not isinstance(action, str) or action not in _FIELDS:
        raise ValueError(f"action {_short(action)} must be one of {', '.join(_FIELDS)}")
    wrong = set(row) - {"time", "action", *_FIELDS[action]}
    if wrong:
        raise ValueError(f"{action} has no field {_short(min(wrong, key=str))}")
    missing = [name for name in _FIELDS[action] if name not in row]
    if missing:
        raise ValueError(f"{action} lacks the field {missing[0]}")
    time = row.get("time")
    try:
        datetime.fromisoformat(time)  # pyright: ignore[reportArgumentType] - a TypeError is caught
    except (TypeError, ValueError):
        raise ValueError(f"time {_short(time)} is not an ISO date and time") from None
    for name in ("cluster", "into"):
        if name in row:
            _check_number(name, row[name], least=-1 if action == "split" else 0)
    if "name" in row:
        _check_name(row["name"])
    if "images" in row:
        _check_images(row["images"])
    return {name: row[name] for name in ("time", "action", *_FIELDS[action])}


def _check_number(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LARGEST:
        raise ValueError(f"{name} {_short(value)} is not the number of a cluster")


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ValueError(f"name {_short(name)} is not a text")
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"the name {_short(name)} has {len(name)} characters; at most {_LONGEST_NAME} are allowed")
    if not name.isprintable():
        raise ValueError(f"the name {_short(name)} has invisible or control characters")


def _check_images(images: object) -> None:
    if not isinstance(images, list) or not images:
        raise ValueError("images is not a list of image ids")
    for image in images:
        if not isinstance(image, str) or len(image) > _LONGEST_ID:
            raise ValueError(f"images holds {_short(image)}, which is not an image id")
    if len(set(images)) < len(images):
        raise ValueError("images names an image twice")


def parse_rows(data: bytes, where: str) -> list[Row]:
    """Return the checked rows of a file's content, one JSON object a line.

    A last row that a crash cut short is left out: its writer never reported it as kept.

    Raises:
        CurationError: a row is no such object; the message names `where` and the line.
    """
    rows = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise CurationError(f"{where}, line {number}: not JSON") from None
        try:
            rows.append(check_row(row))
        except ValueError as error:
            raise CurationError(f"{where}, line {number}: {error}") from None
    return rows


def in_force(rows: Sequence[Row]) -> list[int]:
    """Return the positions of the rows that no undo took back; raise CurationError for an undo of nothing."""
    kept: list[int] = []
    for position, row in enumerate(rows):
        if row["action"] != "undo":
            kept.append(position)
        elif kept:
            kept.pop()
        else:
            raise CurationError(f"line {position + 1}: there is no action before this undo")
    return kept


def replay(rows: Sequence[Row], start: Mapping[str, int], where: str = CURATION) -> Curation:
    """Return the state after `rows`.

    Args:
        rows: checked rows, oldest first.
        start: every image's cluster, by id, before any row.
        where: what the rows are from, for messages.

    Raises:
        CurationError: a row does not fit, such as a cluster that does not exist; the message names the line.
    """
    state = Curation(start)
    try:
        kept = in_force(rows)
    except CurationError as error:
        raise CurationError(f"{where}, {error}") from None
    for position in kept:
        try:
            state.add(rows[position])
        except ValueError as error:
            raise CurationError(f"{where}, line {position + 1}: {error}") from None
    return state


def read_curation(run: Path, start: Mapping[str, int]) -> Curation:
    """Return the state that RUN/curation.jsonl leads to; without that file, nothing is curated."""
    return replay(read_rows(run), start, str(run / CURATION))


def read_rows(run: Path) -> list[Row]:
    """Return the checked rows of RUN/curation.jsonl, oldest first."""
    path = run / CURATION
    return parse_rows(path.read_bytes(), str(path)) if path.exists() else []


def append_rows(
    run: Path, more: Iterable[Mapping[str, object]], start: Mapping[str, int], *, once: bool = False
) -> list[Row]:
    """Append rows to RUN/curation.jsonl, all or none of them, and return all rows of the file.

    They are on the disk when this returns. Other processes and threads wait for their turn. A row without a time gets
    the present one. With `once`, a row that the file holds already, time included, is not appended again: a browser
    that got no answer sends its row once more.

    Raises:
        CurationError: a row does not fit the rows that the file holds already.
        OSError: the disk is full, say; the file is as it was.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    new: list[Row] = []
    timed: list[bool] = []
    for number, row in enumerate(more, start=1):
        timed.append(once and isinstance(row, Mapping) and "time" in row)
        try:
            new.append(check_row({"time": now, **row} if isinstance(row, Mapping) else row))
        except ValueError as error:
            raise CurationError(f"row {number}: {error}") from None
    with _locked(run / CURATION) as file:
        rows = _rows_of(file, run)
        known = set(map(_key, rows))
        fresh = [row for row, has_time in zip(new, timed, strict=True) if not (has_time and _key(row) in known)]
        return _append(file, run, fresh, start) if fresh else rows


def merge_rows(run: Path, other: Sequence[Row], start: Mapping[str, int], where: str) -> list[Row]:
    """Append those rows of a downloaded file that RUN/curation.jsonl lacks; return the ones that were new.

    Raises:
        CurationError: a row does not fit the run's, or an undo would take back another action than the one it meant.
    """
    with _locked(run / CURATION) as file:
        rows = _rows_of(file, run)
        known = Counter(map(_key, rows))
        stack = [_key(rows[i]) for i in in_force(rows)]
        theirs: list[str] = []  # the keys of the file's own rows in force
        new: list[Row] = []
        for number, row in enumerate(other, start=1):
            key, meant = _key(row), None
            if row["action"] != "undo":
                theirs.append(key)
            elif theirs:
                meant = theirs.pop()
            if known[key]:
                known[key] -= 1
                continue
            if row["action"] != "undo":
                stack.append(key)
            elif meant is None or not stack or stack[-1] != meant:
                raise CurationError(
                    f"{where}, line {number} undoes an action that is not the last one in {run / CURATION}, so nothing "
                    "was applied"
                )
            else:
                stack.pop()
            new.append(row)
        if new:
            _append(file, run, new, start)
    return new


def set_aside(run: Path) -> Path | None:
    """Rename RUN/curation.jsonl, whose rows speak of clusters that are about to be replaced; return its new path."""
    path = run / CURATION
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_name(f"curation-{number}.jsonl")).exists():
        number += 1
    path.rename(aside)
    return aside


def _append(file: IO[bytes], run: Path, new: Sequence[Row], start: Mapping[str, int]) -> list[Row]:
    """Append checked rows to the locked file if they fit; a failed write leaves the file as it was."""
    rows = _rows_of(file, run)
    replay([*rows, *new], start, str(run / CURATION))
    data = b"".join(json.dumps(row).encode() + b"\n" for row in new)
    file.seek(0)
    before = file.read()
    kept = before if before.endswith(b"\n") else before[: before.rfind(b"\n") + 1]
    if kept != before and before[len(kept) :].strip() and len(parse_rows(before, "")) > len(parse_rows(kept, "")):
        kept, data = before, b"\n" + data  # a whole row that only lacks its end of line
    try:
        os.truncate(file.fileno(), len(kept))
        written = 0
        while written < len(data):  # the file is open for appending
            written += os.write(file.fileno(), data[written:])
        os.fsync(file.fileno())
    except OSError as error:
        os.truncate(file.fileno(), len(kept))
        raise unwritten(run / CURATION, error, len(data)) from error
    return [*rows, *new]


def _rows_of(file: IO[bytes], run: Path) -> list[Row]:
    file.seek(0)
    return parse_rows(file.read(), str(run / CURATION))


def _key(row: Row) -> str:
    return json.dumps(row, sort_keys=True)


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Open the file for appending while no other process or thread does."""
    while True:
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                yield file
                return  # else it was set aside while this process waited


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
