"""Open a run folder: write the configuration of a new run, resume an unfinished one, and refuse any other."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from selfcluster import __version__, distributed
from selfcluster.data.images import describe_images, remarks
from selfcluster.data.listing import passed_over
from selfcluster.data.sources import Source
from selfcluster.models.origin import STARTER, find_origin
from selfcluster.models.registration import check_name
from selfcluster.runs.checkpoint import load_newest, newest_settings
from selfcluster.runs.console import Console
from selfcluster.runs.folder import (
    CHECKPOINTS,
    START_SAMPLE,
    RunError,
    RunFolder,
    has_begun,
    is_run,
    is_unused,
    read_status,
)
from selfcluster.runs.formats import FORMAT
from selfcluster.setting import as_typed, in_words
from selfcluster.settings.files import deciding, run_config
from selfcluster.settings.options import FREE
from selfcluster.settings.recipes import DataSummary, warning_from_nothing
from selfcluster.settings.requirements import means_a_path, teachers_in
from selfcluster.settings.resolve import resolve, validated
from selfcluster.settings.schema import read_schema
from selfcluster.training.precision import pick_device
from selfcluster.training.state import DIVERGED
from selfcluster.training.targets import TARGETS_FILE


def open_run(
    path: Path,
    method: str,
    source: Source,
    recipe: str | None,
    from_file: Mapping[str, Any],
    given: Mapping[str, Any],
    console: Console,
    accept_data_change: bool = False,
) -> tuple[RunFolder, dict[str, Any]]:
    """Return the locked folder and the run's whole configuration.

    `accept_data_change`: resume although the data has changed; the change is written into `config.yaml`.

    Raises:
        RunError: the folder holds a run of another method, of other settings or of other data (each difference is
            named); another process holds it; or it cannot be written.
        ValueError: settings do not fit each other or the data.
    """
    note, warning = passed_over(source.passed)
    console.say(f"{len(source)} images in {source.where}" + note)
    if warning:
        console.warn(warning)
    if has_begun(path):
        stored = run_config(path)
        config, change = _same_run(path, stored, method, source, {**from_file, **given}, recipe)
        finished = read_status(path).get("state") == "finished"
        if change and (finished or not accept_data_change):
            ways = (
                "The run is finished. Choose another --out to train on the new data"
                if finished
                else "To resume, restore the data, or add --accept-data-change, which starts the current epoch again. "
                "To start a new run, choose another --out"
            )
            raise RunError(f"{path} started with other data: {change}. {ways}")
        folder = RunFolder(path, deciding(stored))
        if change:
            _accept(folder, source, stored, config, change)
        return folder, config
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another --out")
    if not is_run(path) and not is_unused(path):
        raise RunError(f"{path} is not empty and holds no run; choose another --out")
    recipe = recipe or "auto"
    given, start = _find_start(given, from_file, console)
    facts = summarize_data(source, given, console)
    if start:
        facts = replace(facts, start_size=start["input"]["input_size"][1])
    warning = warning_from_nothing(read_schema(method), facts, recipe, shlex.quote(source.where))
    if warning:
        console.warn(warning)
    resolved = resolve(method, facts, given, from_file, recipe)
    check_name(resolved.config["backbone"])
    about = {
        "format": FORMAT,
        "selfcluster": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "command": command_line(),
        "source": source.describe(),
        "summary": source.summary(),
        **start,
    }
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in resolved.config.items()}
    plain |= _absolute(plain)
    if source.value_range is not None:  # measured in a sample; a later command reads the values the same way
        plain["range"] = [source.value_range.low, source.value_range.high]
    config = {"method": method, "data": source.location, "recipe": recipe, **plain, "about": about}
    folder = RunFolder(path, deciding(config))
    for left in (TARGETS_FILE, "quarantine.jsonl"):  # of an attempt that failed before its first step
        (path / left).unlink(missing_ok=True)
    for left in ("before", DIVERGED):
        shutil.rmtree(path / left, ignore_errors=True)
    folder.write_config(config)
    if resolved.reasons:
        begin = "a trained network" if start else "random weights"
        console.say(f"settings that --recipe {recipe} chose for a run that starts from {begin}:")
    for name, reason in resolved.reasons.items():
        if resolved.config[name] is not None:
            console.say(f"  {as_typed(name, resolved.config[name])}: {reason}")
    return folder, config


def _find_start(
    given: Mapping[str, Any], from_file: Mapping[str, Any], console: Console
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the flags, completed by the network and channels of --init, and how that network's images are prepared."""
    flags = {**from_file, **given}
    init = flags.get("init")
    if init is None:
        return given, {}
    origin = find_origin(init, flags.get("backbone"))
    chosen = {"backbone": origin.name, "channels": origin.preprocessing.channels}
    chosen = {name: value for name, value in chosen.items() if flags.get(name) is None}
    for name, value in chosen.items():
        console.say(f"  {as_typed(name, value)}: taken from the network of --init {init}")
    return {**given, **chosen}, {"input": {"architecture": origin.name, **origin.preprocessing.as_config()}}


def summarize_data(source: Source, given: Mapping[str, Any], console: Console | None = None) -> DataSummary:
    """Return what a recipe needs: size and channels of a sample of the images, and whether there is a GPU."""
    seen = describe_images(source)
    notes, warnings = remarks(seen, source.where)
    gpu = pick_device(given.get("device") or "auto").type == "cuda"
    if console is not None:
        for note in notes:
            console.say(note)
        for warning in warnings:
            console.warn(warning)
    assert seen["side"] is not None  # or `remarks` would have raised
    return DataSummary(len(source), seen["side"][1], seen["channels"], gpu)


def _accept(folder: RunFolder, source: Source, stored: dict[str, Any], config: dict[str, object], change: str) -> None:
    """Write into `config.yaml` that the run resumes with changed data. The start is embedded again, with these images.

    `stored` is the content of `config.yaml`, and `config` the configuration of the resumed run.

    Raises:
        RunError: the weights of --init are gone, so the start cannot be embedded.
    """
    if stored.get("init") and not config.get("init"):
        folder.close()
        raise RunError(
            "--accept-data-change needs the start network again, but the file of --init is missing. Restore the file, "
            f"or choose another --out ({change})"
        )
    about = dict(stored["about"])
    about["source"], about["summary"] = source.describe(), source.summary()
    about["data_changes"] = [*about.get("data_changes", []), change]
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in stored.items()}
    folder.write_config({**plain, "about": about})
    config["about"] = about
    (folder.path / START_SAMPLE).unlink(missing_ok=True)


def _same_run(
    path: Path,
    stored: Mapping[str, Any],
    method: str,
    source: Source,
    given: Mapping[str, object],
    recipe: str | None,
) -> tuple[dict[str, object], str]:
    """Return the run's stored configuration with today's free settings, and in words what has changed in its data."""
    config = dict(stored)
    if config.get("method") != method:
        raise RunError(f"{path} holds a run of {config.get('method')}, not {method}; choose another --out")
    if recipe not in (None, config.get("recipe")):
        have = config.get("recipe")
        raise RunError(
            f"{path} holds a run of --recipe {have}, not {recipe}; leave --recipe out to resume that run, or choose "
            "another --out"
        )
    wanted = validated(method, given)
    wanted |= _absolute(wanted)
    changed = [n for n, value in wanted.items() if n not in FREE and value != config[n]]
    if changed:
        differences = "; ".join(
            f"--{n.replace('_', '-')} was {in_words(config[n])} and is now {in_words(wanted[n])}" for n in changed
        )
        raise RunError(
            f"{path} holds a run with other settings: {differences}. Leave these flags out to resume, or "
            "choose another --out"
        )
    _check_unedited(path, deciding(config))
    change = source.difference(config["about"]["summary"])
    if config.get("init") and not Path(config["init"]).exists() and load_newest(path / CHECKPOINTS)[0] is not None:
        config["init"] = None  # the file is gone, but the checkpoint has every weight
    return {**config, **{name: value for name, value in wanted.items() if name in FREE}}, change


def _check_unedited(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise RunError if `config.yaml` and the newest checkpoint have different settings."""
    before = newest_settings(path / CHECKPOINTS)
    edited = [name for name in before if name in settings and settings[name] != before[name]]
    if edited:
        differences = "; ".join(
            f"{name} was {in_words(before[name])} and is now {in_words(settings[name])}" for name in edited
        )
        raise RunError(
            f"{path / 'config.yaml'} was edited after the run began: {differences}. Restore it, or choose another --out"
        )


def command_line() -> str:
    """Return the command line that repeats this call."""
    program, words = Path(sys.argv[0]).name, sys.argv[1:]
    if program == "selfcluster":
        return shlex.join(["selfcluster" if shutil.which("selfcluster") == sys.argv[0] else sys.argv[0], *words])
    if program == "__main__.py":
        start = ["python"] if distributed.world_size() == 1 else _torchrun()
        return shlex.join([*start, "-m", "selfcluster", *words])
    return f"python {shlex.join(sys.argv)}" if program else "selfcluster.train, from Python"


def _torchrun() -> list[str]:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    machines = distributed.world_size() // here
    return ["torchrun", *(["--nnodes", str(machines)] if machines > 1 else []), "--nproc-per-node", str(here)]


def _absolute(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return absolute paths of files and folders, because the run may be resumed from another folder."""
    whole = {"init": absolute_word(config["init"])} if config.get("init") is not None else {}
    for name in ("labels_from", "probe_labels", "classes"):
        if config.get(name) and Path(config[name]).is_file():
            whole[name] = str(Path(config[name]).resolve())
    if config.get("teacher"):
        whole["teacher"] = ",".join(absolute_word(name) for name in teachers_in(config["teacher"]))
    return whole


def absolute_word(name: str) -> str:
    """Return PATH or NETWORK=PATH with an absolute path; a network's name is returned unchanged."""
    if name != STARTER and Path(name).exists():
        return str(Path(name).resolve())
    network, equals, file = name.rpartition("=")
    is_path = Path(file).exists() or means_a_path(file)  # also for a file that is gone
    return f"{network}{equals}{Path(file).resolve()}" if is_path else name
