"""`selfcluster audit`: what is wrong with a set of images, before anything is trained on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict

from selfcluster.annotations import Data
from selfcluster.commands.flags import add_option
from selfcluster.data.sources import open_source
from selfcluster.files import make_writable
from selfcluster.randomness import keeps_random_state
from selfcluster.settings.options import SHARED

HELP = "find copies, near copies, dark, blurred, constant and unreadable images, and leaks between two sets"
_SHOWN = 5  # examples that are printed; --json has all


class AuditResult(TypedDict):
    """What `audit` returns; images are named by their ids, lists of groups begin with the largest."""

    data: str
    images: int
    unreadable: list[dict[str, Any]]  # reason, count, detail, ids
    exact_duplicates: list[list[str]]
    near_duplicates: list[list[str]]
    dark: list[str]
    constant: list[str]
    blurred: list[str]
    passed_over: dict[str, int]
    value_range: list[float] | None
    second: dict[str, Any] | None  # the same of DATA2
    exact_leaks: list[list[str]]  # [id in DATA, id in DATA2]
    near_leaks: list[list[str]]
    hashes: dict[str, Any] | None  # file, and written (a number) or changed, missing and added (ids)


@keeps_random_state
def audit(
    data: Data,
    data2: Data | None = None,
    *,
    near: float = 0.99,
    hashes: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    quiet: bool = False,
    **reading: Any,
) -> AuditResult:
    """Look at every image of a set, and at images that two sets share.

    Args:
        data: the images, as in training.
        data2: other images, such as the test set: copies and near copies between both are leaks.
        near: two images are near copies if their small gray versions correlate at least this much: 0.9 to 1.
        hashes: a file of SHA-256 of DATA's images: written where it does not exist, else compared. Bits that flip
            inside an image's pixels often decode without an error; only this finds them.
        workers: threads; default: one per core.
        quiet: show no progress.
        **reading: limit, range, max_megapixels, labels_from, as `open_source` takes them.

    Returns:
        The images of each problem by their ids; see `AuditResult`.

    >>> audit("builtin:digits", quiet=True)["unreadable"]
    []
    """
    from selfcluster.data import audit as looks
    from selfcluster.data.problems import grouped
    from selfcluster.data.threads import DaemonThreads

    if not 0.9 <= near <= 1:
        raise ValueError(f"--near {near:g}: must be from 0.9 to 1")
    if hashes is not None and not Path(hashes).exists():
        make_writable(Path(hashes).parent, "choose another file for --hashes")
    sources = [open_source(part, **reading) for part in ((data,) if data2 is None else (data, data2))]
    count = os.cpu_count() or 1 if workers is None else workers
    pool = DaemonThreads(count, "selfcluster-audit") if count else None
    try:
        examined = [looks.examine(source, pool, _progress(source.where, len(source), quiet)) for source in sources]
    finally:
        if pool is not None:
            pool.end()
    parts: list[dict[str, Any]] = []
    for source, seen in zip(sources, examined):

        def named(rows: Iterable[int], ids: list[str] = seen.ids) -> list[str]:
            return [ids[int(row)] for row in rows]

        parts.append(
            {
                "data": source.where,
                "images": len(source),
                "unreadable": [
                    {"reason": group.reason, "count": group.count, "detail": group.detail, "ids": group.ids}
                    for group in grouped(seen.findings)
                ],
                "exact_duplicates": [named(group) for group in looks.exact_groups(seen)],
                "near_duplicates": [named(group) for group in looks.near_groups(seen, near)],
                "dark": named(seen.dark.nonzero()[0]),
                "constant": named(seen.constant.nonzero()[0]),
                "blurred": named(seen.blurred.nonzero()[0]),
                "passed_over": dict(source.passed),
                "value_range": None
                if source.value_range is None
                else [source.value_range.low, source.value_range.high],
            }
        )
    exact, nearly = [], []
    if len(examined) == 2:
        one, two = examined
        exact = [[one.ids[a], two.ids[b]] for a, b in looks.exact_leaks(one, two)]
        nearly = [[one.ids[a], two.ids[b]] for a, b in looks.near_leaks(one, two, near)]
    compared: dict[str, Any] | None = None
    if hashes is not None:
        file = Path(hashes)
        if file.exists():
            compared = {"file": str(file), **looks.compare_hashes(examined[0], file)}
        else:
            compared = {"file": str(file), "written": looks.write_hashes(examined[0], file)}
    second = parts[1] if len(parts) == 2 else None
    return AuditResult(**parts[0], second=second, exact_leaks=exact, near_leaks=nearly, hashes=compared)


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("data", metavar="DATA", help="folder, list of paths, tar or folder of tars")
    parser.add_argument(
        "data2", metavar="DATA2", nargs="?", help="a second set; images in both sets are reported as leaks"
    )
    parser.add_argument(
        "--near",
        type=float,
        metavar="X",
        default=0.99,
        help="two images are near copies if their small gray versions correlate at least this much: 0.9 to 1; default "
        "0.99",
    )
    parser.add_argument(
        "--hashes",
        metavar="FILE",
        help="file of SHA-256 hashes: if it does not exist, it is written; if it exists, the images are compared with "
        "it",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    for option in SHARED:
        if option.name in ("workers", "limit", "range", "max_megapixels"):
            add_option(parser, option)
    parser.set_defaults(run_command=run_command)


def run_command(**settings: Any) -> tuple[object, str]:
    result = audit(**settings)
    lines = _table(result)  # pyright: ignore[reportArgumentType]
    if result["second"] is not None:
        lines += ["", *_table(result["second"]), "", f"leaks from {result['data']} to {result['second']['data']}"]
        for name, words in (("exact_leaks", "exact copies"), ("near_leaks", "near copies")):
            pairs = [" = ".join(pair) for pair in result[name]]
            lines.append(_line(words, len(pairs), pairs))
    if result["hashes"] is not None and "written" in result["hashes"]:
        lines.append(
            f"{result['hashes']['file']}: {result['hashes']['written']} hashes written; "
            "run the same command later to compare"
        )
    elif result["hashes"] is not None:
        lines += ["", f"since {result['hashes']['file']} was written"]
        lines += [
            _line(name, len(result["hashes"][name]), result["hashes"][name]) for name in ("changed", "missing", "added")
        ]
    return result, "\n".join(lines)


def _table(part: dict[str, Any]) -> list[str]:
    lines = [f"{part['data']}: {part['images']} images"]
    if part["value_range"] is not None:
        low, high = part["value_range"]
        lines.append(f"images deeper than 8 bits: values {low:g}..{high:g} become 0..255")
    bad = sum(group["count"] for group in part["unreadable"])
    lines.append(_line("unreadable", bad, []))
    lines += [_line(f"  {g['reason']}", g["count"], g["ids"], g["detail"]) for g in part["unreadable"]]
    for name, words in (("exact_duplicates", "exact copies"), ("near_duplicates", "near copies")):
        extra = sum(len(group) - 1 for group in part[name])
        lines.append(_line(words, extra, [" = ".join(group[:3]) for group in part[name]]))
    lines += [_line(name, len(part[name]), part[name]) for name in ("dark", "constant", "blurred")]
    if part["passed_over"]:
        lines.append("passed over: " + ", ".join(f"{count} {what}" for what, count in part["passed_over"].items()))
    return lines


def _line(words: str, count: int, examples: list[str], detail: str = "") -> str:
    shown = ", ".join(examples[:_SHOWN]) + (", ..." if len(examples) > _SHOWN else "")
    return f"{words:<18}{count:>9}  {shown}{f' ({detail})' if detail else ''}".rstrip()


def _progress(where: str, total: int, quiet: bool) -> Callable[[int], None] | None:
    """A line on a terminal that counts the images; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int) -> None:
        end = "\n" if done == total else ""
        print(f"\rselfcluster: {done} of {total} images of {where}", end=end, file=sys.stderr, flush=True)

    return show
