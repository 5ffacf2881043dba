"""`selfcluster sort`: the images of a run in folders, one a cluster."""

from __future__ import annotations

import argparse
import csv
import filecmp
import io
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfcluster.annotations import Data
from selfcluster.data.names import to_id, to_name
from selfcluster.data.sources import Source
from selfcluster.files import make_writable, write_atomically
from selfcluster.randomness import keeps_random_state
from selfcluster.settings.files import run_source

if TYPE_CHECKING:
    from selfcluster.runs.groups import Groups

HELP = "put the images into folders, one folder per cluster"
PLAN = "sorted.csv"
How = Literal["link", "copy", "move"]


@dataclass(frozen=True)
class Step:
    """Image `id` goes to `target`, relative to the folder. `origin` is its file; None: inside an archive or table."""

    id: str
    origin: Path | None
    target: PurePosixPath


@keeps_random_state
def sort(
    run: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    how: How = "link",
    data: Data | None = None,
    rubbish: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Put the images of a run into folders named by its clusters. Nothing is overwritten; a second run changes nothing.

    `INTO/sorted.csv` holds the plan: id, origin, target. To resume an interrupted command, repeat it.

    Args:
        run: a run folder with clusters. Names, merges and splits of `curation.jsonl` count.
        into: the folder; it is made where it is missing.
        how: link (symbolic links), copy, or move. Images inside archives and tables can only be copied.
        data: the images, if they have moved.
        rubbish: whether clusters that are marked as rubbish take part.
        dry_run: only return the plan.

    Returns:
        into, images, folders (images of each), done (steps carried out now), kept (done before).

    Raises:
        ValueError: a target exists and is another file, or the folder was sorted by another plan. Nothing was changed.
    """
    sorting = Sorting(Path(run), Path(into), how, data, rubbish)
    return sorting.summary() | {"done": 0 if dry_run else sorting.carry_out()}


class Sorting:
    """The steps from a run to its sorted images; nothing is changed before `carry_out`.

    Attributes:
        steps: all of them, an image each.
        waiting: those that are not done yet.
    """

    def __init__(self, run: Path, folder: Path, how: How, data: Data | None = None, rubbish: bool = False) -> None:
        from selfcluster.runs.groups import read_groups

        self.folder, self.how = folder, how
        groups = read_groups(run)
        groups = groups if rubbish else groups.without_rubbish()
        targets = plan(groups)
        origins = _earlier_origins(folder, targets)
        self.source: Source | None = None
        if origins is None or any(origin is None for origin in origins):
            self.source = run_source(run, data)
            origins = origins or [_origin(self.source, name) for name in groups.ids]
        self.steps = [Step(*parts) for parts in zip(groups.ids, origins, targets, strict=True)]
        inside = next((step.id for step in self.steps if step.origin is None), None)
        if how != "copy" and inside is not None:
            raise ValueError(f"--{how}: {inside!r} is inside an archive or table, so it has no file; use --copy")
        self.place = {} if self.source is None else {name: row for row, name in enumerate(self.source.ids)}
        unknown = next((step.id for step in self.steps if step.origin is None and step.id not in self.place), None)
        if self.source is not None and unknown is not None:
            raise ValueError(f"image {unknown!r} of the run is not in {self.source.where}; name the images with --data")
        self.waiting = [step for step in self.steps if not self._is_done(step)]

    def summary(self) -> dict[str, Any]:
        """Return into, images, folders (images of each) and kept (steps that were done before)."""
        folders = Counter(step.target.parts[0] for step in self.steps)
        kept = len(self.steps) - len(self.waiting)
        return {"into": str(self.folder), "images": len(self.steps), "folders": dict(folders), "kept": kept}

    def carry_out(self) -> int:
        """Write the plan, then do what is waiting; return how many steps that were."""
        make_writable(self.folder, "choose another --into")
        write_atomically(self.folder / PLAN, _plan_text(self.steps))
        for step in self.waiting:
            self._do(step)
        return len(self.waiting)

    def _is_done(self, step: Step) -> bool:
        """Whether the target is there already; raise ValueError where it is another file."""
        target = self.folder / step.target
        if not target.parent.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{target.parent} leads out of {self.folder}; remove that link, or choose another --into")
        if not os.path.lexists(target):
            return False
        if self.how == "link":
            same = target.is_symlink() and os.readlink(target) == os.path.abspath(os.fspath(step.origin or ""))
        elif self.how == "move":
            same = (self.folder / PLAN).exists() and step.origin is not None and not step.origin.exists()
        elif not target.is_file() or target.is_symlink():
            same = False
        elif step.origin is not None:
            same = filecmp.cmp(step.origin, target, shallow=False)
        else:
            same = target.read_bytes() == self._content(step)
        if not same:
            raise ValueError(f"{target} exists and is not the image {step.id!r}; choose another --into")
        return True

    def _do(self, step: Step) -> None:
        target, origin = self.folder / step.target, step.origin
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin is None:
            write_atomically(target, self._content(step))
        elif self.how == "link":
            target.symlink_to(os.path.abspath(origin))
        elif self.how == "move":
            shutil.move(origin, target)
        else:
            write_atomically(target, lambda temporary: shutil.copy2(origin, temporary), os.stat(origin).st_size)

    def _content(self, step: Step) -> bytes:
        """The bytes of an image that is no file of its own; pixels without a file become a PNG."""
        assert self.source is not None
        data = self.source.read_in_time(self.place[step.id])
        if isinstance(data, np.ndarray):
            from PIL import Image

            text = io.BytesIO()
            Image.fromarray(data.squeeze()).save(text, "PNG")
            return text.getvalue()
        return data


def plan(groups: Groups) -> list[PurePosixPath]:
    """Return where each image goes. A file keeps its name, with its folders before it where a cluster has it twice."""
    folders = groups.folder_names()
    short = [_file_name(name, whole=False) for name in groups.ids]
    clusters = [int(number) for number in groups.clusters]
    often = Counter((number, name.casefold()) for number, name in zip(clusters, short, strict=True))
    targets: list[PurePosixPath] = []
    taken: set[tuple[int, str]] = set()
    for name, number, brief in zip(groups.ids, clusters, short, strict=True):
        file = brief if often[number, brief.casefold()] == 1 else _file_name(name, whole=True)
        stem, dot, ending = file.rpartition(".")
        copy = 2
        while (number, file.casefold()) in taken:  # names that differ only in what file systems do not tell apart
            file, copy = f"{stem or ending} ({copy}){dot}{ending if stem else ''}", copy + 1
        taken.add((number, file.casefold()))
        targets.append(PurePosixPath(folders[number], file))
    return targets


def _file_name(name: str, whole: bool) -> str:
    from selfcluster.runs.groups import safe_name

    parts = name.split("/")
    text = safe_name("--".join(part for part in parts if part not in ("", ".", "..")) if whole else parts[-1])
    return text or "image"


def _origin(source: Source, name: str) -> Path | None:
    if source.root is None:
        return None
    path = Path(os.fsdecode(os.path.join(to_name(source.root), to_name(name))))
    return path if path.is_file() else None


def _plan_text(steps: list[Step]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("id", "origin", "target"))
    for step in steps:
        origin = "" if step.origin is None else to_id(os.fsencode(step.origin))
        rows.writerow((step.id, origin, str(step.target)))
    return text.getvalue()


def _earlier_origins(folder: Path, targets: list[PurePosixPath]) -> list[Path | None] | None:
    """Where the images were before an earlier run of the same plan, which may have moved some; None: no earlier run."""
    if not (folder / PLAN).exists():
        return None
    rows = list(csv.DictReader(io.StringIO((folder / PLAN).read_text("utf-8"))))
    if [row.get("target") for row in rows] != [str(target) for target in targets]:
        raise ValueError(
            f"{folder} holds images sorted by an earlier clustering (see {folder / PLAN}); choose another --into"
        )
    return [Path(os.fsdecode(to_name(row["origin"]))) if row.get("origin") else None for row in rows]


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder with clusters")
    parser.add_argument("--into", required=True, metavar="FOLDER", help="folder in which the cluster folders are made")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--link", dest="how", action="store_const", const="link", help="make symbolic links (default)")
    ways.add_argument("--copy", dest="how", action="store_const", const="copy", help="copy the files")
    ways.add_argument("--move", dest="how", action="store_const", const="move", help="move the files; needs --yes")
    parser.add_argument("--data", help="new place of the images, if they have moved")
    parser.add_argument(
        "--rubbish",
        action="store_true",
        help="also sort the clusters that you marked as rubbish on the page; default: leave them out",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")
    parser.add_argument("--yes", action="store_true", help="allow --move")
    parser.set_defaults(run_command=run_command, how="link")


def run_command(run: str, into: str, how: How, yes: bool, dry_run: bool, **settings: Any) -> tuple[object, str]:
    sorting = Sorting(Path(run), Path(into), how, **settings)
    result = sorting.summary()
    lines = [f"{count:>8,}  {name}/" for name, count in sorted(result["folders"].items())]
    print("\n".join([f"selfcluster: {how} {result['images']:,} images into {into}", *lines]), file=sys.stderr)
    if dry_run:
        return result | {"done": 0}, "nothing was changed (--dry-run)"
    if how == "move" and not yes:
        raise ValueError(f"--move moves the images away from where {run} expects them; add --yes to confirm")
    result |= {"done": sorting.carry_out()}
    verb = {"link": "linked", "copy": "copied", "move": "moved"}[how]
    return result, f"{into}: {result['done']:,} images {verb}, {result['kept']:,} existed already"
