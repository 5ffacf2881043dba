"""Settings from a file (a run's own `config.yaml` is one), where a run goes, and of which images. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfcluster.data.names import to_id
from selfcluster.data.sources import Source, open_source
from selfcluster.runs.folder import has_begun, read_config

# how a run opens its images: which of them, and how their values are read
_SUBSET = ("labels_from", "limit", "classes", "long_tail", "label_noise", "seed", "range", "max_megapixels")
_NOT_FLAGS = ("method", "data", "recipe", "about")  # what a config.yaml holds beside the flags


def read_settings(config: str | os.PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings in a `config.yaml` (a run's own is one) or a mapping; raises ValueError for anything else."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        try:
            file = Path(config) / "config.yaml" if Path(config).is_dir() else Path(config)
            config = yaml.safe_load(file.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"--config {config}: cannot be read ({error})") from error
        if not isinstance(config, Mapping):
            raise ValueError(f"--config {config}: not a mapping of settings")
    return {str(name).replace("-", "_"): value for name, value in config.items() if name not in _NOT_FLAGS}


def default_out(method: str, source: Source) -> Path:
    """runs/METHOD-DATANAME; a file's name goes without its suffix."""
    if source.kind == "array":
        return Path("runs") / f"{method}-array"
    where = Path(source.location.rpartition(":")[2])
    name = where.name if source.kind in ("folder", "builtin") or where.is_dir() else where.stem
    return Path("runs") / f"{method}-{to_id(os.fsencode(name))}"


def open_for(
    method: str, data: Any, said: Mapping[str, Any], out: str | os.PathLike[str] | None
) -> tuple[Source, Path]:
    """The images of a run and its folder; one that goes on has those that it began with, whatever is left unsaid."""
    asked = {name: said[name] for name in _SUBSET if name in said}
    source = open_source(data, **asked)
    path = default_out(method, source) if out is None else Path(out)
    begun = read_config(path) if has_begun(path) else {}
    left_out = {name: begun[name] for name in _SUBSET if name not in said and begun.get(name)}
    if left_out and begun.get("method") == method:
        source = open_source(data, **left_out, **asked)
    return source, path


def reading_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a run reads the values of images, as `open_source` takes it: other images are read the same way."""
    return {name: config[name] for name in ("range", "max_megapixels") if config.get(name) is not None}


def part_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Which images a run is of, as `open_source` takes it; labels were spoilt for training alone, never for a score."""
    return {name: config[name] for name in _SUBSET if name in config and name != "label_noise"}
