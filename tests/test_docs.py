"""The commands that the documentation names can be called as they are written."""

import contextlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfcluster import cli
from selfcluster.data.sources import open_source
from selfcluster.methods import canonical
from selfcluster.settings.options import options_for
from selfcluster.settings.recipes import DataSummary
from selfcluster.settings.resolve import resolve
from selfcluster.settings.schema import read_schema

DOCS = Path(__file__).parents[1] / "docs"


def commands_of(*pages):
    """The calls with arguments that stand in code in these pages, without `selfcluster`; METHOD is swav."""
    found = set()
    for page in pages:
        text = page.read_text()
        found |= set(re.findall(r"`selfcluster ([^`\n]+ [^`\n]+)`", text))
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found |= set(re.findall(r"^selfcluster (.+)", block, re.MULTILINE))
    return sorted(command.split(" #")[0].strip().replace("METHOD", "swav") for command in found)


COMMANDS = commands_of(DOCS / "protocols.md", DOCS / "reproduce.md")
PAGES = [DOCS.parent / "README.md", *(page for page in DOCS.rglob("*.md") if page.name != "LOG.md")]


@pytest.mark.parametrize("command", commands_of(*PAGES))
def test_a_command_of_the_documents_parses(command):
    with contextlib.suppress(SystemExit):  # of --help
        cli._parse(shlex.split(command))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images in two sub-folders."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        place = folder / f"kind{i % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("train ")])
def test_a_training_of_the_papers_and_tables_is_not_refused(command, photos):
    """Its settings agree with each other, under both recipes and without a GPU, and the images have what they need."""
    words = vars(cli._parse(shlex.split(command)))
    method = canonical(words["method"])
    given = {name: words[name] for name in options_for(read_schema(method)) if words.get(name) is not None}
    for recipe in [words["recipe"]] if words["recipe"] else ["auto", "paper"]:
        resolve(method, DataSummary(num_images=1_000_000, side=300, channels=3), given, recipe=recipe)
    subset = ("labels_from", "limit", "classes", "long_tail", "label_noise")
    open_source(photos, **{name: given[name] for name in subset if name in given})


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
