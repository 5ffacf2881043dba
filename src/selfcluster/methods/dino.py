"""DINO: predict, from every view, the centered and sharpened output of a slowly updated teacher.

Caron et al. 2021, arXiv 2104.14294, and the thesis's tables 5.9 to 5.13 for the switches. B images, V views, D
bottleneck, K outputs. The teacher sees the two full-resolution views only.
Departs: terms are averaged over pairs where eq. 3 sums them, as in the released code; the teacher's temperature rises
with the steps, not once an epoch; the center moves once a step, over all micro-batches (released: once each); timm
smooths position embeddings before it shrinks them (released: not) and starts the class token near 0; losses are
float32 under any autocast. The paper leaves open whether the last layer's weights learn their length: they do not
(`fixed_norm`; the released command of 300 epochs learns it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.sinkhorn import Centering, batch_softmax, sinkhorn
from selfcluster.distributed import all_gather, rank
from selfcluster.methods.base import MakeBackbone, Method, clusters_from_data, freezing, no_accumulation
from selfcluster.models.dino_head import DINOHead
from selfcluster.models.heads import ProjectionHead
from selfcluster.models.teacher import Teacher, cosine_momentum
from selfcluster.setting import setting
from selfcluster.types import Assignment, Batch, Crops, DatasetInfo, Group, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class DINOSettings:
    num_prototypes: int = setting(65536, "K, outputs of the head", least=2, auto=True)
    hidden: int = setting(2048, "width of the head's hidden layers", least=1, auto=True)
    dim: int = setting(256, "D, size of the normalized bottleneck, with --bottleneck", least=1)
    head_layers: int = setting(4, "total number of linear layers in the head; 1 to 4 in the thesis", least=1)
    bottleneck: bool = setting(True, "normalize the rows before the last layer, and that layer's weights")
    activation: Literal["gelu", "relu"] = setting("gelu", "activation function of the head: gelu or relu")
    batch_norm: bool = setting(False, "batch norm in the head, and in the predictor")
    fixed_norm: bool = setting(
        True, "keep the last layer's weights at unit length; learned lengths are better if training is stable"
    )
    predictor: bool = setting(False, "add an MLP before the last layer of the student's head only")
    loss: Literal["cross_entropy", "mse", "infonce"] = setting(
        "cross_entropy", "cross_entropy, mse or infonce (whose negatives are the teacher's batch)"
    )
    temperature: float = setting(0.1, "tau_s of the student's softmax, and of infonce", least=1e-4)
    teacher_temperature: float = setting(
        0.07, "tau_t of the teacher's softmax after the warm-up; lower it if the features collapse", least=0
    )
    warmup_teacher_temperature: float = setting(0.04, "tau_t at the first step", least=0)
    teacher_warmup_epochs: float = setting(30.0, "epochs in which tau_t rises", least=0)
    centering: Literal["center", "sinkhorn", "softmax", "none"] = setting(
        "center", "prevents collapse to one output: center, sinkhorn, softmax (over the batch) or none"
    )
    center_momentum: float = setting(0.9, "share of the old center that each step keeps", least=0, most=1)
    teacher_rule: Literal["momentum", "epoch", "iteration", "copy"] = setting(
        "momentum", "teacher: moving mean (momentum), student of the last epoch or iteration, or a copy of the student"
    )
    teacher_momentum: float = setting(0.996, "momentum at the first step; rises to 1 along a cosine", least=0, most=1)
    drop_path: float = setting(0.1, "stochastic depth of a transformer student, not of the teacher", least=0, most=1)
    freeze_epochs: float = setting(
        1.0, "number of epochs at the start in which the head's last layer is frozen", least=0, auto=True
    )
    network: Literal["teacher", "student"] = setting("teacher", "network that the run saves: teacher or student")


class DINO(Method):
    Settings = DINOSettings
    online = True
    idle = (
        (("teacher_momentum",), "teacher_rule", ("epoch", "iteration", "copy")),
        (("center_momentum",), "centering", ("sinkhorn", "softmax", "none")),
        (("dim",), "bottleneck", (False,)),
        (("temperature",), "loss", ("mse",)),
        (("teacher_temperature", "warmup_teacher_temperature", "teacher_warmup_epochs"), "loss", ("mse", "infonce")),
    )
    supports_accumulation = True
    small = {
        "hidden": 512,
        "num_prototypes": 200,  # a batch need not fill them, as it must where codes are balanced
        "learning_rate": 0.001,
        "weight_decay": 0.04,
        "batch_norm": True,  # a short run does not get rid of what all features share, and the head sees little else
        "teacher_momentum": 0.99,
        "teacher_temperature": 0.04,
    }
    advice = (
        "Try --centering sinkhorn, a lower --teacher-temperature or --learning-rate, or --batch-norm where it is off."
    )
    paper = Training(
        backbone="vit_small_patch16_224",
        optimizer="adamw",
        learning_rate=0.0005,
        warmup_epochs=10,
        final_learning_rate=2.5e-7,
        weight_decay=0.04,
        final_weight_decay=0.4,
        clip_each=3.0,
        epochs=300,
        batch_size=1024,
        crops=Crops(local_crops=10, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32), augment="dino"),
    )

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        together = settings["centering"] in ("sinkhorn", "softmax") or settings["loss"] == "infonce"
        if settings["accumulate"] > 1 and together:
            raise ValueError(no_accumulation("dino", settings["accumulate"]))

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        return clusters_from_data(run) | freezing(run)

    def __init__(self, make_backbone: MakeBackbone, settings: DINOSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        s = settings
        teacher = make_backbone()
        transformer = hasattr(teacher, "blocks") and hasattr(teacher, "patch_embed")
        # a convolutional network has no stochastic depth, as in the paper
        self.backbone = make_backbone(drop_path=s.drop_path if transformer else 0.0)
        self.head = self._make_head()
        wide = self.head.width
        self.predictor = ProjectionHead(wide, s.hidden, wide, s.batch_norm) if s.predictor else None
        self.teacher = Teacher(teacher).copy_(self.backbone)
        self.teacher_head = Teacher(self._make_head()).copy_(self.head)
        self.objective = Objective(s.num_prototypes, s.loss, s.centering, s.temperature, s.center_momentum)

    def _make_head(self) -> DINOHead:
        s = self.settings
        same = {name: getattr(s, name) for name in ("bottleneck", "activation", "batch_norm", "fixed_norm")}
        return DINOHead(self.backbone.num_features, s.hidden, s.dim, s.num_prototypes, num_layers=s.head_layers, **same)

    def groups(self) -> list[Group]:
        return self.no_decay_groups()

    def chance_loss(self) -> float | None:
        return log(self.settings.num_prototypes) if self.settings.loss == "cross_entropy" else None

    def forward(self, batch: Batch, progress: Progress) -> Output:
        projected, students = self.head(self.encode_views(batch.views), self.predictor)
        taught = self.teacher_head(self.teacher(torch.cat(batch.views[:2])))[1].float()  # (2 B, K)
        temperature = self.teacher_temperature(progress)
        targets = [self.objective.target(t, temperature) for t in taught.chunk(2)]  # each (B, K)
        outputs = students.float().chunk(len(batch.views))  # each (B, K)
        terms = [self.objective.compare(q, p) for t, q in enumerate(targets) for v, p in enumerate(outputs) if v != t]
        loss = torch.stack(terms).mean()  # eq. 3, averaged
        logs = {"teacher_momentum": loss.new_tensor(self.momentum(progress))}
        if self.settings.loss == "cross_entropy":
            entropy = torch.stack([torch.special.entr(q).sum(dim=1).mean() for q in targets]).mean()
            logs |= {"teacher_entropy": entropy, "divergence": loss.detach() - entropy}  # H(q, p) = H(q) + KL(q | p)
        first = projected[: len(batch.index)].float()
        return Output(loss, log=logs, features=first, codes=targets[0].argmax(dim=1), state=taught)

    def teacher_temperature(self, progress: Progress) -> float:
        """tau_t at this step: a straight line from its start to its end, then constant."""
        s = self.settings
        risen = min(1.0, progress.epochs / s.teacher_warmup_epochs) if s.teacher_warmup_epochs else 1.0
        return s.warmup_teacher_temperature + risen * (s.teacher_temperature - s.warmup_teacher_temperature)

    def momentum(self, progress: Progress) -> float:
        """Of the teacher at the end of this step; 1 leaves it as it is."""
        if self.settings.teacher_rule == "momentum":
            return cosine_momentum(self.settings.teacher_momentum, progress.fraction)
        if self.settings.teacher_rule == "epoch":
            return float((progress.step + 1) % progress.steps_per_epoch != 0)
        return 0.0

    def follow(self, momentum: float) -> None:
        """Move both of the teacher's parts towards the student's."""
        self.teacher.update(self.backbone, momentum)
        self.teacher_head.update(self.head, momentum)

    def on_backward(self, progress: Progress) -> None:
        if progress.epochs < self.settings.freeze_epochs:
            for parameter in self.head.last.parameters():
                parameter.grad = None
        if self.settings.teacher_rule == "iteration":
            self.follow(0.0)  # the student as it is before this step is the next step's teacher

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        self.objective.update(torch.cat([output.state for output in outputs]))
        if self.settings.teacher_rule != "iteration":
            self.follow(self.momentum(progress))

    def exported(self) -> nn.Module:
        return self.teacher.network if self.settings.network == "teacher" else self.backbone

    def encode(self, images: Tensor) -> Tensor:
        return self.exported()(images)

    def exported_head(self) -> nn.Module:
        return self.teacher_head if self.settings.network == "teacher" else self.head

    def project(self, features: Tensor) -> Tensor:
        return self.exported_head()(features)[0]

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment:
        outputs = self.exported_head()(features)[1]
        best, cluster = self.objective.centering(outputs, self.settings.teacher_temperature).max(dim=1)
        return Assignment(cluster, 1 - best)


class Objective(nn.Module):
    """Targets from teacher outputs, and the loss of a pair of views (algorithm 1, appendices B and D).

    The center is its only state. `loss`, `centering`: as in `DINOSettings`; codes that are balanced over the batch go
    with cross_entropy only. Departs: infonce takes its negatives from the batch of all ranks, not from a queue.
    """

    def __init__(
        self, num_prototypes: int, loss: str, centering: str, temperature: float, center_momentum: float
    ) -> None:
        super().__init__()
        if loss != "cross_entropy" and centering in ("sinkhorn", "softmax"):
            raise ValueError(f"--loss {loss} compares outputs, not codes: use --centering center or none")
        self.loss, self.kind, self.temperature = loss, centering, temperature
        self.centering = Centering(num_prototypes, center_momentum)

    @torch.no_grad()
    def target(self, taught: Tensor, temperature: float) -> Tensor:
        """Return the targets (B, K) of a view's teacher outputs (B, K): codes, or unit rows for mse and infonce."""
        if self.loss != "cross_entropy":
            return F.normalize(taught - self.centering.center, dim=1)  # no sharpening there
        if self.kind == "sinkhorn":
            return sinkhorn(taught, temperature, check_finite=False)
        if self.kind == "softmax":
            return batch_softmax(taught, temperature)
        return self.centering(taught, temperature)  # without centering the center stays 0

    def compare(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the mean loss over the batch of a view's targets and another view's student outputs, both (B, K)."""
        if self.loss == "cross_entropy":
            return dino_loss(target, output, self.temperature)
        unit = F.normalize(output, dim=1)
        if self.loss == "mse":
            return (unit - target).square().sum(dim=1).mean()
        own = torch.arange(len(unit), device=unit.device) + rank() * len(unit)  # ranks hold equal shares
        with torch.autocast(unit.device.type, enabled=False):  # products of unit rows in full precision
            return F.cross_entropy(unit @ all_gather(target).T / self.temperature, own)

    @torch.no_grad()
    def update(self, taught: Tensor) -> None:
        """Move the center by all teacher outputs of a step, after its loss."""
        if self.kind == "center":
            self.centering.update(taught)


def dino_loss(target: Tensor, output: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the cross-entropy of eq. 3 for one pair of views, the mean over the batch.

    Args:
        target: (B, K), the teacher's softmax of centered, sharpened outputs for one view; no gradient flows into it.
        output: (B, K), the student's output for another view.
        temperature: tau_s of the student's softmax.
    """
    return -(target * F.log_softmax(output / temperature, dim=1)).sum(dim=1).mean()
