"""Trained networks and methods, loaded from run folders, exports and timm names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfcluster.data.sources import Source
from selfcluster.methods.base import Method
from selfcluster.models.backbones import load_backbone, make_backbone
from selfcluster.runs.checkpoint import load_newest
from selfcluster.runs.folder import RunError, check_finished, read_config
from selfcluster.settings.requirements import means_a_path
from selfcluster.training.build import NORMALIZATION, assemble
from selfcluster.training.finish import assign, in_parts
from selfcluster.training.shards import Shards
from selfcluster.training.start import summarize_data
from selfcluster.training.state import section


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
