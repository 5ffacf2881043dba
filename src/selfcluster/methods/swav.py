"""SwAV: predict the cluster code of one view from another view of the same image.

Caron et al. 2020, arXiv 2006.09882. B images, V views, T views with a code, D projection, K prototypes, Q queued
features. A momentum encoder, which the paper leaves to future work, is a network with head and prototypes of its own
that follows the trained one and gives the codes; its prototypes keep unit length.
Departs: terms are averaged over pairs where eq. 6 sums them, as in the released code; colors are divided by 0.229,
0.224, 0.225 (released: 0.228 for red); the queue holds the features of all processes and is the same on each;
prototypes are frozen for the first `freeze_epochs` exactly (released: one step more); scores and codes are float32
under any autocast; one batch norm over all processes (released: groups of eight); the small views' codes, where there
are any, are balanced with the queues of the full-resolution views in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.memory import FeatureQueue
from selfcluster.clustering.sinkhorn import sinkhorn
from selfcluster.methods.base import MakeBackbone, Method, check_clusters, clusters_from_data, freezing
from selfcluster.models.heads import ProjectionHead, Prototypes
from selfcluster.models.teacher import Teacher
from selfcluster.setting import setting
from selfcluster.types import Assignment, Batch, Crops, DatasetInfo, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class SwAVSettings:
    dim: int = setting(128, "D, size of the projected features", least=1)
    hidden: int = setting(2048, "width of the projection head's hidden layer; 0: one linear layer", least=0, auto=True)
    num_prototypes: int = setting(3000, "K, about ten times the classes you expect", least=2, auto=True)
    temperature: float = setting(0.1, "tau of the softmax, eq. 2", least=1e-4)
    epsilon: float = setting(
        0.05, "entropy weight of the codes, eq. 3; lower it if the loss stays at ln K", least=1e-4, auto=True
    )
    sinkhorn_iterations: int = setting(
        3, "Sinkhorn rounds; each normalizes the codes over clusters, then over images", least=1
    )
    queue_length: int = setting(
        0, "Q, queued features per view, over all processes; 0: no queue; 3840 for batches of 256", least=0, auto=True
    )
    queue_from_epoch: float = setting(
        15.0, "epoch at which the queue starts to fill; the loss uses it when it is full", least=0, auto=True
    )
    freeze_epochs: float = setting(
        1.0, "number of epochs at the start in which the prototypes are frozen", least=0, auto=True
    )
    rounded_codes: bool = setting(False, "each code is its best prototype only; learns faster at first, ends worse")
    codes_from: Literal["global", "all"] = setting("global", "views that get codes: global (full resolution) or all")
    momentum_encoder: float | None = setting(
        None, "compute codes with a moving average of the network, with this momentum; default: off", least=0, most=1
    )


class SwAV(Method):
    Settings = SwAVSettings
    online = True
    advice = "Try a lower --epsilon, fewer --num-prototypes, a lower --learning-rate, or larger batches."
    small = {"hidden": 512}
    paper = Training(
        optimizer="larc",
        learning_rate=0.3,
        warmup_epochs=10,
        warmup_learning_rate=0.01875,
        final_learning_rate=0.0003,
        weight_decay=1e-6,
        epochs=800,
        batch_size=4096,
        crops=Crops(local_crops=6, global_scale=(0.14, 1.0)),
    )

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        check_clusters(settings["num_prototypes"], num_images)  # equal shares of fewer than one image mean nothing

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        sharper = Choice(0.03, "sharper codes: at 0.05 the loss of small images and of short runs stays at ln K")
        chosen = {} if run.layout else {"epsilon": sharper}
        chosen |= clusters_from_data(run)
        k, batch = run.given.get("num_prototypes", chosen["num_prototypes"].value), run.batch_size
        if k > batch:
            why = f"a batch of {batch} images is too small to fill {k} prototypes"
            chosen["queue_length"] = Choice(ceil(2 * k / batch) * batch, why)
            chosen["queue_from_epoch"] = Choice(round(run.epochs * 0.1, 2), "a tenth of the run")
        return chosen | freezing(run)

    def __init__(self, make_backbone: MakeBackbone, settings: SwAVSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        self.backbone = make_backbone()
        self.head = ProjectionHead(self.backbone.num_features, settings.hidden, settings.dim)
        self.prototypes = Prototypes(settings.dim, settings.num_prototypes)
        self.queues: Any = nn.ModuleList(
            FeatureQueue(settings.queue_length, settings.dim) for _ in range(2 if settings.queue_length else 0)
        )
        followed = [] if settings.momentum_encoder is None else [self.backbone, self.head, self.prototypes]
        self.teachers: Any = nn.ModuleList(Teacher.of(module) for module in followed)

    def chance_loss(self) -> float:
        return log(self.settings.num_prototypes)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        z = self.project(self.encode_views(batch.views)).chunk(len(batch.views))  # each (B, D)
        scores = [self.prototypes(z_v) for z_v in z]  # each (B, K)
        coded = self.coded(batch.views, z)
        codes = [self.code(t, z_t) for t, z_t in enumerate(coded)]
        loss = swav_loss(scores, codes, self.settings.temperature)
        return Output(loss, features=z[0], codes=codes[0].argmax(dim=1), state=coded[:2])

    def project(self, features: Tensor) -> Tensor:
        """(n, F) to unit rows (n, D)."""
        return F.normalize(self.head(features).float(), dim=1)

    @torch.no_grad()
    def coded(self, views: Sequence[Tensor], z: Sequence[Tensor]) -> list[Tensor]:
        """The unit rows, (B, D) each, from which the T views get their codes: the network's own or its teacher's."""
        count = 2 if self.settings.codes_from == "global" else len(views)
        if not self.teachers:
            return [z_t.detach() for z_t in z[:count]]
        backbone, head, _ = self.teachers
        same = [torch.cat(list(run)) for _, run in groupby(views[:count], key=lambda v: v.shape[-2:])]
        rows = torch.cat([backbone(v) for v in same])  # (T * B, F)
        return list(F.normalize(head(rows).float(), dim=1).chunk(count))

    @torch.no_grad()
    def code(self, view: int, z: Tensor) -> Tensor:
        """Codes (B, K) of a view, balanced over the batches of all processes and the full queue (eq. 3 to 5)."""
        prototypes = self.teachers[2] if self.teachers else self.prototypes
        queued = self.queues[view % 2] if len(self.queues) else None
        extra = prototypes(queued.rows) if queued is not None and queued.full else None  # (Q, K)
        iterations = self.settings.sinkhorn_iterations
        soft = sinkhorn(prototypes(z), self.settings.epsilon, iterations, extra=extra, check_finite=False)
        return F.one_hot(soft.argmax(dim=1), soft.shape[1]).to(soft.dtype) if self.settings.rounded_codes else soft

    def on_backward(self, progress: Progress) -> None:
        if progress.epochs < self.settings.freeze_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        self.prototypes.normalize_()  # unit rows before the next forward
        if self.teachers:
            for teacher, student in zip(self.teachers, (self.backbone, self.head, self.prototypes), strict=True):
                teacher.update(student, self.settings.momentum_encoder)
            if self.settings.momentum_encoder < 1:  # at 1 the teacher stays as it was, to the bit
                self.teachers[2].network.normalize_()
        if len(self.queues) and progress.epochs >= self.settings.queue_from_epoch:
            for output in outputs:
                for queue, z in zip(self.queues, output.state, strict=True):
                    queue.push(z)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment:
        best, cluster = self.prototypes(self.project(features)).max(dim=1)
        return Assignment(cluster, 1 - best)


def swav_loss(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """Return eq. 6, averaged over the pairs of a view's code and another view's prediction.

    Args:
        scores: of each view, (B, K) cosines of unit features to unit prototypes; views with a code first.
        codes: of the first views, (B, K), rows that sum to 1; no gradient flows into them.
        temperature: tau, eq. 2.
    """
    predictions = [F.log_softmax(score / temperature, dim=1) for score in scores]
    swaps = [-(q * p).sum(dim=1).mean() for t, q in enumerate(codes) for s, p in enumerate(predictions) if s != t]
    return torch.stack(swaps).mean()
