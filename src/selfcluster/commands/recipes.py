"""`selfcluster recipes`: list the named settings."""

from __future__ import annotations

import argparse

from selfcluster.settings.recipes import RECIPES

HELP = "list the recipes: named sets of settings"


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.set_defaults(run_command=run_command)


def run_command() -> tuple[object, str]:
    import inspect

    found = {name: inspect.getdoc(recipe) or "" for name, recipe in RECIPES.items()}
    lines = [f"{name:<24}{text.splitlines()[0]}" for name, text in found.items()]
    return found, "\n".join([*lines, "", "Notes on each recipe: selfcluster recipes --json"])
