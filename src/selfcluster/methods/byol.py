"""BYOL: predict, from one view, the features that a slowly updated copy computes for another view; no negatives.

Grill et al. 2020, arXiv 2006.07733; multi-crop and the switches between it and DINO (predictor, batch norm, centering)
after Caron et al. 2021, arXiv 2104.14294. B images, V views, D projection.
Departs: with small views a target's term is the mean over the views that predict it (two views: the paper's sum of both
directions); batch norm of the target counts running statistics that nothing reads; weights start as torch's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.clustering.sinkhorn import Centering
from selfcluster.methods.base import MakeBackbone, Method
from selfcluster.models.teacher import Teacher, cosine_momentum
from selfcluster.setting import setting
from selfcluster.types import Batch, Crops, DatasetInfo, Group, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class BYOLSettings:
    dim: int = setting(256, "D, size of the projected features", least=1)
    hidden: int = setting(4096, "width of projector and predictor", least=1, auto=True)
    predictor: bool = setting(
        True, "predict the target's features with a predictor network; without it the features collapse"
    )
    batch_norm: bool = setting(True, "batch norm in projector and predictor")
    centering: Literal["none", "center"] = setting(
        "none", "center: subtract a moving mean from the target's features, as DINO does; none: subtract nothing"
    )
    center_momentum: float = setting(0.9, "share of the old center that each step keeps", least=0, most=1)
    teacher_momentum: float = setting(
        0.996, "share of the target network that each step keeps; rises to 1; 0: always a copy", least=0, most=1
    )


class BYOL(Method):
    Settings = BYOLSettings
    idle = ((("center_momentum",), "centering", ("none",)),)
    supports_accumulation = True
    advice = "Keep the --predictor; try a higher --teacher-momentum, a lower --learning-rate, or larger batches."
    small = {
        "hidden": 512,
        "optimizer": "sgd",  # under AdamW the features end in a few dimensions
        "learning_rate": 0.06,
        "weight_decay": 5e-4,
        "teacher_momentum": 0.9,  # hundreds of steps: the target must follow quickly
    }
    paper = Training(
        optimizer="lars",
        learning_rate=0.2,
        warmup_epochs=10,
        weight_decay=1.5e-6,
        epochs=1000,
        batch_size=4096,
        crops=Crops(augment="byol"),
    )

    def __init__(self, make_backbone: MakeBackbone, settings: BYOLSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        hidden, dim, norm = settings.hidden, settings.dim, settings.batch_norm
        self.backbone = make_backbone()
        self.projector = mlp(self.backbone.num_features, hidden, dim, norm)
        self.predictor = mlp(dim, hidden, dim, norm) if settings.predictor else nn.Identity()
        # networks of their own, not copies: at first the target knows nothing of the online network
        self.target_backbone = Teacher(make_backbone())
        self.target_projector = Teacher(mlp(self.backbone.num_features, hidden, dim, norm))
        self.centering = Centering(dim, settings.center_momentum) if settings.centering == "center" else None

    def groups(self) -> list[Group]:
        return self.no_decay_groups()

    def forward(self, batch: Batch, progress: Progress) -> Output:
        # one pass a view: batch norm must not see two views of an image in one batch
        z = [self.projector(self.backbone(view)) for view in batch.views]  # each (B, D)
        predictions = [F.normalize(self.predictor(z_v).float(), dim=1) for z_v in z]
        taught = [self.target(view).float() for view in batch.views[:2]]  # of full resolution only
        center = self.centering.center if self.centering else 0.0
        loss = byol_loss(predictions, [F.normalize(z_t - center, dim=1) for z_t in taught])
        features = F.normalize(z[0].detach().float(), dim=1)
        spread = features.var(dim=0, correction=0).sum().sqrt()  # 1: directions of all kinds; 0: one for all images
        return Output(loss, log={"spread": spread}, features=features, state=torch.cat(taught))

    def target(self, view: Tensor) -> Tensor:
        """(B, D), without gradients."""
        return self.target_projector(self.target_backbone(view))

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        if self.centering:
            self.centering.update(torch.cat([output.state for output in outputs]))
        base = self.settings.teacher_momentum
        momentum = cosine_momentum(base, progress.fraction) if base else 0.0
        self.target_backbone.update(self.backbone, momentum)
        self.target_projector.update(self.projector, momentum)


def mlp(in_dim: int, hidden: int, out_dim: int, batch_norm: bool = True) -> nn.Sequential:
    """Projector and predictor; the last layer has no bias (the paper's section 3.3 and its released code)."""
    norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
    return nn.Sequential(nn.Linear(in_dim, hidden), *norm, nn.ReLU(), nn.Linear(hidden, out_dim, bias=False))


def byol_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Eq. 2, summed over the targets: squared distance of unit rows (B, D), the mean over the views that predict it.

    `targets[t]` is of the view that gave `predictions[t]`, which does not predict it.
    """
    total = torch.zeros((), device=predictions[0].device)
    for t, target in enumerate(targets):
        distances = [(2 - 2 * (p * target).sum(dim=1)).mean() for v, p in enumerate(predictions) if v != t]
        total = total + torch.stack(distances).mean()
    return total
