"""Linear classifiers trained by SGD on crops and flips of a frozen network: presets of the papers, and the training.

One classifier per depth of the network is trained, all on the same images at once. They do not affect each other.

N training images, B per batch, F features, L classes, D depths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster import randomness
from selfcluster.data.sources import Source
from selfcluster.models.backbones import Backbone
from selfcluster.models.depths import Depths, LastTokens, depths_of, has_class_token
from selfcluster.models.frozen import Frozen
from selfcluster.models.pretrained import Network
from selfcluster.training.features import network_loader
from selfcluster.training.precision import autocast, pick_device, pick_precision
from selfcluster.types import EpochPlan
from selfcluster.views.color import Color
from selfcluster.views.plans import ViewGroup, ViewPlan

ALL = "all"
_MOMENTUM, _DROP = 0.9, 0.1
_WIDE = 384  # features of ViT-S: DINO takes four blocks up to here, else one and the mean of its patches


@dataclass(frozen=True)
class Preset:
    """How a paper trains its probe.

    `rate` is for 256 images. `depth_rates` has one rate per depth, the first depth first; it is used for a network with
    as many depths. `schedule`: cosine or
    step by epoch, or inverse_sqrt by step (Bottou's). `norm`: batch norm before the classifier, its parameters without
    weight decay. `start`: weights N(0, 0.01) and bias 0, or torch's default. `area`: of the crops, as a share of the
    image; a fixed share is a square. `jitter`: of brightness, contrast and saturation.
    """

    epochs: int
    rate: float
    weight_decay: float
    schedule: Literal["cosine", "step", "inverse_sqrt"]
    milestones: tuple[int, ...] = ()
    nesterov: bool = False
    norm: Literal["none", "affine", "plain"] = "none"
    start: Literal["normal", "default"] = "normal"
    depth_rates: tuple[float, ...] = ()
    area: tuple[float, float] = (0.08, 1.0)
    jitter: float = 0.0
    test_crops: int = 1
    tokens: bool = False  # of a vision transformer: the class tokens of the last blocks


_RANDOM_CROP = ((224 / 256) ** 2, (224 / 256) ** 2)  # 224 pixels of an image whose shorter side has 256
_VGG16 = (0.005, 0.01, 0.03, 0.03, 0.03, 0.03, 0.02, 0.03, 0.03, 0.03, 0.02, 0.02, 0.02)
PRESETS = {
    "swav": Preset(100, 0.3, 1e-6, "cosine"),
    "dino": Preset(100, 0.001, 0.0, "cosine", tokens=True),
    "moco": Preset(100, 30.0, 0.0, "step", (60, 80)),
    "vissl": Preset(28, 0.01, 5e-4, "step", (8, 16, 24), nesterov=True, norm="affine"),
    "deepcluster": Preset(
        90, 0.01, 1e-4, "inverse_sqrt", start="default", area=_RANDOM_CROP, test_crops=10
    ),
    "deepercluster": Preset(100, 0.02, 1e-5, "inverse_sqrt", start="default", depth_rates=_VGG16),
    "odc": Preset(90, 0.01, 1e-4, "step", (30, 60, 90), nesterov=True, norm="plain", jitter=0.4),
}  # fmt: skip


def rate_at(preset: Preset, rate: float, epoch: int, epochs: int, step: int) -> float:
    """Return the learning rate of a step; milestones keep their share of the preset's length."""
    if preset.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if preset.schedule == "step":
        return rate * _DROP ** sum(epoch >= round(m * epochs / preset.epochs) for m in preset.milestones)
    return rate / math.sqrt(1 + rate * preset.weight_decay * step)  # Bottou 2012, as DeepCluster's released code


class Probe(nn.Module):
    """A map (B, C, g, g) to scores (B, L): batch norm of its channels if the paper has it, then a linear layer."""

    def __init__(self, shape: torch.Size, classes: int, preset: Preset, seed: int) -> None:
        super().__init__()
        self.norm = nn.Identity() if preset.norm == "none" else nn.BatchNorm2d(shape[1], affine=preset.norm == "affine")
        self.classifier = nn.Linear(shape[1:].numel(), classes)
        generator = torch.Generator().manual_seed(randomness.key(seed, "linear probe") >> 1)
        if preset.start == "normal":
            nn.init.normal_(self.classifier.weight, std=0.01, generator=generator)
            nn.init.zeros_(self.classifier.bias)
        else:
            bound = 1 / math.sqrt(self.classifier.in_features)  # as torch.nn.Linear draws both
            nn.init.uniform_(self.classifier.weight, -bound, bound, generator=generator)
            nn.init.uniform_(self.classifier.bias, -bound, bound, generator=generator)

    def forward(self, maps: Tensor) -> Tensor:
        return self.classifier(self.norm(maps).flatten(1))


class Probes(nn.Module):
    """A frozen network with a probe for each of its depths: images (B, C, h, w) to scores (B, D, L).

    Attributes:
        names: names of the D depths. If the network's features are probed, the only name is "features".
        shapes: shape of each depth's map.
    """

    single = True  # one label per image, read by `finetuning.predict`

    def __init__(self, network: Network, layer: str | None, last: int | None, preset: Preset, classes: int, seed: int):
        super().__init__()
        module: Any = network.module
        self.names = [layer or "features"]
        if layer == ALL:
            self.names = depths_of(module, last)
            self.extract: Any = Depths(module, self.names)
        elif layer is None and preset.tokens and has_class_token(module):
            small = module.num_features <= _WIDE
            self.extract = LastTokens(module, 4 if small else 1, not small)
        else:
            self.extract = _Rows(module, layer)
        with torch.no_grad():
            side, channels = network.image_size, len(network.mean)
            self.shapes = [part.shape for part in self.extract(torch.zeros(2, channels, side, side))]
        self.probes = nn.ModuleList(Probe(shape, classes, preset, seed) for shape in self.shapes)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.extract(images)
        return torch.stack([probe(part.float()) for probe, part in zip(self.probes, maps, strict=True)], dim=1)

    def groups(self, preset: Preset, rate: float | None) -> list[dict[str, Any]]:
        """Return the parameters with their rates for 256 images; norms have no weight decay."""
        own = preset.depth_rates if len(preset.depth_rates) == len(self.probes) else ()
        groups = []
        for d, probe in enumerate(self.probes):
            start = rate if rate is not None else own[d] if own else preset.rate
            groups.append({"params": list(probe.classifier.parameters()), "start": start})  # pyright: ignore
            groups.append({"params": list(probe.norm.parameters()), "start": start, "weight_decay": 0.0})  # pyright: ignore
        return [group for group in groups if group["params"]]


class _Rows(nn.Module):
    """The network's features, or a module's output averaged over places, as one map (B, F, 1, 1)."""

    def __init__(self, module: Backbone, layer: str | None) -> None:
        super().__init__()
        self.frozen = Frozen(module, layer=layer, flag="--layer")

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.frozen.features(images)[:, :, None, None]]


def train_probes(
    probes: Probes,
    network: Network,
    source: Source,
    targets: Tensor,
    preset: Preset,
    *,
    epochs: int,
    batch: int,
    rate: float | None,
    seed: int,
    embedding: Mapping[str, object],
) -> list[float]:
    """Train the probes in place; return the loss of each at the last step.

    Args:
        probes: around the network's module.
        network: the crops have its size, mean and std.
        source: N images.
        targets: (N,) class positions.
        preset: schedule, decay and crops.
        epochs, batch: passes over the images, and images a step.
        rate: for 256 images; None: the preset's.
        seed: of the crops and their order.
        embedding: device, precision, workers, max_bad and timeout, as of `embed_source`.
    """
    device = pick_device(str(embedding.get("device", "auto")))
    precision = pick_precision(str(embedding.get("precision", "auto")), device)
    chosen = {name: embedding[name] for name in ("workers", "max_bad", "timeout") if name in embedding}
    loader = network_loader(source, network, batch, device, seed=seed, **chosen)
    ratio = None if preset.area[0] == preset.area[1] else (3 / 4, 4 / 3)
    color = Color(jitter=(preset.jitter, preset.jitter, preset.jitter, 0.0), jitter_p=1.0) if preset.jitter else None
    color = color if len(network.mean) == 3 else None
    group = ViewGroup(size=network.image_size, scale=preset.area, ratio=ratio, color=color)
    plan, steps = ViewPlan(groups=(group,)), loader.steps_per_epoch
    probes.to(device).train()
    groups = probes.groups(preset, rate)
    optimizer = torch.optim.SGD(groups, 0.0, _MOMENTUM, weight_decay=preset.weight_decay, nesterov=preset.nesterov)
    losses = torch.zeros(len(probes.probes))
    try:
        for epoch in range(epochs):
            for k, views in enumerate(loader.batches(plan, EpochPlan(), epoch, 0, steps, epoch * steps)):
                for part in optimizer.param_groups:
                    part["lr"] = rate_at(
                        preset, part["start"] * loader.batch_size / 256, epoch, epochs, epoch * steps + k
                    )
                y = targets[views.index.cpu()].to(device)
                with autocast(device, precision), torch.no_grad():
                    maps = probes.extract(views.views[0])
                if not epoch + k and not all(part.isfinite().all() for part in maps):
                    raise ValueError("train: the network's features of some images are not finite")
                scores = [probe(part.float()) for probe, part in zip(probes.probes, maps, strict=True)]
                losses = torch.stack([F.cross_entropy(part, y) for part in scores])
                optimizer.zero_grad(set_to_none=True)
                losses.sum().backward()
                optimizer.step()
    finally:
        loader.close()
    return losses.detach().cpu().tolist()
