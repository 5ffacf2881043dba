"""SwAV: predict the cluster code of one view from another view of the same image.

Caron et al. 2020, arXiv 2006.09882. B images, V views, D projection, K prototypes, Q queued features.
Departs: terms are averaged over pairs where eq. 6 sums them, as in the released code; the queue holds the features of
all processes and is the same on each; prototypes are frozen for the first `freeze_epochs` exactly (released: one step
more); scores and codes are float32 under any autocast; one batch norm over all processes (released: groups of eight).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.clustering.memory import FeatureQueue
from selfcluster.clustering.sinkhorn import sinkhorn
from selfcluster.methods.base import MakeBackbone, Method
from selfcluster.models.heads import ProjectionHead, Prototypes
from selfcluster.types import Assignment, Batch, Crops, Facts, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class SwAVSettings:
    dim: int = 128  # D, size of the projected features
    hidden: int = 2048  # width of the projection head's hidden layer; 0: one linear layer
    num_prototypes: int = 3000  # K, about ten times the classes you expect
    temperature: float = 0.1  # tau of the softmax, eq. 2
    epsilon: float = 0.05  # entropy weight of the codes, eq. 3; lower if the loss stays at ln K
    sinkhorn_iterations: int = 3  # half-steps of the codes' normalisation
    queue_length: int = 0  # Q, queued features a view, over all processes; 3840 for batches of 256
    queue_from_epoch: float = 15.0  # when the queue starts to fill; it is used once full
    freeze_epochs: float = 1.0  # epochs for which the prototypes stay as they were drawn


class SwAV(Method):
    Settings = SwAVSettings
    advice = "Try a lower --epsilon (0.03), fewer --num-prototypes, a lower --learning-rate, or larger batches."
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

    def __init__(self, make_backbone: MakeBackbone, settings: SwAVSettings, facts: Facts) -> None:
        super().__init__(make_backbone, settings, facts)
        self.backbone = make_backbone()
        self.head = ProjectionHead(self.backbone.num_features, settings.hidden, settings.dim)
        self.prototypes = Prototypes(settings.dim, settings.num_prototypes)
        self.queues: Any = nn.ModuleList(
            FeatureQueue(settings.queue_length, settings.dim) for _ in range(2 if settings.queue_length else 0)
        )

    def chance_loss(self) -> float:
        return log(self.settings.num_prototypes)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        z = self.project(self.encode_views(batch.views)).chunk(len(batch.views))  # each (B, D)
        scores = [self.prototypes(z_v) for z_v in z]  # each (B, K)
        codes = [self.code(t, scores[t]) for t in (0, 1)]  # full-resolution views only
        predictions = [F.log_softmax(s / self.settings.temperature, dim=1) for s in scores]
        swaps = [-(codes[t] * p).sum(dim=1).mean() for t in (0, 1) for s, p in enumerate(predictions) if s != t]
        loss = torch.stack(swaps).mean()  # eq. 6, averaged
        return Output(loss, features=z[0], codes=codes[0].argmax(dim=1), state=[z_v.detach() for z_v in z[:2]])

    def project(self, features: Tensor) -> Tensor:
        """(n, F) to unit rows (n, D)."""
        return F.normalize(self.head(features).float(), dim=1)

    @torch.no_grad()
    def code(self, view: int, scores: Tensor) -> Tensor:
        """Soft codes (B, K) of a view, balanced over the batches of all processes and the full queue (eq. 3 to 5)."""
        queued = self.queues[view] if len(self.queues) else None
        extra = self.prototypes(queued.rows) if queued is not None and queued.full else None  # (Q, K)
        return sinkhorn(scores, self.settings.epsilon, self.settings.sinkhorn_iterations, extra=extra)

    def on_backward(self, progress: Progress) -> None:
        if progress.epochs < self.settings.freeze_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        self.prototypes.normalise_()  # unit rows before the next forward
        if len(self.queues) and progress.epochs >= self.settings.queue_from_epoch:
            for output in outputs:
                for queue, z in zip(self.queues, output.state, strict=True):
                    queue.push(z)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment:
        best, cluster = self.prototypes(self.project(features)).max(dim=1)
        return Assignment(cluster, 1 - best)
