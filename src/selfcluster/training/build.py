"""From a flat configuration to the objects of a run: the method, its views, the loop's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import gcd
from pathlib import Path
from typing import Any

import torch

from selfcluster import distributed, randomness
from selfcluster.choice import RunSettings
from selfcluster.methods import METHODS
from selfcluster.methods.base import Method
from selfcluster.models.backbones import make_backbone, probe
from selfcluster.models.folding import full_name
from selfcluster.models.origin import find_origin
from selfcluster.models.preprocessing import Preprocessing, default_preprocessing, from_config, recolored, resized
from selfcluster.training.freezing import freeze
from selfcluster.training.loop import LoopSettings
from selfcluster.training.precision import pick_device, pick_precision
from selfcluster.training.targets import read_targets, teachers_of
from selfcluster.types import Crops, DatasetInfo, Training
from selfcluster.views.plans import ViewPlan
from selfcluster.views.pretext import patch_side


@dataclass(frozen=True)
class Parts:
    """What `fit` needs beside the loader.

    `images`: how the network's images are prepared. `notes`: remarks for the user about how the network was made.
    """

    method: Method
    views: ViewPlan
    loop: LoopSettings
    images: Preprocessing
    notes: list[str]


def assemble(config: RunSettings, num_images: int, run: Path | None = None) -> Parts:
    """Build method, views and loop settings; the network's first weights depend on the seed alone.

    `run`: the folder with the targets, for a method that learns given targets.
    """
    kind = METHODS[config["method"]]
    settings = kind.Settings(**{f.name: config[f.name] for f in fields(kind.Settings)})
    crops = Crops(global_size=config["image_size"], **_named(Crops, config, "global_size"))
    training = Training(crops=crops, per=config["batch_size"], **_named(Training, config, "crops", "per"))
    device = pick_device(config["device"])
    views = kind.views(settings, crops, config["channels"])
    images = run_preprocessing(config)
    if config["init"] is not None:  # views are resized as the start network's images are
        groups = tuple(replace(group, interpolation=images.interpolation) for group in views.groups)
        views = replace(views, groups=groups)
    origin = None if config["init"] is None else find_origin(config["init"], config["backbone"])
    name = config["backbone"]
    if has_start(config) and config["about"]["input"]["architecture"] == f"{name}_small":
        name = f"{name}_small"  # with the start network's stem
    notes: list[str] = []
    smaller = {f"views of --local-size {config['local_size']}": config["local_size"]} if config["local_crops"] else {}
    if views.pretext == "jigsaw":
        side = patch_side(config["image_size"])
        smaller[f"the patches of {side} px that --image-size {config['image_size']} gives"] = side

    def backbone(**create: Any) -> Any:
        create["sobel"] = config["sobel"] and kind.edge_border
        if config.get("patch_size") is not None:  # a run of an older release has no such setting
            create["patch_size"] = config["patch_size"]
        if origin is None:
            module = make_backbone(
                name,
                channels=config["channels"],
                image_size=config["image_size"],
                preprocessing=images if has_start(config) else None,
                **create,
            )
        else:
            module = origin.make(
                image_size=config["image_size"],
                channels=config["channels"],
                name=name,
                allow_partial=config.get("allow_partial", False),
                **create,
            )
        for what, side in smaller.items():
            try:  # an error should come before the run, not in its first step
                probe(module, config["channels"], side)
            except ValueError as error:
                raise ValueError(f"--backbone {config['backbone']} cannot process {what}: {error}") from error
        made = full_name(module.spec)
        if made != config["backbone"]:
            notes.append(f"{config['backbone']} becomes {made} for images of {config['image_size']} px")
        notes.extend([module.load_report] if module.load_report else [])
        return module

    targets, teachers = read_targets(run, num_images), teachers_of(config, images.mean, images.std)
    torch.manual_seed(randomness.key(config["seed"], "weights") >> 1)
    world = distributed.world_size()
    if config["accumulate"] > 1 and config["batch_size"] % (config["accumulate"] * world):
        raise ValueError(
            f"--batch-size {config['batch_size']} must be a multiple of --accumulate {config['accumulate']} "
            f"times {world} processes, {config['accumulate'] * world}"
        )
    count = gcd(kind.shards(settings), world)
    shard = (distributed.rank() * count // world, count)
    info = DatasetInfo(
        num_images, config["image_size"], config["channels"], targets=targets, teacher=teachers, shard=shard
    )
    method = kind(backbone, settings, info)
    frozen = freeze(method, config.get("freeze_norm", "no"), config.get("freeze_layers", 0.0))
    notes.extend([f"frozen in the backbone: {frozen}"] if frozen else [])
    method = method.to(device)
    method.to(memory_format=torch.channels_last)
    loop = LoopSettings(
        training=training,
        device=device,
        precision=pick_precision(config["precision"], device),
        **_named(LoopSettings, config, "training", "device", "precision", "max_skipped"),
    )
    return Parts(method, views, loop, images, list(dict.fromkeys(notes)))  # a method may build two networks


def has_start(config: RunSettings) -> bool:
    """Whether the run began with a network's weights, even if their file is gone now."""
    return "input" in config.get("about", {})


def run_preprocessing(config: RunSettings) -> Preprocessing:
    """Return how a run's images are prepared: as the start network needs them, else as our own networks do."""
    size, channels = config["image_size"], config["channels"]
    if not has_start(config):
        return default_preprocessing(channels, size)
    return recolored(resized(from_config(config["about"]["input"]), size), channels)


def _named(kind: type, config: Mapping[str, object], *without: str) -> dict[str, Any]:
    """Return values for the fields of a dataclass. Fields that an older release's configuration lacks are left out."""
    return {f.name: config[f.name] for f in fields(kind) if f.name not in without and f.name in config}
