"""Settings from a file (a run's own `config.yaml` is one), where a run goes, and of which images. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfcluster.annotations import Data
from selfcluster.data.names import to_id
from selfcluster.data.sources import Source, open_source
from selfcluster.files import reason_of
from selfcluster.methods import canonical
from selfcluster.runs.folder import RunError, has_begun, read_config
from selfcluster.setting import check_names, checked
from selfcluster.settings.options import FREE, options_for
from selfcluster.settings.schema import read_schema

# how a run opens its images: which of them, and how their values are read
_SUBSET = ("labels_from", "limit", "classes", "long_tail", "label_noise", "seed", "range", "max_megapixels", "timeout")
_NOT_FLAGS = ("method", "data", "recipe", "about")  # what a config.yaml holds beside the flags


def read_settings(config: str | os.PathLike[str] | Mapping[str, object] | None) -> dict[str, Any]:
    """The settings in a `config.yaml` (a run's own is one) or a mapping; raises ValueError for anything else."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        try:
            file = Path(config) / "config.yaml" if Path(config).is_dir() else Path(config)
            config = yaml.safe_load(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ValueError(f"--config {config}: cannot be read ({reason_of(error)})") from error
        if not isinstance(config, Mapping):
            raise ValueError(f"--config {config}: not a mapping of settings")
    return {str(name).replace("-", "_"): value for name, value in config.items() if name not in _NOT_FLAGS}


def run_config(path: Path) -> dict[str, Any]:
    """Return the whole configuration of a run, checked: settings in their own types, missing ones at their defaults.

    Raises:
        RunError: it is missing or unreadable, or holds what no run has; the message names the file, key and value.
    """
    config = read_config(path)
    file = path / "config.yaml"
    if "method" not in config and "model" in config:  # images were embedded, and nothing was trained
        return config
    missing = [name for name in ("method", "data", "about") if name not in config]
    if missing:
        raise RunError(f"{file} has no {' and no '.join(missing)}. Restore the file, or choose another --out")
    try:
        options = options_for(read_schema(config["method"]))
        settings = {name: value for name, value in config.items() if name not in _NOT_FLAGS}
        check_names(map(str, settings), options)
        values = {name: checked(option, settings.get(name, option.default)) for name, option in options.items()}
        source, summary = (config["about"].get(part) for part in ("source", "summary"))
        if not isinstance(source, Mapping) or not isinstance(source.get("images"), int) or source["images"] < 1:
            raise ValueError("the section `about` is damaged: `source` has no number of images")
        if not isinstance(summary, Mapping):
            raise ValueError("the section `about` is damaged: `summary` does not describe the images")
    except (KeyError, ValueError) as error:
        raise RunError(f"{file}: {error.args[0]}. Restore the file, or choose another --out") from error
    return {**config, "method": canonical(config["method"]), **values}


def deciding(config: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that decide a run's result, as JSON holds them: a change makes it another run."""
    names = [name for name in config if name not in FREE and name not in ("data", "recipe", "about")]
    return {name: list(v) if isinstance(v := config[name], tuple) else v for name in names}


def default_out(method: str, source: Source) -> Path:
    """runs/METHOD-DATANAME; a file's name goes without its suffix."""
    if source.kind == "array":
        return Path("runs") / f"{method}-array"
    where = Path(source.location.rpartition(":")[2])
    name = where.name if source.kind in ("folder", "builtin") or where.is_dir() else where.stem
    return Path("runs") / f"{method}-{to_id(os.fsencode(name))}"


def open_for(
    method: str, data: Data, said: Mapping[str, Any], out: str | os.PathLike[str] | None
) -> tuple[Source, Path]:
    """Return the data source and the run folder. When resuming, omitted subset options come from the existing run."""
    asked = {name: said[name] for name in _SUBSET if name in said}
    source = open_source(data, **asked)
    path = default_out(method, source) if out is None else Path(out)
    begun = run_config(path) if has_begun(path) else {}
    left_out = {name: begun[name] for name in _SUBSET if name not in said and begun.get(name)}
    if left_out and begun.get("method") == method:
        source = open_source(data, **left_out, **asked)
    return source, path


def run_source(run: Path, data: Data | None = None) -> Source:
    """Return the images of a run, the same ones as in training.

    Args:
        run: the run folder.
        data: where the images are now; None: where the run found them.

    Raises:
        RunError: the run's configuration cannot be read.
        DataError: there are no such images.
    """
    config = run_config(run)
    return open_source(config["data"] if data is None else data, **part_of(config))


def reading_of(config: Mapping[str, object]) -> dict[str, Any]:
    """Return how a run reads the values of images, as `open_source` takes it: other images are read the same way."""
    return {name: config[name] for name in ("range", "max_megapixels") if config.get(name) is not None}


def part_of(config: Mapping[str, object]) -> dict[str, Any]:
    """Which images a run is of, as `open_source` takes it; labels were spoilt for training alone, never for a score."""
    return {name: config[name] for name in _SUBSET if name in config and name != "label_noise"}
