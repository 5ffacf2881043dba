"""NPID: distinguish every image from all others, with a memory of one feature per image.

Wu et al. 2018, arXiv 1805.01978. B images, V views, D projection, N images in all, M negatives.
Departs: the memory moves with a momentum of one half, as in the released code, where the paper overwrites it and pulls
the feature towards it (`proximal`); all images of a step share one draw of negatives, equal on all processes; with
several views each is a query, and the memory takes the mean of the full-resolution ones (SwAV's multi-crop).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log1p, sqrt
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from selfcluster.clustering.memory import SampleMemory
from selfcluster.distributed import all_reduce
from selfcluster.methods.base import MakeBackbone, Method
from selfcluster.models.heads import ProjectionHead
from selfcluster.setting import setting
from selfcluster.types import Batch, Crops, DatasetInfo, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class NPIDSettings:
    dim: int = setting(128, "D, size of the projected features", least=1)
    hidden: int = setting(0, "width of the projection head's hidden layer; 0: one linear layer", least=0)
    temperature: float = setting(0.07, "tau of the softmax", least=1e-4)
    loss: Literal["nce", "softmax"] = setting("nce", "nce: tell the image from noise; softmax: tell which image it is")
    num_negatives: int = setting(4096, "M, images drawn per step; 0: all N, for softmax", least=0)
    exclude_self: bool = setting(False, "an image is never its own negative")
    memory_momentum: float = setting(0.5, "share of the new feature in an image's memory", least=0, most=1)
    proximal: float = setting(0.0, "lambda, weight of the squared distance to the image's memory", least=0)


class NPID(Method):
    Settings = NPIDSettings
    per_image = ("memory.rows", "memory.written")
    idle = ((("exclude_self",), "num_negatives", (0,)),)
    supports_accumulation = True
    advice = "Try a lower --learning-rate, a higher --temperature, or, if you set --loss nce, --loss softmax."
    paper = Training(
        optimizer="sgd",
        learning_rate=0.03,
        schedule="multistep",
        milestones=(120, 160),
        weight_decay=1e-4,
        epochs=200,
        batch_size=256,
        crops=Crops(global_crops=1, global_scale=(0.2, 1.0), augment="npid"),
    )
    # noise contrast is slow to recover from a partition that the first batch set: 4,096 choices learn in minutes; and a
    # hidden layer, which later work gave such heads and the paper has not, is worth four points of 20-NN there
    small = {"loss": "softmax", "temperature": 0.1, "hidden": 512}

    log_partition: Tensor

    def __init__(self, make_backbone: MakeBackbone, settings: NPIDSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        if settings.loss == "nce" and settings.num_negatives < 1:
            raise ValueError(
                f"--num-negatives {settings.num_negatives}: --loss nce needs at least 1; to compare with all images, "
                "use --loss softmax"
            )
        self.backbone = make_backbone()
        self.head = ProjectionHead(self.backbone.num_features, settings.hidden, settings.dim)
        self.memory = SampleMemory(data.num_samples, settings.dim, settings.memory_momentum)
        bound = 1 / sqrt(settings.dim / 3)  # rows of length 1 on average
        self.memory.fill(torch.empty(data.num_samples, settings.dim).uniform_(-bound, bound))
        # ln Z, of the first step (its first micro-batch) for ever; Z = 0: none yet
        self.register_buffer("log_partition", torch.full((), -torch.inf))

    def chance_loss(self) -> float:
        m = self.settings.num_negatives
        if self.settings.loss == "nce":
            return log(m + 1) + m * log1p(1 / m)  # every image as probable as noise
        return log(m + 1 if m else self.data.num_samples)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        views, size = len(batch.views), batch.views[0].shape[-2:]
        z = self.unit_features(self.encode_views(batch.views))  # (V * B, D)
        index = batch.index.repeat(views)  # every view asks for its image
        with torch.autocast(z.device.type, enabled=False):
            loss, partition = self.compare(z, index, progress)
            loss = loss + self.settings.proximal * (z - self.memory.rows[index]).square().sum(dim=1).mean()
        full = [z_v for z_v, v in zip(z.detach().chunk(views), batch.views, strict=True) if v.shape[-2:] == size]
        state = (batch.index, torch.stack(full).mean(dim=0), partition)
        return Output(loss, features=z[: len(batch.index)], state=state)

    def unit_features(self, features: Tensor) -> Tensor:
        """(n, F) to unit rows (n, D)."""
        return F.normalize(self.head(features).float(), dim=1)

    def compare(self, z: Tensor, index: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The mean loss of queries z (n, D) for the images `index` (n,), and the ln Z that it was taken with."""
        memory, m = self.memory.rows, self.settings.num_negatives
        if not m:
            return F.cross_entropy(z @ memory.T / self.settings.temperature, index), self.log_partition  # (n, N), eq. 2
        drawn = torch.randint(len(memory), (m,), generator=progress.generator("negatives")).to(index.device)
        own = (z * memory[index]).sum(dim=1) / self.settings.temperature  # (n,)
        others = z @ memory[drawn].T / self.settings.temperature  # (n, M)
        if self.settings.exclude_self:
            others = others.masked_fill(drawn == index[:, None], -torch.inf)
        if self.settings.loss == "softmax":
            return (torch.cat([own[:, None], others], dim=1).logsumexp(dim=1) - own).mean(), self.log_partition
        known = self.log_partition.isfinite()
        partition = torch.where(known, self.log_partition, self.estimate(own, others))
        level = partition + log(m / len(memory))  # a score at it is as probable as the noise: P = M / N
        return -(F.logsigmoid(own - level) + F.logsigmoid(level - others).sum(dim=1)).mean(), partition  # eq. 4 to 7

    @torch.no_grad()
    def estimate(self, own: Tensor, others: Tensor) -> Tensor:
        """ln Z: Z is N times the mean of exp(score) over the batches of all processes (eq. 8)."""
        scores = torch.cat([own[:, None], others], dim=1)
        total, count = all_reduce(torch.stack([scores.exp().sum(), scores.isfinite().sum().float()]))
        return (total / count).log() + log(len(self.memory.rows))

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        index, z, partitions = zip(*(o.state for o in outputs), strict=True)
        self.memory.write(torch.cat(index), torch.cat(z), progress.epoch)
        self.log_partition.copy_(partitions[0])
