"""The commands that the documentation names can be called as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from selfcluster import cli

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = sorted(set(re.findall(r"`selfcluster ([^`]+)`", (DOCS / "protocols.md").read_text())))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_papers_page_parses(command):
    cli._parse(shlex.split(command))


def test_the_page_names_every_table_and_figure_of_the_papers():
    """Numbers as the papers' captions have them; the thesis counts by chapter."""
    text = (DOCS / "protocols.md").read_text()
    for heading, items in {
        "DeeperCluster": [f"Table {n}" for n in range(1, 9)] + [f"Figure {n}" for n in range(1, 10)],
        "ODC": [f"Table {n}" for n in range(1, 5)] + [f"Figure {n}" for n in range(1, 8)],
        "SwAV": [f"Table {n}" for n in range(1, 4)] + [f"Figure {n}" for n in range(1, 5)],
        "ClusterFit": [f"Table {n}" for n in range(1, 9)] + [f"Figure {n}" for n in range(1, 9)],
        "DeepCluster to DINO": [f"Table {c}.{n}" for c, last in ((3, 4), (4, 7), (5, 16)) for n in range(1, last + 1)],
    }.items():
        section = text.split(f"## {heading}")[1].split("\n## ")[0]
        named = set()
        for cell in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE):
            for kind, numbers in re.findall(r"(Table|Figure)s? ([\d., to]+(?:and [\d.]+)?)", cell):
                named |= {f"{kind} {number}" for number in expand(numbers)}
        assert not set(items) - named


def expand(numbers):
    """The numbers that "5, 8" or "3.5 to 3.7" stands for."""
    for part in re.split(r",| and ", numbers):
        first, _, last = (word.strip(" .") for word in part.partition(" to "))
        if not last:
            yield first
        elif "." in first:
            chapter, low = first.split(".")
            yield from (f"{chapter}.{n}" for n in range(int(low), int(last.split(".")[1]) + 1))
        else:
            yield from (str(n) for n in range(int(first), int(last) + 1))
