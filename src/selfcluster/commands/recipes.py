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
    return found, "\n\n".join(f"{name}: {text}" for name, text in found.items())
