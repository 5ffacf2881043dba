"""A linear classifier trained by SGD on crops and flips, the network frozen: the papers' linear probe.

Presets, each with its optimizer, schedule and batch: `swav` (Caron et al. 2020, arXiv 2006.09882, eval_linear), `dino`
(Caron et al. 2021, arXiv 2104.14294), `moco` (He et al. 2020, arXiv 1911.05722), `vissl` (Goyal et al. 2019,
arXiv 1905.01235), `deepcluster` (Caron et al. 2018, arXiv 1807.05520), `deepercluster` (Caron et al. 2019,
arXiv 1905.01278), `odc` (Zhan et al. 2020, arXiv 2006.10645, with OpenSelfSup's probe).
Departs: the last epoch is scored, where several released scripts report the best epoch on the test images. The test
view is one center crop; DeepCluster's ten crops are left out. Features are the network's, or those of `--layer`.

N training images, B of a batch, F features, L classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster import randomness
from selfcluster.data.loader import Loader
from selfcluster.data.sources import Source
from selfcluster.evaluation.labeled import labeled, positions, top
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.models.frozen import Frozen
from selfcluster.setting import setting
from selfcluster.training.precision import autocast, pick_device, pick_precision
from selfcluster.types import Crops, EpochPlan
from selfcluster.views.augmentations import plan_from_crops


@dataclass(frozen=True)
class Preset:
    """`rate` is for 256 images. `schedule`: cosine or step by epoch, or inverse_sqrt by step (Bottou's)."""

    epochs: int
    rate: float
    weight_decay: float
    schedule: Literal["cosine", "step", "inverse_sqrt"]
    milestones: tuple[int, ...] = ()
    nesterov: bool = False
    norm: Literal["none", "affine", "plain"] = "none"  # batch norm before the classifier


PRESETS = {
    "swav": Preset(100, 0.3, 1e-6, "cosine"),
    "dino": Preset(100, 0.001, 0.0, "cosine"),
    "moco": Preset(100, 30.0, 0.0, "step", (60, 80)),
    "vissl": Preset(28, 0.01, 5e-4, "step", (8, 16, 24), nesterov=True, norm="affine"),
    "deepcluster": Preset(90, 0.01, 1e-4, "inverse_sqrt"),
    "deepercluster": Preset(100, 0.01, 1e-5, "inverse_sqrt"),
    "odc": Preset(90, 0.01, 1e-4, "step", (30, 60), nesterov=True, norm="plain"),
}
_MOMENTUM, _DROP = 0.9, 0.1


@dataclass(frozen=True, kw_only=True)
class LinearSettings:
    preset: Literal["swav", "dino", "moco", "vissl", "deepcluster", "deepercluster", "odc"] = setting(
        "swav", "whose optimizer, schedule and length are used"
    )
    epochs: int | None = setting(None, "passes over the training images; default the preset's", least=1)
    learning_rate: float | None = setting(None, "for 256 images; default the preset's", least=0)
    probe_batch: int = setting(256, "images a step", least=2)


class Linear(Protocol):
    Settings = LinearSettings
    needs = ("network", "features")

    def run(self, subject: Subject, settings: LinearSettings) -> Result:
        preset = PRESETS[settings.preset]
        train, test = subject.parts
        source = subject.source("train").take(train.rows)
        labels = torch.as_tensor(source.labels)
        classes = labels[labels >= 0].unique()
        if len(classes) < 2:
            raise ValueError(f"train has {len(classes)} class: a classifier needs two")
        device = pick_device(str(subject.embedding.get("device", "auto")))
        network = subject.network(source)
        frozen = Frozen(network.module, layer=subject.layer).to(device)
        probe = _Probe(frozen.width, len(classes), preset.norm, subject.seed).to(device)
        epochs = settings.epochs or preset.epochs
        batches = _Crops(
            source.take(np.flatnonzero(labels.numpy() >= 0)), network, settings.probe_batch, device, subject
        )
        target = positions(classes, labels[labels >= 0])
        rate = (preset.rate if settings.learning_rate is None else settings.learning_rate) * batches.size / 256
        optimizer = torch.optim.SGD(
            probe.parameters(), rate, _MOMENTUM, weight_decay=preset.weight_decay, nesterov=preset.nesterov
        )
        precision = pick_precision(str(subject.embedding.get("precision", "auto")), device)
        loss = torch.zeros(())
        for epoch in range(epochs):
            for step, (views, index) in enumerate(batches.epoch(epoch)):
                done = epoch * batches.steps + step
                optimizer.param_groups[0]["lr"] = rate_at(preset, rate, epoch, epochs, done)
                with torch.no_grad(), autocast(device, precision):
                    rows = frozen.features(views).float()
                loss = F.cross_entropy(probe(rows), target[index.cpu()].to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        batches.close()
        queries, wanted = labeled(test.vectors, test.labels, "test")
        with torch.no_grad():
            scores = probe.eval()(queries.to(device)).cpu()
        wanted = positions(classes, wanted.cpu())
        numbers = {"top1": top(scores, wanted, 1)} | ({"top5": top(scores, wanted, 5)} if len(classes) > 5 else {})
        numbers |= {"loss": float(loss.detach()), "epochs": epochs, "classes": len(classes)}
        numbers |= {"n_train": len(target), "n_test": len(wanted)}
        return result_of("linear", numbers, subject, settings, notes=("The last epoch is scored.",))


def rate_at(preset: Preset, rate: float, epoch: int, epochs: int, step: int) -> float:
    """Return the learning rate of a step; milestones keep their share of the preset's length."""
    if preset.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if preset.schedule == "step":
        return rate * _DROP ** sum(epoch >= round(m * epochs / preset.epochs) for m in preset.milestones)
    return rate / math.sqrt(1 + rate * preset.weight_decay * step)  # Bottou 2012, as DeepCluster's released code


class _Probe(nn.Module):
    """A linear classifier, behind batch norm where a paper has it. Weights N(0, 0.01), bias 0."""

    def __init__(self, width: int, classes: int, norm: str, seed: int) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm == "none" else nn.BatchNorm1d(width, affine=norm == "affine")
        self.classifier = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(randomness.key(seed, "linear probe") >> 1)
        nn.init.normal_(self.classifier.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, rows: Tensor) -> Tensor:
        return self.classifier(self.norm(rows))


class _Crops:
    """Random crops and flips of the labeled images, an epoch at a time."""

    def __init__(self, source: Source, network, batch: int, device: torch.device, subject: Subject) -> None:
        images = network.preprocessing.loader_arguments()
        self.size = min(batch, len(source))
        self.loader = Loader(
            source, batch_size=self.size, **images, device=device, seed=subject.seed,
            workers=subject.embedding.get("workers"), max_bad=float(subject.embedding.get("max_bad", 0.01)),
        )  # fmt: skip
        self.steps = self.loader.steps_per_epoch
        crops = Crops(global_crops=1, global_size=network.image_size, augment="weak")
        self.plan = plan_from_crops(crops, len(network.mean))

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Views (B, C, h, w) and the images (B,) that they show."""
        first = epoch * self.steps
        batches = self.loader.batches(self.plan, EpochPlan(), epoch, 0, self.steps, first)
        for _ in range(self.steps):
            batch = next(batches)
            yield batch.views[0], batch.index
        next(batches, None)

    def close(self) -> None:
        self.loader.close()
