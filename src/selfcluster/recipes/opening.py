"""Opening a run folder: a new run gets its configuration, an unfinished one goes on, another one is refused."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfcluster import __version__
from selfcluster.data.images import describe_images
from selfcluster.data.sources import Source
from selfcluster.methods.base import Method
from selfcluster.methods.schema import read_schema
from selfcluster.models.backbones import check_name, load_backbone, make_backbone
from selfcluster.models.folding import full_name
from selfcluster.recipes.assemble import NORMALIZATION, assemble
from selfcluster.recipes.named import RECIPES, DataSummary
from selfcluster.recipes.needs import means_a_path, teachers_in
from selfcluster.recipes.options import FREE, check_names, checked, options_for
from selfcluster.recipes.resolve import resolve
from selfcluster.recipes.targets import TARGETS_FILE
from selfcluster.training.checkpoint import load_newest
from selfcluster.training.console import Console
from selfcluster.training.finish import assign, in_parts
from selfcluster.training.precision import pick_device
from selfcluster.training.runs import RunError, RunFolder, check_finished, has_begun, is_run, read_config
from selfcluster.training.shards import Shards
from selfcluster.training.state import section

_DARK = 0.1  # share of nearly black images from which on it is said


def open_run(
    path: Path,
    method: str,
    source: Source,
    recipe: str | None,
    from_file: Mapping[str, Any],
    given: Mapping[str, Any],
    console: Console,
) -> tuple[RunFolder, dict[str, Any]]:
    """The locked folder and the run's whole configuration.

    Raises RunError where the folder holds a run of another method, other settings or other data (each difference is
    named), where another process holds it or it cannot be written, and ValueError for settings that make no sense.
    """
    passed_over = source.describe().get("passed_over")
    if passed_over:
        left_out = ", ".join(f"{count} {what}" for what, count in passed_over.items())
        console.say(f"{len(source)} images in {source.where}; passed over: {left_out}")
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"no recipe named {recipe!r}; there are {', '.join(RECIPES)}")
    if has_begun(path):
        config = _same_run(path, method, source, {**from_file, **given}, recipe)
        return RunFolder(path), config
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another --out")
    if not is_run(path) and path.exists() and any(p.name != ".lock" for p in path.iterdir()):
        raise RunError(f"{path} is not empty and holds no run; choose another --out")
    recipe = recipe or "auto"
    given = _with_start(given, from_file, console)
    resolved = resolve(method, summarize_data(source, given, console), given, from_file, recipe)
    check_name(resolved.config["backbone"])
    folder = RunFolder(path)
    about = {
        "selfcluster": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "command": _command(),
        "source": source.describe(),
        "summary": source.summary(),
    }
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in resolved.config.items()}
    plain |= _absolute(plain)
    config = {"method": method, "data": _where(source), "recipe": recipe, **plain, "about": about}
    for left in (TARGETS_FILE, "quarantine.jsonl"):  # of an attempt that failed before its first step
        (path / left).unlink(missing_ok=True)
    shutil.rmtree(path / "before", ignore_errors=True)
    folder.write_config(config)
    for name, reason in resolved.reasons.items():
        if resolved.config[name] is not None:
            console.say(f"  --{name.replace('_', '-')} {_words(resolved.config[name])}: {reason}")
    return folder, config


def _with_start(given: Mapping[str, Any], from_file: Mapping[str, Any], console: Console) -> Mapping[str, Any]:
    """With the network of the run or exported backbone that --init names, where none is asked for."""
    init = given.get("init", from_file.get("init"))
    if init is None:
        return given
    if not Path(init).exists():
        raise ValueError(f"--init {init}: there is no such run, exported backbone or file of weights")
    architecture = Path(init) / "backbone.json"
    if "backbone" in given or "backbone" in from_file or not architecture.is_file():
        return given
    network = full_name(json.loads(architecture.read_text()))
    console.say(f"  --backbone {network}: that of --init {init}")
    return {**given, "backbone": network}


def summarize_data(source: Source, given: Mapping[str, Any], console: Console | None = None) -> DataSummary:
    """What the recipe reads: sizes and channels of a sample of the images, and whether there is a GPU."""
    seen = describe_images(source)
    gpu = pick_device(given.get("device") or "auto").type == "cuda"
    if console is not None and seen["dark"] > _DARK * seen["sampled"]:
        console.warn(
            f"{seen['dark']} of {seen['sampled']} images looked at are nearly black. Files of 16 bits that hold 12 "
            "or fewer are; bring their values to the whole range, or nothing can be seen in them"
        )
    if seen["side"] is None:
        raise RunError(f"none of {seen['sampled']} images looked at in {source.where} can be read")
    return DataSummary(len(source), seen["side"][1], seen["channels"], gpu)


def load_network(
    run: str, image_size: int | None, source: Source | None = None
) -> tuple[Any, Sequence[float], Sequence[float], int]:
    """The network of a run folder, an exported backbone or a timm name, with its mean, std and image size.

    A timm name is a network without training, in the image size asked for or else the images' own; without a `source`
    it is for color images of 224 px.
    """
    if Path(run).exists():
        if not (Path(run) / "backbone.json").exists():
            check_finished(Path(run))
        return load_backbone(Path(run))
    if means_a_path(run):
        raise RunError(f"there is no {run}; give a run folder, an exported backbone or the name of a network of timm's")
    seen = None if source is None else summarize_data(source, {})
    side, channels = (224, 3) if seen is None else (min(224, seen.side), seen.channels)
    size = image_size or side
    mean, std = NORMALIZATION[channels]
    network = make_backbone(run, channels=channels, image_size=size, mean=mean, std=std)
    print(f"selfcluster: {run} is not trained: its weights are random", file=sys.stderr)
    return network, mean, std, size


def trained_method(run: Path) -> tuple[Method, torch.device]:
    """The method of a run with the weights of its newest checkpoint, in evaluation mode, and its device."""
    config = read_config(run)
    loaded, _ = load_newest(run / "checkpoints")
    if loaded is None:
        raise RunError(f"{run} has no checkpoint to read the method's own projection and clusters from")
    # the checkpoint has every weight: a file that --init named may be gone by now
    parts = assemble({**config, "init": None}, config["about"]["source"]["images"], run)
    names = parts.method.state_dict().keys()
    stored = section(Shards(parts.method).load(loaded, {f"method.{name}" for name in names}), "method.")
    parts.method.load_state_dict({name: stored[name] for name in names})
    return parts.method.eval(), parts.loop.device


def own_clusters(run: Path, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The clusters that a run's method gives to embedded images: (n,) and the distances (n,)."""
    method, device = trained_method(run)
    return assign(method, vectors, device)


@torch.no_grad()
def projected(run: Path, vectors: np.ndarray) -> np.ndarray:
    """Embedded images (n, F) as the run's method compares them, (n, D); see `Method.project`."""
    method, device = trained_method(run)
    return torch.cat(in_parts(method.project, vectors, device)).float().cpu().numpy()


def _same_run(path: Path, method: str, source: Source, given: Mapping[str, Any], recipe: str | None) -> dict[str, Any]:
    config = read_config(path)
    if config.get("method") != method:
        raise RunError(f"{path} holds a run of {config.get('method')}, not {method}; choose another --out")
    if recipe not in (None, config.get("recipe")):
        have = config.get("recipe")
        raise RunError(f"{path} holds a run of --recipe {have}, not {recipe}; choose another --out, or leave it out")
    options = options_for(read_schema(method))
    check_names(given, options)
    wanted = {name: checked(options[name], value) for name, value in given.items()}
    wanted |= _absolute(wanted)
    have = {name: checked(options[name], config.get(name)) for name in wanted}
    changed = [n for n, value in wanted.items() if n not in FREE and value != have[n]]
    if changed:
        differences = "; ".join(f"--{n.replace('_', '-')} was {have[n]} and is now {wanted[n]}" for n in changed)
        raise RunError(
            f"{path} holds a run with other settings: {differences}. Choose another --out, or leave them out"
        )
    difference = source.difference(config["about"]["summary"])
    if difference:
        raise RunError(f"{path} was begun on other data: {difference}. Choose another --out, or restore the data")
    if config.get("init") and not Path(config["init"]).exists() and load_newest(path / "checkpoints")[0] is not None:
        config["init"] = None  # gone by now, and the checkpoint has every weight
    return {**config, **{name: value for name, value in wanted.items() if name in FREE}}


def _command() -> str:
    """What to type for the same again."""
    program = Path(sys.argv[0]).name
    if program in ("selfcluster", "__main__.py"):
        return shlex.join(sys.argv)
    return f"python {shlex.join(sys.argv)}" if program else "selfcluster.train, from Python"


def _absolute(config: Mapping[str, Any]) -> dict[str, Any]:
    """Files and folders by their whole paths: the run may go on from another folder."""
    whole = {"init": str(Path(config["init"]).resolve())} if config.get("init") is not None else {}
    for name in ("labels_from", "classes"):
        if config.get(name) and Path(config[name]).is_file():
            whole[name] = str(Path(config[name]).resolve())
    if config.get("teacher"):
        whole["teacher"] = ",".join(_absolute_teacher(name) for name in teachers_in(config["teacher"]))
    return whole


def _absolute_teacher(name: str) -> str:
    """PATH or NETWORK=PATH with its whole path; the name of a network as it is."""
    if Path(name).exists():
        return str(Path(name).resolve())
    network, equals, file = name.rpartition("=")
    is_path = Path(file).exists() or means_a_path(file)  # a teacher that is gone keeps its name
    return f"{network}{equals}{Path(file).resolve()}" if is_path else name


def _where(source: Source) -> str:
    return source.where if source.kind in ("array", "builtin") else str(Path(source.where).resolve())


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_words(part) for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
