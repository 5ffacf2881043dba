"""Flags of the command line, made from options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from selfcluster.setting import in_words
from selfcluster.settings.options import SHARED, Option

_TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
_VALUES = {  # what a help text calls the value of a flag
    "augment": "NAME",
    "backbone": "NAME",
    "block": "FOLDER",
    "classes": "FILE",
    "columns": "NAMES",
    "costs": "COSTS",
    "device": "DEVICE",
    "distractors": "FOLDER",
    "init": "NETWORK",
    "k": "N,...",
    "labels_from": "SOURCE",
    "layer": "LAYER",
    "probe_labels": "SOURCE",
    "shots": "N,...",
    "subset": "FILE",
    "table": "FILE",
    "teacher": "NETWORK",
    "teacher_layer": "LAYER",
}

_NETWORK_FILES = (
    "config.yaml",
    "backbone.json",
    "model.safetensors",
    "pytorch_model.bin",
)  # in a run, export or hub folder
# what the functions that score a network take besides: how images are embedded, and which of them
EMBEDDING = ("batch_size", "workers", "device", "precision", "max_bad", "timeout")
SUBSET = ("classes", "long_tail", "range", "max_megapixels")
_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt", "backbone.json")


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
    if option.kind == "pair":
        kwargs |= {"nargs": 2, "type": float, "metavar": ("LOW", "HIGH")}
    elif option.kind == "numbers":
        kwargs |= {"nargs": "+", "type": float, "metavar": "X"}
    else:
        name = {"int": "N", "float": "X", "str": _VALUES.get(option.name, "TEXT")}[option.kind]
        kwargs |= {"type": _TYPES[option.kind], "metavar": name}
    if option.repeat:
        kwargs["action"] = "append"
    if option.choices:
        kwargs["metavar"] = "{" + ",".join(option.choices) + "}"
    parser.add_argument(flag(option.name), **kwargs)


def add_protocol_settings(parser: argparse.ArgumentParser, protocol: str) -> None:
    """Add the protocol's own settings as a group of flags."""
    from selfcluster.evaluation.protocols import declarations

    own = parser.add_argument_group(f"settings of {protocol}")
    for option in declarations(protocol)[1].values():
        add_option(own, option, "" if option.default is None else f" (default: {in_words(option.default)})")


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NETWORK",
        help="network to use if you give images, not a run: starter (default), timm:NAME, a run, an export, a FILE of "
        "weights, NETWORK=FILE (name of the network and its weights), or untrained:RUN (random weights)",
    )


def names_images(word: object) -> bool:
    """Whether an argument names images, rather than a run, an exported backbone or a file of weights.

    >>> names_images("builtin:digits"), names_images("starter")
    (True, False)
    """
    if not isinstance(word, str | os.PathLike):
        return True  # an array
    text, path = str(word), Path(word)
    if text.startswith("builtin:") or "://" in text:
        return True
    if path.is_dir():
        return not any((path / name).exists() for name in _NETWORK_FILES)
    return path.is_file() and not text.endswith(_WEIGHT_FILES)


def check_run_or_images(word: object) -> None:
    """Raise RunError for an argument that names neither images nor a run folder."""
    from selfcluster.runs.folder import RunError, is_run

    if not names_images(word) and not is_run(Path(str(word))):
        raise RunError(f"there is no run folder {word}; give a run folder, or images and their network with --model")


def check_names_images(word: object, model: object) -> None:
    """Raise RunError for a run folder, where `model` is the network and the word has to name its images."""
    from selfcluster.runs.folder import RunError, is_run
    from selfcluster.settings.files import run_config

    if isinstance(word, str | os.PathLike) and is_run(Path(word)):
        raise RunError(
            f"{word} is a run folder, so it cannot be used with --model {model}. To use the images of the run with "
            f"another network, name them instead: {run_config(Path(word))['data']}"
        )


def given(settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return those of the named settings that have a value."""
    return {name: settings[name] for name in names if settings.get(name) is not None}


def add_network_flags(parser: argparse.ArgumentParser, *more: str) -> None:
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="number of images to process at a time"
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the images in pixels, for timm:NAME")
    wanted = {"workers", "device", "precision", "max_bad", "limit", "classes", "long_tail", *more}
    wanted |= {"range", "max_megapixels", "timeout"}
    for option in SHARED:
        if option.name in wanted:
            add_option(parser, option)
