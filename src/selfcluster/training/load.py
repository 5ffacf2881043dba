"""Load trained networks and methods from run folders, exports and timm names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import numpy as np
import torch

from selfcluster.choice import RunSettings
from selfcluster.data.sources import Source
from selfcluster.methods.base import Method
from selfcluster.models import pretrained
from selfcluster.models.backbones import ARCHITECTURE
from selfcluster.models.pretrained import Network, is_pretrained_word
from selfcluster.runs.checkpoint import is_whole, load, load_newest
from selfcluster.runs.folder import CHECKPOINTS, RunError, check_finished, is_run, read_status
from selfcluster.settings.files import run_config
from selfcluster.training.build import assemble
from selfcluster.training.finish import assign, in_parts
from selfcluster.training.shards import Shards
from selfcluster.training.start import summarize_data
from selfcluster.training.state import section

_LOG = logging.getLogger("selfcluster")


def load_network(
    model: str, image_size: int | None = None, source: Source | None = None, *, allow_partial: bool = False
) -> Network:
    """Return a network by one word: a run folder, or any word of `selfcluster.models.pretrained.load_network`.

    The plain name of a timm network means random weights, and a warning says so. Its size is `image_size`, else that of
    the images of `source`, at most 224 px; it has the channels of these images.
    """
    if Path(model).exists() and not (Path(model) / ARCHITECTURE).exists() and is_run(Path(model)):
        check_finished(Path(model))
    size, channels = image_size, 3
    if source is not None and not is_pretrained_word(model) and not model.startswith(pretrained.UNTRAINED):
        seen = summarize_data(source, {})
        size, channels = image_size or min(224, seen.side), seen.channels
    network = pretrained.load_network(model, image_size=size, channels=channels, allow_partial=allow_partial)
    if not network.trained and not model.startswith(pretrained.UNTRAINED):
        _LOG.warning("%s is not trained: its weights are random", model)
    return network


def checkpoints_of(run: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first; damaged ones are left out."""
    return [path for path in sorted((run / CHECKPOINTS).glob("step-*")) if is_whole(path)]


def trained_method(run: Path, path: Path | None = None) -> tuple[Method, torch.device]:
    """Return a run's method with the weights of a checkpoint, in evaluation mode, and its device.

    `path`: one of `checkpoints_of`; None: the newest.
    """
    config = run_config(run)
    loaded = load_newest(run / CHECKPOINTS)[0] if path is None else load(path)
    if loaded is None:
        raise RunError(f"{run} has no checkpoint, so the projection and the clusters of training cannot be read")
    # the checkpoint has every weight: a file that --init named may be gone by now
    settings = cast(RunSettings, {**config, "init": None})  # `run_config` has checked them
    parts = assemble(settings, config["about"]["source"]["images"], run)
    names = parts.method.state_dict().keys()
    stored = section(Shards(parts.method).load(loaded, {f"method.{name}" for name in names}), "method.")
    parts.method.load_state_dict({name: stored[name] for name in names})
    return parts.method.eval(), parts.loop.device


def has_method(run: Path) -> bool:
    """Whether the run trained a method; False if it only embedded images."""
    return run_config(run).get("method") is not None


def own_clusters(run: Path, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the clusters (n,) and distances (n,) that a run's method assigns to embedded images.

    If the run kept another network than the trained one, k-means makes the clusters.
    """
    if kept_other(run):
        return assign(None, vectors, torch.device("cpu"))
    method, device = trained_method(run)
    return assign(method, vectors, device)


def kept_other(run: Path) -> bool:
    """Whether the run kept its start, or the mean of start and end; the method's head does not fit these."""
    summary = read_status(run).get("summary", {})
    return summary.get("judgement", {}).get("kept", "end") != "end"


@torch.no_grad()
def projected(run: Path, vectors: np.ndarray) -> np.ndarray:
    """Return embedded images (n, F) in the space in which the run's method compares them, (n, D); see `Method.project`.

    The vectors are returned unchanged if the run trained no method, or if it kept another network than the trained one.
    """
    if not has_method(run) or kept_other(run):
        return vectors
    method, device = trained_method(run)
    return torch.cat(in_parts(method.project, vectors, device)).float().cpu().numpy()
