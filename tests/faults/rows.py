"""The table of faults: each fault, what the command does then, and the tests that cause it. `make faults` runs them.

A row's tests are those named `test_row_N_...`, in whichever file they stand. As a program this runs all of them and
writes docs/faults.md with the result of each row.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/faults.md"


@dataclass(frozen=True)
class Row:
    """One fault: its number in the table, what happens, what the command does, and what is not promised."""

    number: int
    fault: str
    follows: str
    limit: str = ""


SECTIONS = {
    "Data": [
        Row(1, "a JPEG that is cut short", "the image is listed with the reason and replaced by another one, drawn by the seed; if more than `--max-bad` are bad, the run fails and prints their number"),
        Row(2, "bits that flip inside the pixels", "not detected in training, because the file still decodes; `selfcluster audit DATA --hashes FILE` finds them"),
        Row(3, "no bytes, random bytes, a web page named .jpg", "each kind is listed with its own reason"),
        Row(4, "a small file that claims billions of pixels", "refused by its header, before it is decoded; no global setting of Pillow is touched"),
        Row(5, "16 bits, floats, CMYK, palettes, transparency, one bit", "read by documented rules; nothing is clipped in silence"),
        Row(6, "EXIF orientation", "images are turned upright"),
        Row(7, "1 x 1 and 1 x 5000 pixels, several frames", "an image whose longer side is more than 100 times the shorter one is refused; the first frame is used"),
        Row(8, "loops of links, broken links, pipes and devices", "each real file is read once; the others are listed and never opened"),
        Row(9, "names that are not UTF-8, with line breaks, of 255 bytes", "kept exactly, and written with escapes"),
        Row(10, "a file that is removed or replaced during a run", "a removed file is listed as vanished; a replaced file is read, and the summary gives the number of such files (`changed_files`)"),
        Row(11, "temporary storage errors", "the read is repeated for a limited time; then the image is listed as bad, with the reason"),
        Row(12, "copies and near copies", "`selfcluster audit` groups them by their pixels, and the page by their embeddings"),
        Row(13, "no image, one image, fewer than a batch or than clusters", "refused in a second, with both numbers"),
        Row(14, "a tar that is cut inside a member", "the message names the member and the byte"),
        Row(15, "a tar that is cut between members, or has a damaged header", "the command stops and says that the tar is incomplete or damaged"),
        Row(16, "a tar with `../`, absolute names, links, or a member twice; an address that is a command", "member names are never used as paths; links are skipped; a repeated member is an error; nothing is executed"),
        Row(17, "data that changes between two starts", "refused with the difference; `--accept-data-change` repeats the epoch, unless the method stores a value for each image"),
    ],
    "The machine": [
        Row(18, "a reader that dies", "readers are threads; an error in one counts as a bad image or ends the run; a kill ends the whole process, see 37 and 40"),
        Row(19, "a read that hangs", "the timeout names the images; the first SIGTERM saves the run"),
        Row(20, "a tiny `/dev/shm`", "no effect: nothing is shared through it"),
        Row(21, "64 open files allowed", "no effect: training and embedding end with as many open files as at the start"),
        Row(22, "a list of two million paths", "the paths are in one buffer; memory does not grow over an epoch"),
        Row(23, "no memory for an image", "the image is listed as bad, with the reason"),
        Row(24, "an output folder that is read-only, below a file, or full", "each command that writes there refuses before it starts, and names the place and the reason"),
        Row(25, "a disk that is full for metrics alone", "training goes on, with one warning; rows are written when there is room"),
        Row(26, "a terminal that changes its size, standard output that is closed, a system clock that is set to another time", "no effect on training"),
    ],
    "Several processes": [
        Row(27, "processes that see different images, and so would make different numbers of steps", "refused before the first step"),
        Row(28, "an error in one process", "printed once, with the process, step and images; stored in `status.json`"),
        Row(29, "a process that is killed", "the other processes name it and end; with `torchrun --max-restarts N` the result has the same bytes"),
        Row(30, "a process that is frozen", "a warning names the process, its step and its images before the timeout; if the process continues, so does the run"),
        Row(31, "long work of one process", "the others wait as long as the process is alive"),
        Row(32, "a value that is not finite in one process", "all skip the step"),
        Row(33, "different numbers of rows in a gather", "the processes exchange the lengths first"),
        Row(34, "`torchrun` itself is killed", "the processes that it started save the run, end and release the folder"),
        Row(35, "a second run in the same folder", "refused; the message names the process of the first run"),
        Row(36, "a run that resumes with another number of processes", "the same images in the same batches; values differ by rounding", "sums are taken in another order, so the bits differ"),
    ],
    "Checkpoints": [
        Row(37, "a kill at any step of writing", "there is always a complete checkpoint; temporary files are removed"),
        Row(38, "a disk that is full while saving", "the message gives the bytes needed and free; the previous checkpoint stays"),
        Row(39, "a checkpoint that is cut short, emptied or altered", "its hash shows this; the run resumes from the previous checkpoint; `selfcluster verify RUN` finds it, too"),
        Row(40, "kills at random moments", "the result of the resumed run has the same bytes", "on the same layout of processes and threads, on CPUs"),
        Row(41, "SIGTERM through torchrun", "the run is saved at the next step; `status.json` says `preempted`"),
        Row(42, "a pickle with code", "never loaded"),
        Row(43, "a run of an older or a newer version, or with other settings", "older version: converted; newer version: refused with the version; other settings: refused with the difference"),
    ],
    "Learning": [
        Row(44, "losses and gradients that are not finite", "the step is skipped and counted; ten in a row end the run, which names the images and keeps them and the weights in `diverged/`"),
        Row(45, "collapse: one cluster, equal features, a loss at chance", "a warning says what to try, after one or two bad reports in a row; for a loss at chance, after 5 % of the steps, and at least 200; empty clusters are filled"),
        Row(46, "features and images that no longer fit together", "every row has its own id, once, in order"),
    ],
}  # fmt: skip
ROWS = {row.number: row for rows in SECTIONS.values() for row in rows}


def tests_of() -> dict[int, list[tuple[str, str]]]:
    """The (file, name) of every test of a row."""
    found: dict[int, list[tuple[str, str]]] = {number: [] for number in ROWS}
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            match = re.match(r"test_row_(\d+)_", node.name) if isinstance(node, ast.FunctionDef) else None
            if match and int(match[1]) in found and isinstance(node, ast.FunctionDef):
                found[int(match[1])].append((file.relative_to(TESTS.parent).as_posix(), node.name))
    return found


class Outcomes:
    """A plugin of pytest that keeps how the tests of each row ended."""

    def __init__(self) -> None:
        self.of: dict[int, list[str]] = {number: [] for number in ROWS}

    def pytest_runtest_logreport(self, report) -> None:
        match = re.search(r"::test_row_(\d+)_", report.nodeid)
        if match and (report.when == "call" or report.outcome != "passed") and int(match[1]) in self.of:
            self.of[int(match[1])].append(report.outcome)


def page(outcomes: dict[int, list[str]]) -> str:
    """The page, from how the tests of each row ended."""
    lines = [
        "# Faults that are tested",
        "",
        "Each row is tested: the tests cause the fault, with real processes and files where possible.",
        "`make faults` runs them all and writes this page.",
    ]
    for title, rows in SECTIONS.items():
        lines += ["", f"## {title}", "", "| | fault | what the command does | result |", "|---|---|---|---|"]
        for row in rows:
            ended = outcomes[row.number]
            passed, skipped = ended.count("passed"), ended.count("skipped")
            if not ended or passed + skipped < len(ended):
                result = "**fails**"
            else:
                result = "passed" if not row.limit else f"passed; limit: {row.limit}"
                result += f" ({passed} test{'' if passed == 1 else 's'}"
                result += f", {skipped} skipped here)" if skipped else ")"
            lines.append(f"| {row.number} | {row.fault} | {row.follows} | {result} |")
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Run the tests of all rows and write the page."""
    import pytest

    outcomes = Outcomes()
    files = sorted({file for tests in tests_of().values() for file, _ in tests})
    code = pytest.main([*files, "-k", "test_row_", *words], plugins=[outcomes])
    PAGE.write_text(page(outcomes.of), "utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
