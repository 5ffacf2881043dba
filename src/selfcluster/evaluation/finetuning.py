"""Fine-tuning: train a network and a new classifier on labeled images, each with its own learning rate.

N images, B per batch, F features, L classes, S steps in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster import randomness
from selfcluster.data.loader import Loader
from selfcluster.data.sources import Source
from selfcluster.models.backbones import final_relu
from selfcluster.models.pretrained import Network
from selfcluster.training.features import network_loader, run_network
from selfcluster.training.precision import autocast, pick_device, pick_precision
from selfcluster.types import EpochPlan
from selfcluster.views.plans import ViewGroup, ViewPlan

Tuned = Literal["all", "fc", "head"]
_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is fine-tuned.

    `trunk_rate` and `head_rate` are for batches of `per` images and scale linearly with the batch size. `milestones`
    are epochs out of `epochs`; a run of another length places them at the same shares. `tune`: "all" parameters, the
    fully connected layers "fc" and the classifier, or the classifier ("head") alone. `frozen_norm`: batch norm keeps
    its statistics. `mixup`: MixUp (0.8) and CutMix (1.0) in turn, as DeiT. `clip` bounds the norm of the gradients.
    `scale`, `ratio`: of the random crops. `test_crops`: 1, the center, or 10.
    """

    epochs: int
    trunk_rate: float
    head_rate: float
    per: int = 256
    batch: int = 256
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = ()
    drop: float = 0.1
    warmup_epochs: int = 0
    tune: Tuned = "all"
    frozen_norm: bool = False
    dropout: float = 0.0
    smoothing: float = 0.0
    mixup: bool = False
    clip: float | None = None
    bias: float = 0.0
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] | None = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    test_crops: int = 1

    def factor(self, step: int, total: int) -> float:
        """Return the factor for the learning rates at a step."""
        if step * self.epochs < self.warmup_epochs * total:
            return (step + 1) * self.epochs / (self.warmup_epochs * total)
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * step / total)) / 2
        return self.drop ** sum(step * self.epochs >= m * total for m in self.milestones)


class Classifier(nn.Module):
    """Images (B, C, h, w) to scores (B, L): the network, dropout, and a linear layer with weights N(0, 0.01)."""

    def __init__(self, network: Network, classes: int, recipe: Recipe, seed: int, single: bool = True) -> None:
        super().__init__()
        self.single = single  # one label per image
        trunk = network.module
        self.trunk, self.dropout = trunk, nn.Dropout(recipe.dropout)
        self.head = nn.Linear(trunk.num_features, classes)
        generator = torch.Generator().manual_seed(randomness.key(seed, "linear probe") >> 1)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.constant_(self.head.bias, recipe.bias)
        self.tune: Tuned = "head" if recipe.trunk_rate == 0 else recipe.tune
        self.frozen_norm = recipe.frozen_norm or self.tune != "all"
        self.trunk.requires_grad_(self.tune == "all")
        for layer in _fully_connected(network) if self.tune == "fc" else ():
            layer.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad() if self.tune == "head" else nullcontext():
            features = final_relu(self.trunk, self.trunk(images))
        return self.head(self.dropout(features.float()))

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode. Parts that are not trained stay in evaluation mode."""
        super().train(mode)
        if self.tune == "head":
            self.trunk.eval()
        if self.frozen_norm:
            for module in self.trunk.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                    module.eval()
        return self


def fine_tune(
    network: Network, source: Source, targets: Tensor, recipe: Recipe, seed: int, embedding: Mapping[str, object]
) -> tuple[Classifier, float]:
    """Return the trained classifier and the loss of its last epoch.

    Args:
        network: becomes a part of the classifier, and its weights change.
        source: N images.
        targets: (N,) class positions; or (N, L) of 0 and 1; -1 is ignored.
        recipe: rates, schedule and length.
        seed: of the classifier, the crops and their order.
        embedding: device, precision, workers, max_bad and timeout, as of `embed_source`.
    """
    device = pick_device(str(embedding.get("device", "auto")))
    precision = pick_precision(str(embedding.get("precision", "auto")), device)
    several = targets.dim() == 2
    classes = targets.shape[1] if several else int(targets.max()) + 1
    model = Classifier(network, classes, recipe, seed, not several).to(device)
    loader = _loader(source, network, recipe.batch, device, seed, embedding)
    optimizer = _optimizer(model, recipe, loader.batch_size)
    rates = [group["lr"] for group in optimizer.param_groups]
    group = ViewGroup(size=network.image_size, scale=recipe.scale, ratio=recipe.ratio, flip_p=recipe.flip_p)
    plan, steps = ViewPlan(groups=(group,)), loader.steps_per_epoch
    total, losses = recipe.epochs * steps, [0.0]
    model.train()
    try:
        for epoch in range(recipe.epochs):
            losses = []
            for k, batch in enumerate(loader.batches(plan, EpochPlan(), epoch, 0, steps, epoch * steps)):
                step = epoch * steps + k
                factor = recipe.factor(step, total)
                for part, rate in zip(optimizer.param_groups, rates, strict=True):
                    part["lr"] = rate * factor
                y = targets[batch.index.cpu()].to(device)
                images, mixed = _mixed(batch.views[0], seed, step) if recipe.mixup else (batch.views[0], None)
                with autocast(device, precision):
                    scores = model(images)
                loss = _loss(scores.float(), y, mixed, recipe.smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if recipe.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                optimizer.step()
                losses.append(loss.detach())
                if step == 0 and not bool(loss.isfinite()):  # the new classifier's weights are small
                    raise ValueError("train: the network's features of some images are not finite")
            if not bool(torch.stack(losses).isfinite().all()):
                raise ValueError(
                    f"the loss is not finite in epoch {epoch + 1}; give a lower --trunk-rate or --head-rate"
                )
    finally:
        loader.close()
    return model, float(torch.stack([torch.as_tensor(loss) for loss in losses]).mean())


@torch.no_grad()
def predict(
    model: nn.Module, network: Network, source: Source, recipe: Recipe, embedding: Mapping[str, object]
) -> tuple[np.ndarray, Tensor]:
    """Return the positions (n,) of the images that could be read, in rising order, and their scores (n, ..., L).

    `model` gives scores (B, ..., L); its attribute `single` says whether an image has one label. The scores
    are float32 on the CPU. With ten crops they are the mean of the crops' probabilities, or of the crops' scores if an
    image has several labels.
    """
    device = next(model.parameters()).device
    precision = pick_precision(str(embedding.get("precision", "auto")), device)
    size, wide = network.image_size, network
    if recipe.test_crops == 10:  # 256 pixels for crops of 224
        wide = replace(network, image_size=round(size * 256 / 224), crop_pct=1.0)
    loader = _loader(source, wide, 256, device, 0, embedding)
    model.eval()
    rows, found = [], []
    try:
        for batch in loader.iterate_all():
            with autocast(device, precision):
                crops = ten_crops(batch.views[0], size) if wide is not network else (batch.views[0],)
                scores = [run_network(model, crop).float() for crop in crops]
            if len(scores) > 1 and model.single:
                scores = [part.softmax(dim=-1) for part in scores]
            rows.append(batch.index.cpu())
            found.append(torch.stack(scores).mean(dim=0).cpu())
    finally:
        loader.close()
    index = torch.cat(rows)
    order = index.argsort()
    return index[order].numpy(), torch.cat(found)[order]


def ten_crops(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the four corners and the center of images (B, C, h, w), each plain and flipped: (B, C, size, size)."""
    height, width = images.shape[-2:]
    bottom, right = height - size, width - size
    places = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    for top, left in places:
        crop = images[..., top : top + size, left : left + size]
        yield crop
        yield crop.flip(-1)


def _fully_connected(network: Network) -> list[nn.Module]:
    layers = [getattr(network.module, name) for name in ("fc6", "fc7") if hasattr(network.module, name)]
    if not layers:
        raise ValueError(
            f"--tune fc: {network.name} has no fully connected layers before its classifier; choose --tune all or head"
        )
    return layers


def _loader(
    source: Source, network: Network, batch: int, device: torch.device, seed: int, embedding: Mapping[str, object]
) -> Loader:
    chosen = {name: embedding[name] for name in ("workers", "max_bad", "timeout") if name in embedding}
    return network_loader(source, network, batch, device, seed=seed, **chosen)


def _optimizer(model: Classifier, recipe: Recipe, batch: int) -> torch.optim.Optimizer:
    scale = batch / recipe.per
    trunk = [p for p in model.trunk.parameters() if p.requires_grad]
    groups = [{"params": list(model.head.parameters()), "lr": recipe.head_rate * scale}]
    groups += [{"params": trunk, "lr": recipe.trunk_rate * scale}] if trunk else []
    if recipe.optimizer == "adamw":
        flat = [{**g, "params": [p for p in g["params"] if p.ndim < 2], "weight_decay": 0.0} for g in groups]
        deep = [{**g, "params": [p for p in g["params"] if p.ndim >= 2]} for g in groups]
        return torch.optim.AdamW([*deep, *flat], weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=_MOMENTUM, weight_decay=recipe.weight_decay)


def _loss(scores: Tensor, y: Tensor, mixed: float | None, smoothing: float) -> Tensor:
    """Cross-entropy; for several labels per image, the binary one summed over classes, as DeepCluster's on VOC."""
    if y.dim() == 2:
        known = (y >= 0).float()
        terms = F.binary_cross_entropy_with_logits(scores, y.clamp(min=0).float(), known, reduction="sum")
        return terms / len(y)
    loss = F.cross_entropy(scores, y, label_smoothing=smoothing)
    if mixed is None:
        return loss
    return mixed * loss + (1 - mixed) * F.cross_entropy(scores, y.flip(0), label_smoothing=smoothing)


def _mixed(images: Tensor, seed: int, step: int) -> tuple[Tensor, float]:
    """Mix each image with another one of the batch. Return the images, and the share that each keeps of itself."""
    rng = np.random.default_rng(randomness.key(seed, "mixup", step))
    if rng.random() < 0.5:
        share = float(rng.beta(0.8, 0.8))
        return images * share + images.flip(0) * (1 - share), share
    share, (height, width) = float(rng.beta(1.0, 1.0)), images.shape[-2:]
    tall, broad = (round(side * math.sqrt(1 - share)) for side in (height, width))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - broad + 1))
    images = images.clone()
    box = (..., slice(top, top + tall), slice(left, left + broad))
    images[box] = images.flip(0)[box]
    return images, 1 - tall * broad / (height * width)
