"""ClusterFit: a new network predicts the clusters of a trained network's features.

Yan et al. 2020, arXiv 1912.03330. B images, V views, F features, T teachers (one head each), K clusters, N images.
What a head learns (`target`) is made once, before the first step (`recipes/targets.py`): k-means of the teacher's
l2-normalized features of center crops, or one of the paper's comparisons. Distillation and regression ask the teacher
at each step, about the very views that the new network sees.
Departs: distillation multiplies its soft term by the squared temperature, as Hinton et al. (arXiv 1503.02531) do and
the paper does not say: at 20 that term would vanish. The paper does not give the regression's loss: here it is the
squared distance to the unit feature. Rates are one for all parameters (released: no decay of batch norm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.choice import Choice, RunShape
from selfcluster.methods.base import MakeBackbone, check_clusters, clusters_from_data
from selfcluster.methods.supervised import Supervised
from selfcluster.setting import setting
from selfcluster.types import Assignment, Crops, DatasetInfo, Training


@dataclass(frozen=True, kw_only=True)
class ClusterFitSettings:
    teacher: str | None = setting(
        None, "run, exported backbone, NETWORK=WEIGHTS-FILE or timm name; repeat it for several", repeat=True
    )
    teacher_layer: str | None = setting(
        None, "layer that is clustered, e.g. layer3, or one a teacher: layer3,blocks.11"
    )
    teacher_pca: int = setting(0, "principal components kept and whitened before k-means; 0: none", least=0)
    target: Literal["kmeans", "per_label", "prototypes", "distill", "regress"] = setting(
        "kmeans", "what is learned: kmeans, per_label, prototypes, distill or regress"
    )
    num_prototypes: int = setting(16000, "K, clusters of a teacher's features (kmeans, per_label)", least=2, auto=True)
    kmeans_iterations: int = setting(50, "updates of the centroids on all images", least=1)
    kmeans_sample: int | None = setting(
        None, "run k-means on so many images first; then 5 --kmeans-iterations do", least=1
    )
    kmeans_sample_iterations: int = setting(30, "updates of the centroids on that sample", least=1)
    rounds: int = setting(1, "refits in a row, each of the network that the one before has trained", least=1)
    distill_weight: float = setting(0.75, "of the teacher's predictions; the labels have the rest", least=0, most=1)
    distill_temperature: float = setting(20.0, "T of the softmax of both networks' predictions", least=1e-4)


class ClusterFit(Supervised):
    Settings = ClusterFitSettings
    idle = (
        (("distill_weight", "distill_temperature"), "target", ("kmeans", "per_label", "prototypes", "regress")),
        (("kmeans_iterations", "kmeans_sample", "teacher_pca"), "target", ("prototypes", "distill", "regress")),
        (("kmeans_sample_iterations",), "kmeans_sample", (None,)),
    )
    supports_accumulation = True
    advice = "Try fewer --num-prototypes, a lower --learning-rate, or another --teacher-layer."
    paper = Training(
        schedule="step",
        milestones=(30,),
        epochs=105,
        crops=Crops(global_crops=1, augment="clusterfit"),
    )

    @classmethod
    def check(cls, settings: Mapping[str, Any], num_images: int) -> None:
        if settings["target"] in ("kmeans", "per_label"):
            check_clusters(settings["num_prototypes"], num_images)

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        return clusters_from_data(run)

    def __init__(self, make_backbone: MakeBackbone, settings: ClusterFitSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        teachers = list(data.teacher or [])
        self.teachers = nn.ModuleList(teachers)  # asked at each step; none where all targets are made beforehand
        for teacher, head in zip(teachers, self.heads, strict=False):
            if teacher.width != head.out_features:
                raise ValueError(f"the teacher knows {teacher.width} classes, the labels have {head.out_features}")

    def widths(self) -> list[int]:
        if self.settings.target == "regress":
            return [teacher.width for teacher in self.data.teacher]
        return super().widths()

    def chance_loss(self) -> float | None:
        return None if len(self.teachers) else super().chance_loss()

    def losses(self, outputs: Sequence[Tensor], targets: Tensor, views: Sequence[Tensor]) -> list[Tensor]:
        if not len(self.teachers):
            return super().losses(outputs, targets, views)
        told = [torch.cat([teacher(view) for view in views]) for teacher in self.teachers]  # each (V * B, F or K)
        if self.settings.target == "regress":
            return [(out - F.normalize(t)).square().sum(dim=1).mean() for out, t in zip(outputs, told, strict=True)]
        weight = self.settings.distill_weight
        hard = super().losses(outputs, targets, views)
        soft = [self.divergence(out, t) for out, t in zip(outputs, told, strict=True)]
        return [weight * s + (1 - weight) * h for s, h in zip(soft, hard, strict=True)]

    def divergence(self, outputs: Tensor, told: Tensor) -> Tensor:
        """Cross-entropy to the teacher's softened predictions, less their entropy, which no weight moves."""
        t = self.settings.distill_temperature
        student, teacher = ((logits / t).log_softmax(dim=1) for logits in (outputs, told))
        return t**2 * (teacher.exp() * (teacher - student)).sum(dim=1).mean()

    def codes(self, outputs: Tensor) -> Tensor | None:
        """The predicted clusters (B,), where there are --num-prototypes of them."""
        return outputs.argmax(dim=1) if self.settings.target in ("kmeans", "per_label") else None

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment | None:
        return None if self.settings.target == "regress" else super().assign(features)
