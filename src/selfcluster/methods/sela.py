"""SeLa: predict labels that are balanced over the whole set and reassigned a hundred times during training.

Asano et al. 2020, arXiv 1911.05371. B images, V views, F features of the backbone, N images in all, H
heads with K clusters each.
Departs: labels are made in the log domain, from features kept in float32 (released: probabilities in float64); images
that a reassignment did not see have no label; the default ResNet-50 has its norms behind its convolutions (released:
before, as in the recipe `sela_resnet50`); the run ends after its epochs, where the released code adds one. Of the
released learning rates, 0.08 by default and 0.05 in the instructions, the latter.
Settings of its CIFAR runs: 128 clusters, `sharpness` 10, `tolerance` 0.01, 400 optimizations, `quadratic` off,
`one_head` on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, log
from typing import Any

import torch
from torch import Tensor, nn

from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.balanced import balanced_assignment, balanced_labels
from selfcluster.distributed import all_gather
from selfcluster.methods.base import (
    Embed,
    MakeBackbone,
    Method,
    check_clusters,
    check_enough_images,
    clusters_from_data,
    labeled_cross_entropy,
    stability,
)
from selfcluster.setting import setting
from selfcluster.types import Assignment, Batch, Crops, DatasetInfo, Output, Progress, Training

_HELD = 1 << 28  # scores kept in memory for all passes of the assignment (1 GB); more are computed in each pass
_BLOCK = 1 << 22  # scores computed at a time otherwise


@dataclass(frozen=True, kw_only=True)
class SeLaSettings:
    num_prototypes: int = setting(3000, "K, clusters per head", least=2, auto=True)
    num_heads: int = setting(10, "H, independent labelings", least=1)
    num_optimizations: int = setting(100, "number of label assignments; the first is before the first step", least=1)
    quadratic: bool = setting(True, "assign labels often at first and seldom later; off: at equal intervals")
    one_head: bool = setting(False, "assign the labels of one head at a time, in turn, instead of all heads")
    sharpness: float = setting(25.0, "lambda, inverse entropy weight of the assignment, eq. 5", least=1e-4)
    tolerance: float = setting(0.1, "the assignment stops at this error, summed over all images", least=0)
    max_iter: int = setting(1000, "most iterations of the assignment", least=1)


class SeLa(Method):
    Settings = SeLaSettings
    per_image = ("labels",)
    supports_accumulation = True
    advice = "Try fewer --num-prototypes, more --num-optimizations, or a lower --learning-rate."
    paper = Training(
        optimizer="sgd",
        learning_rate=0.05,
        schedule="multistep",
        milestones=(150, 300, 350),
        weight_decay=1e-5,
        epochs=400,
        batch_size=256,
        crops=Crops(global_crops=1, augment="sela"),
    )
    small = {
        "num_heads": 4,
        "num_optimizations": 20,  # each costs a pass over the images
        "sharpness": 10.0,
        "max_iter": 100,  # cluster sizes are then equal to a few images
    }

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        check_clusters(settings["num_prototypes"], num_images)

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        return clusters_from_data(run)

    def __init__(self, make_backbone: MakeBackbone, settings: SeLaSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        n, k = data.num_samples, settings.num_prototypes
        check_enough_images(k, n)
        self.backbone = make_backbone()
        self.heads: Any = nn.ModuleList(nn.Linear(self.backbone.num_features, k) for _ in range(settings.num_heads))
        self.register_buffer("labels", torch.stack([balanced_labels(n, k) for _ in self.heads]))  # (H, N), -1 = none
        self.labels: Tensor

    def chance_loss(self) -> float:
        return log(self.settings.num_prototypes)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.encode_views(batch.views)  # (V * B, F)
        target = self.labels[:, batch.index].repeat(1, len(batch.views))  # (H, V * B), the same for every view
        seen = self.final_relu(features)
        losses = [labeled_cross_entropy(head(seen).float(), t) for head, t in zip(self.heads, target, strict=True)]
        first = features[: len(batch.index)]
        return Output(torch.stack(losses).mean(), features=first, codes=self.labels[0, batch.index])

    def should_reassign(self, progress: Progress) -> bool:
        return progress.step in self.schedule(progress)

    def schedule(self, progress: Progress) -> list[int]:
        """The steps before which labels are made, rising; the last lies behind the run's end, as in the paper."""
        span = progress.total_steps + 1.01 * progress.steps_per_epoch
        count, power = self.settings.num_optimizations, 2 if self.settings.quadratic else 1
        return sorted({ceil(span * (i / max(1, count - 1)) ** power) for i in range(count)})

    @torch.no_grad()
    def reassign(self, progress: Progress, embed: Embed) -> dict[str, float]:
        """Balanced labels from features of augmented images, by the network in training mode."""
        share = embed(lambda views: self.final_relu(self.backbone(views[0])), view="train", train=True)
        index = all_gather(share.index)
        turns = list(range(self.settings.num_heads))
        if self.settings.one_head and progress.step:
            turns = [self.schedule(progress).index(progress.step) % self.settings.num_heads]
        row_error, before = 0.0, self.labels[turns[0]].clone()
        for turn in turns:
            found = balanced_assignment(
                scores_of(self.heads[turn], share.rows),
                sharpness=self.settings.sharpness,
                tolerance=self.settings.tolerance,
                max_iter=self.settings.max_iter,
            )
            self.labels[turn] = -1
            self.labels[turn, index] = all_gather(found.labels)
            row_error = max(row_error, found.row_error)
        return {"row_error": row_error} | stability(before, self.labels[turns[0]])

    def pseudo_labels(self) -> Tensor:
        return self.labels[0]

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment:
        best, cluster = self.heads[0](self.final_relu(features)).float().softmax(dim=1).max(dim=1)
        return Assignment(cluster, 1 - best)


def scores_of(head: nn.Module, rows: Tensor, scale: float = 1.0) -> Tensor | Callable[[], Iterator[Tensor]]:
    """What `balanced_assignment` takes: `scale` times the head's scores of `rows` (n, F), or a stream of them."""
    clusters = head.weight.shape[0]  # pyright: ignore
    if len(rows) * clusters <= _HELD:
        return head(rows) * scale
    return lambda: (head(block) * scale for block in rows.split(max(1, _BLOCK // clusters)))
