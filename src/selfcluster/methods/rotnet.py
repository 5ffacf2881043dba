"""RotNet: predict by how many quarter turns an image was rotated.

Gidaris et al. 2018, arXiv 1803.07728, in ClusterFit's form (Yan et al. 2020, arXiv 1912.03330, appendix): one random
rotation an image, ResNet-50, 105 epochs, batches of 256, rate 0.1 divided by 10 every 30 epochs; the decay of 1e-4 is
its released recipe's. The recipe `rotnet_vgg16` is DeeperCluster's form (Caron et al. 2019, arXiv 1905.01278). B
images, V views, F features.
Departs: all four rotations of an image in one batch, the first paper's form, are a setting; images are flipped before
they are rotated, as in the first paper, where ClusterFit's released recipe flips afterwards (`rotate_first`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import torch
from torch import nn
from torch.nn import functional as F

from selfcluster.choice import RunSettings
from selfcluster.methods.base import MakeBackbone, Method, check_dropout, dropout_of
from selfcluster.setting import setting
from selfcluster.types import Batch, Crops, DatasetInfo, Output, Progress, Training
from selfcluster.views.augmentations import plan_from_crops
from selfcluster.views.plans import ViewPlan
from selfcluster.views.pretext import every_rotation

_TURNS = 4


@dataclass(frozen=True, kw_only=True)
class RotNetSettings:
    all_rotations: bool = setting(False, "show all four rotations of every image, in batches four times as large")
    rotate_first: bool = setting(
        False,
        "flip after the rotation, as VISSL did; 90 and 270 degrees cannot be told apart then: accuracy is at most 75 %",
    )
    dropout: float = setting(0.0, "dropout of the features before the classifier", least=0, most=1)
    network_dropout: float | None = setting(
        None, "dropout inside deepcluster_vgg16 and deepcluster_alexnet, instead of 0.5", least=0, most=1
    )


class RotNet(Method):
    Settings = RotNetSettings
    supports_accumulation = True
    advice = "Try a lower --learning-rate; images without an upright side (satellites, cells) cannot teach rotations."
    small = {"augment": "weak"}
    paper = Training(
        learning_rate=0.1,
        schedule="step",
        milestones=(30,),
        weight_decay=1e-4,
        epochs=105,
        batch_size=256,
        crops=Crops(global_crops=1, augment="weak"),
    )

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        check_dropout(settings)

    def __init__(self, make_backbone: MakeBackbone, settings: RotNetSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        self.backbone = make_backbone(**dropout_of(settings.network_dropout))
        self.classifier = nn.Linear(self.backbone.num_features, _TURNS)

    @classmethod
    def views(cls, settings: RotNetSettings, crops: Crops, channels: int) -> ViewPlan:
        plan = plan_from_crops(crops, channels)
        if settings.rotate_first:  # a rotated crop is cut like any other: only the flip's place tells the orders apart
            plan = replace(plan, groups=tuple(replace(group, flip_p=0.0) for group in plan.groups))
        return plan if settings.all_rotations else replace(plan, pretext="rotation")

    def chance_loss(self) -> float:
        return log(_TURNS)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        views, turns = batch.views, batch.pretext_labels.get("rotation")
        if self.settings.all_rotations:
            turned = [every_rotation(view) for view in views]
            views, turns = [view for view, _ in turned], turned[0][1]  # each (4 B, C, h, w), rotation after rotation
        assert turns is not None
        if self.settings.rotate_first:
            copies = len(turns) // len(batch.index)
            late = progress.uniform(batch.index, copies, "flip after rotating").t().flatten() < 0.5
            views = [torch.where(late[:, None, None, None], view.flip(3), view) for view in views]
        features = self.encode_views(views)  # (V * B, F), V * 4 B with all rotations
        seen = F.dropout(self.final_relu(features), self.settings.dropout, self.training)
        logits = self.classifier(seen).float()
        target = turns.repeat(len(views))
        right = (logits.argmax(dim=1) == target).float().mean()
        first = features[: len(batch.index)]
        return Output(F.cross_entropy(logits, target), log={"accuracy": right}, features=first)
