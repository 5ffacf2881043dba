"""`selfcluster methods`: list what can be trained."""

from __future__ import annotations

import argparse

from selfcluster.methods import NAMES
from selfcluster.settings.schema import read_schema

HELP = "list the training methods"


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.set_defaults(run_command=run_command)


def run_command() -> tuple[object, str]:
    found = {name: read_schema(name).summary for name in NAMES}
    return found, "\n".join(f"{name:<16} {summary}" for name, summary in found.items())
