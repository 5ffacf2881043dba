"""From a flat configuration to the objects of a run: the method, its views, the loop's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import gcd
from pathlib import Path
from typing import Any

import torch

from selfcluster import distributed, randomness
from selfcluster.methods import METHODS
from selfcluster.methods.base import Method
from selfcluster.models.backbones import make_backbone, probe
from selfcluster.models.folding import full_name
from selfcluster.training.loop import LoopSettings
from selfcluster.training.precision import pick_device, pick_precision
from selfcluster.training.targets import read_targets, teachers_of
from selfcluster.types import Crops, DatasetInfo, Training
from selfcluster.views.plans import ViewPlan
from selfcluster.views.pretext import patch_side

# of pixels in [0, 1]: ImageNet's for color, as the published weights have it; gray is centered
NORMALIZATION = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.5,), (0.5,))}


@dataclass(frozen=True)
class Parts:
    """What `fit` needs beside the loader. `notes`: what the user should know of how it was made."""

    method: Method
    views: ViewPlan
    loop: LoopSettings
    notes: list[str]


def assemble(config: Mapping[str, Any], num_images: int, run: Path | None = None) -> Parts:
    """Build method, views and loop settings; the network's first weights depend on the seed alone.

    `run`: the folder that holds the targets of a method that learns from given ones.
    """
    kind = METHODS[config["method"]]
    settings = kind.Settings(**{f.name: config[f.name] for f in fields(kind.Settings)})
    crops = Crops(global_size=config["image_size"], **_named(Crops, config, "global_size"))
    training = Training(crops=crops, per=config["batch_size"], **_named(Training, config, "crops", "per"))
    device = pick_device(config["device"])
    views = kind.views(settings, crops, config["channels"])
    mean, std = NORMALIZATION[config["channels"]]
    notes: list[str] = []
    smaller = {f"views of --local-size {config['local_size']}": config["local_size"]} if config["local_crops"] else {}
    if views.pretext == "jigsaw":
        side = patch_side(config["image_size"])
        smaller[f"the patches of {side} px that --image-size {config['image_size']} gives"] = side

    def backbone(**create: Any) -> Any:
        module = make_backbone(
            config["backbone"],
            channels=config["channels"],
            image_size=config["image_size"],
            init=config["init"],
            sobel=config["sobel"] and kind.edge_border,
            mean=mean,
            std=std,
            **create,
        )
        for what, side in smaller.items():
            try:  # said before the run, not in its first step
                probe(module, config["channels"], side)
            except ValueError as error:
                raise ValueError(f"--backbone {config['backbone']} cannot see {what}: {error}") from error
        name = full_name(module.spec)
        if name != config["backbone"]:
            notes.append(f"{config['backbone']} becomes {name} for images of {config['image_size']} px")
        notes.extend([module.load_report] if module.load_report else [])
        return module

    targets, teachers = read_targets(run, num_images), teachers_of(config, mean, std)
    torch.manual_seed(randomness.key(config["seed"], "weights") >> 1)
    world = distributed.world_size()
    if config["accumulate"] > 1 and config["batch_size"] % (config["accumulate"] * world):
        raise ValueError(
            f"--batch-size {config['batch_size']} does not divide by --accumulate {config['accumulate']} "
            f"times {world} processes"
        )
    count = gcd(kind.shards(settings), world)
    shard = (distributed.rank() * count // world, count)
    info = DatasetInfo(
        num_images, config["image_size"], config["channels"], targets=targets, teacher=teachers, shard=shard
    )
    method = kind(backbone, settings, info)
    method = method.to(device)
    method.to(memory_format=torch.channels_last)
    loop = LoopSettings(
        training=training,
        device=device,
        precision=pick_precision(config["precision"], device),
        **_named(LoopSettings, config, "training", "device", "precision", "max_skipped"),
    )
    return Parts(method, views, loop, list(dict.fromkeys(notes)))  # a method may build two networks


def _named(kind: type, config: Mapping[str, Any], *without: str) -> dict[str, Any]:
    return {f.name: config[f.name] for f in fields(kind) if f.name not in without}
