"""Supervised: predict the labels; a reference for the other methods.

Goyal et al. 2017, arXiv 1706.02677 (their schedule for ResNet-50). B images, V views, F features, T targets an image
(one head each), N images in all.
Departs: one rate and decay for all parameters; no zero scale at the end of a residual branch, as elsewhere here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfcluster.methods.base import MakeBackbone, Method, labeled_cross_entropy
from selfcluster.types import Assignment, Batch, Crops, DatasetInfo, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings:
    """None of its own: labels come with --labels-from."""


class Supervised(Method):
    Settings = SupervisedSettings
    per_image = ("labels",)
    supports_accumulation = True
    advice = "Try a lower --learning-rate, and check that --labels-from names the right labels."
    paper = Training(
        schedule="multistep",
        milestones=(30, 60, 80),
        warmup_epochs=5,
        epochs=90,
        crops=Crops(global_crops=1, augment="weak"),
    )

    def __init__(self, make_backbone: MakeBackbone, settings: Any, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        if data.targets is None:
            raise ValueError("there are no labels to learn from: say where they are with --labels-from")
        self.targets = data.targets
        self.backbone = make_backbone()
        self.heads: Any = nn.ModuleList(nn.Linear(self.backbone.num_features, k) for k in self.widths())
        self.register_buffer("labels", data.targets.clone())  # (T, N), -1 = none
        self.labels: Tensor

    def widths(self) -> list[int]:
        """What each head gives: a number a class."""
        return [int(row.max()) + 1 for row in self.targets]

    def chance_loss(self) -> float | None:
        """The entropy of the targets: what predicting their frequencies comes to, summed over heads."""
        counts = [torch.bincount(row[row >= 0]).double() for row in self.targets]
        return float(sum(torch.special.entr(n / n.sum()).sum() for n in counts))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.encode_views(batch.views)  # (V * B, F)
        outputs = [head(self.final_relu(features)).float() for head in self.heads]
        targets = self.labels[:, batch.index].repeat(1, len(batch.views))  # (T, V * B)
        loss = torch.stack(self.losses(outputs, targets, batch.views)).sum()
        images = len(batch.index)
        return Output(loss, features=features[:images], codes=self.codes(outputs[0][:images]))

    def losses(self, outputs: Sequence[Tensor], targets: Tensor, views: Sequence[Tensor]) -> list[Tensor]:
        """One loss a head: its `outputs` (V * B, K) against its row of `targets`."""
        return [labeled_cross_entropy(*pair) for pair in zip(outputs, targets, strict=True)]

    def codes(self, outputs: Tensor) -> Tensor | None:
        """The predicted classes (B,) of the first head."""
        return outputs.argmax(dim=1)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment | None:
        best, cluster = self.heads[0](self.final_relu(features)).float().softmax(dim=1).max(dim=1)
        return Assignment(cluster, 1 - best)
