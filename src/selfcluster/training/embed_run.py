"""Make a run folder without training: embed images with a pretrained network.

The folder holds the same as a trained run's, without checkpoints and metrics: configuration, status, embeddings and the
network. The same call again reuses the embeddings, or continues if it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from selfcluster import __version__
from selfcluster.data.quarantine import may_have_passed, read_entries
from selfcluster.data.sources import Source
from selfcluster.files import message_of
from selfcluster.models.backbones import save_backbone
from selfcluster.models.origin import STARTER
from selfcluster.models.pretrained import Network, describe
from selfcluster.runs.console import Console
from selfcluster.runs.folder import RunError, RunFolder, is_run, is_unused, read_config, read_status
from selfcluster.runs.formats import FORMAT
from selfcluster.runs.tables import EMBEDDINGS, image_names, write_embeddings
from selfcluster.settings.files import default_out
from selfcluster.training.features import embed_source
from selfcluster.training.kept import KeptRows
from selfcluster.training.load import load_network
from selfcluster.training.start import absolute_word, command_line

_EVERY = 10.0  # seconds between lines of progress
_QUARANTINE, _KEPT = "quarantine.jsonl", "embedding"


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """How images are embedded; `None` leaves the choice to the network or the machine."""

    model: str = STARTER
    image_size: int | None = None
    batch_size: int = 256
    workers: int | None = None
    device: str = "auto"
    precision: str = "auto"
    max_bad: float = 0.01
    allow_partial: bool = False
    timeout: float = 600.0


def embed_run(
    path: Path | None, source: Source, settings: EmbedSettings, subset: Mapping[str, object], console: Console
) -> Path:
    """Embed the images of `source` into a run folder. If the folder has their embeddings by this network, do nothing.

    Args:
        path: the run folder; None: runs/cluster-DATANAME. The name of the network (if not the starter) and of the
            subset are added to that name.
        source: the images.
        settings: the network, and how to run it.
        subset: the subset options with which `source` was opened; written to the folder.
        console: prints progress.

    Returns:
        The run folder.

    Raises:
        RunError: the folder holds another run, other images, or another network's embeddings.
    """
    model = absolute_word(settings.model)
    path = _default_folder(source, settings.model, subset) if path is None else path
    if not is_run(path) and not is_unused(path):
        raise RunError(f"{path} is not empty and holds no run; choose another --out")
    if is_run(path) and _is_reusable(path, model, settings.image_size, source):
        console.say(f"{path} has the embeddings of {len(source):,} images by {settings.model}; they are used again")
        return path
    network = load_network(settings.model, settings.image_size, source, allow_partial=settings.allow_partial)
    console.say(f"embedding {len(source):,} images with {describe(network)}")
    folder = RunFolder(path)
    try:
        folder.write_config(_config(model, network, source, subset))
        folder.status("running")
        summary = _fill(path, source, network, settings, console)
        folder.status("finished", summary=summary)
    except BaseException as error:
        folder.status("failed", message=message_of(error))
        raise
    finally:
        folder.close()
    return path


def keep_command(path: Path) -> None:
    """Store the command line of this call in a run of `embed_run`: the page shows it as the way to its clusters."""
    config = read_config(path)
    about = {**config.get("about", {}), "command": command_line()}
    if about != config.get("about"):
        folder = RunFolder(path)
        try:
            folder.write_config({**config, "about": about})
        finally:
            folder.close()


def _fill(path: Path, source: Source, network: Network, settings: EmbedSettings, console: Console) -> dict[str, object]:
    started = time.monotonic()
    if any(may_have_passed(entry) for entry in read_entries(path / _QUARANTINE)):  # those images are read again
        shutil.rmtree(path / _KEPT, ignore_errors=True)
    kept = KeptRows(path / _KEPT, _key(path, network, settings))
    if not kept.batches:
        (path / _QUARANTINE).unlink(missing_ok=True)
    else:
        console.say(f"resuming after {len(kept.index):,} images that an interrupted run has embedded")
    index, vectors = embed_source(
        source,
        network,
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=settings.device,
        precision=settings.precision,
        max_bad=settings.max_bad,
        quarantine=path / _QUARANTINE,
        timeout=settings.timeout,
        on_batch=_Progress(len(source) - len(kept.index), console).add,
        kept=kept,
    )
    if not len(index):
        raise RunError(f"none of the {len(source):,} images in {source.where} can be read; see {path / _QUARANTINE}")
    ids, paths = image_names(source, index)
    save_backbone(path, network.module.cpu(), network.mean, network.std, network.image_size)
    write_embeddings(path / EMBEDDINGS, ids, paths, vectors)
    kept.remove()
    minutes = round((time.monotonic() - started) / 60, 2)
    console.say(f"embedded {len(index):,} images in {60 * minutes:.0f} s")
    return {
        "run": str(path),
        "model": settings.model,
        "images": len(index),
        "bad_images": len(source) - len(index),
        "features": vectors.shape[1],
        "embeddings": str(path / EMBEDDINGS),
        "minutes": minutes,
    }


class _Progress:
    """Print a line every ten seconds: images done, speed and remaining time."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console, self.done = total, console, 0
        self.started = self.shown = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown < _EVERY or self.done >= self.total:
            return
        self.shown = now
        speed = self.done / (now - self.started)
        left = (self.total - self.done) / speed
        self.console.say(f"  {self.done:,} of {self.total:,} images, {speed:,.0f} images/s, {left:,.0f} s left")


def _key(path: Path, network: Network, settings: EmbedSettings) -> str:
    """Return a hash of everything that the features depend on: configuration (with the images), device and weights."""
    config = read_config(path)
    about = {name: value for name, value in config["about"].items() if name != "command"}
    chosen = {"batch_size": settings.batch_size, "device": settings.device, "precision": settings.precision}
    found = hashlib.blake2b(json.dumps([{**config, "about": about}, chosen], sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.module.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _default_folder(source: Source, model: str, subset: Mapping[str, object]) -> Path:
    """Return the default folder. A subset gets a folder of its own, so that it does not block a run on all images."""
    folder = default_out("cluster", source)
    for name in ("limit", "classes", "long_tail"):
        if subset.get(name) is not None:
            word = Path(str(subset[name])).stem if name == "classes" else f"{subset[name]:g}"
            folder = folder.with_name(f"{folder.name}-{name.replace('_', '-')}-{word}")
    if model == STARTER:
        return folder
    word = Path(model.rpartition("=")[0] or model).stem if "/" in model else model.rpartition("=")[0] or model
    name = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in word)
    return folder.with_name(f"{folder.name}-{name}")


def _is_reusable(path: Path, model: str, image_size: int | None, source: Source) -> bool:
    """Whether the folder has the requested embeddings; raise RunError if it holds something else."""
    config = read_config(path)
    if config.get("method") is not None:
        raise RunError(f"{path} holds a run of {config['method']}; cluster it with: selfcluster cluster {path}")
    changed = source.difference(config["about"]["summary"])
    if changed:
        raise RunError(
            f"{path} holds the embeddings of other images: {changed}. Choose another --out, or remove the folder {path}"
        )
    if config["model"] != model:
        raise RunError(f"{path} holds embeddings by {config['model']}, not {model}; choose another --out")
    if image_size not in (None, config["image_size"]):
        raise RunError(
            f"{path} holds embeddings of images of {config['image_size']} px, not {image_size}; choose another --out"
        )
    return read_status(path).get("state") == "finished" and (path / EMBEDDINGS).is_file()


def _config(model: str, network: Network, source: Source, subset: Mapping[str, object]) -> dict[str, object]:
    about = {
        "format": FORMAT,
        "selfcluster": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "command": command_line(),
        "source": source.describe(),
        "summary": source.summary(),
        "input": {"architecture": network.name, **network.preprocessing.as_config()},
        "weights": network.load_report,
        "license": network.license,
    }
    values = source.value_range  # measured in a sample; a later command reads the values the same way
    return {
        "data": source.location,
        "model": model,
        "image_size": network.image_size,
        "channels": network.preprocessing.channels,
        **{name: value for name, value in subset.items() if value is not None},
        **({} if values is None else {"range": [values.low, values.high]}),
        "about": about,
    }
