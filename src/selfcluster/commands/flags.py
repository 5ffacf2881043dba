"""Flags of the command line, made from options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from selfcluster.settings.options import SHARED, Option

_TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_option(parser: argparse._ActionsContainer, option: Option, shown: str = "") -> None:
    text = (option.help + shown).replace("%", "%%")
    if option.kind == "switch":
        parser.add_argument(
            flag(option.name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
        return
    kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text, "dest": option.name}
    if option.kind in ("pair", "numbers"):
        kwargs |= {"nargs": 2 if option.kind == "pair" else "+", "type": float, "metavar": "X"}
    else:
        kwargs |= {"type": _TYPES[option.kind], "metavar": {"int": "N", "float": "X", "str": "TEXT"}[option.kind]}
    if option.repeat:
        kwargs["action"] = "append"
    if option.choices:
        kwargs["metavar"] = "{" + ",".join(option.choices) + "}"
    parser.add_argument(flag(option.name), **kwargs)


def add_network_flags(parser: argparse.ArgumentParser, *more: str) -> None:
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time")
    parser.add_argument("--image-size", type=int, help="side in pixels, for a timm name")
    wanted = {"workers", "device", "precision", "max_bad", "limit", "classes", "long_tail", *more}
    wanted |= {"range", "max_megapixels", "timeout"}
    for option in SHARED:
        if option.name in wanted:
            add_option(parser, option)
