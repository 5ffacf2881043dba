"""Jigsaw: predict which permutation shuffled the nine patches of an image.

Noroozi and Favaro 2016, arXiv 1603.09246, as ClusterFit's paper trains it (Yan et al. 2020, arXiv 1912.03330, appendix
A): 2,000 permutations that differ most, a ResNet on each patch alone, the nine features side by side. B images, V
views, C channels, p side of a patch, F features of the backbone, D projection of a patch, P permutations.
Departs: patches keep their own colors and scale (2016: each patch is normalized alone, so that colors do not reveal its
place; here 66 % of the images lose their colors instead, as in the later work); the square that is cut into patches has
255 of 256 parts of the shorter side (2016: all of it); half of the images are mirrored, as VISSL does (neither paper
says so: `flip`); batch-norm parameters decay as all others (VISSL: not).

A patch has 64/255 of the image's side. An image of 255 px gives patches of 64 px, and a ResNet's last feature map of a
patch has 2 x 2 positions. An image of 32 px gives patches of 8 px, and the last map of the `*_small` networks has one
position. These networks do not down-sample in the stem; a network that does needs larger images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster.methods.base import MakeBackbone, Method
from selfcluster.setting import setting
from selfcluster.types import Batch, Crops, DatasetInfo, Output, Progress, Training
from selfcluster.views.augmentations import plan_from_crops
from selfcluster.views.plans import ViewPlan
from selfcluster.views.pretext import CELLS


@dataclass(frozen=True, kw_only=True)
class JigsawSettings:
    num_permutations: int = setting(2000, "P, permutations of the nine patches to distinguish", least=1)
    hidden: int = setting(1000, "D, size of a patch's projection", least=1, auto=True)
    flip: bool = setting(True, "mirror half of the images, as in the released code; the papers do not mention it")


class Jigsaw(Method):
    Settings = JigsawSettings
    supports_accumulation = True
    advice = "Try fewer --num-permutations, a larger --image-size, or a lower --learning-rate."
    paper = Training(
        optimizer="sgd",
        learning_rate=0.1,
        schedule="multistep",
        milestones=(30, 60, 90),
        weight_decay=1e-4,
        epochs=105,
        batch_size=256,
        crops=Crops(global_crops=1, global_size=255, augment="jigsaw"),
    )
    small = {"hidden": 512, "num_permutations": 100, "augment": "jigsaw"}

    def __init__(self, make_backbone: MakeBackbone, settings: JigsawSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        self.backbone = make_backbone()
        self.projection: Any = nn.Sequential(
            nn.Linear(self.backbone.num_features, settings.hidden), nn.BatchNorm1d(settings.hidden), nn.ReLU()
        )
        self.classifier = nn.Linear(CELLS * settings.hidden, settings.num_permutations)

    @classmethod
    def views(cls, settings: JigsawSettings, crops: Crops, channels: int) -> ViewPlan:
        plan = plan_from_crops(crops, channels)
        if not settings.flip:
            plan = replace(plan, groups=tuple(replace(group, flip_p=0.0) for group in plan.groups))
        return replace(plan, pretext="jigsaw", permutations=settings.num_permutations)

    def chance_loss(self) -> float:
        return log(self.settings.num_permutations)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        label = batch.pretext_labels["jigsaw"]  # (B,), the same for every view of an image
        patches = [view.flatten(0, 1) for view in batch.views]  # each (B * 9, C, p, p)
        z = self.project_patches(self.encode_views(patches))  # (V * B * 9, D)
        logits = self.classifier(z.view(-1, CELLS * z.shape[1])).float()  # (V * B, P)
        target = label.repeat(len(batch.views))
        accuracy = (logits.argmax(dim=1) == target).float().mean()
        first = z.view(-1, CELLS, z.shape[1])[: len(label)].mean(dim=1)  # (B, D)
        return Output(F.cross_entropy(logits, target), log={"accuracy": accuracy.detach()}, features=first)

    def project_patches(self, features: Tensor) -> Tensor:
        """Features of patches (n, F) to projections (n, D)."""
        return self.projection(features)
