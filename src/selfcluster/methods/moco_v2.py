"""MoCo-v2: find the key of a view among queued keys of other images; a slowly updated copy computes the keys.

Chen et al. 2020, arXiv 2003.04297; He et al. 2020, arXiv 1911.05722; multi-crop after Caron et al. 2021, arXiv
2104.14294. B images, V views, D projection, Q queued keys, G groups of batch norm.
Departs: the key network follows at the end of a step, which is before the next key, as in the paper; batch norm's G
groups are parts of the batch and lie across all processes (released: one a GPU), and keys are shuffled between them
within a process (released: between GPUs), so one process has them too; each group moves the running statistics; Q need
not be a multiple of the batch; the cosine falls at every step (released: every epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.choice import Choice, RunShape
from selfcluster.clustering.memory import FeatureQueue
from selfcluster.methods.base import MakeBackbone, Method
from selfcluster.models.heads import ProjectionHead
from selfcluster.models.teacher import Teacher
from selfcluster.setting import setting
from selfcluster.types import Batch, Crops, DatasetInfo, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class MoCoV2Settings:
    dim: int = setting(128, "D, size of the projected features", least=1)
    hidden: int = setting(
        2048,
        "width of the projection head's hidden layer; 0: one linear layer, as in the first version",
        least=0,
        auto=True,
    )
    temperature: float = setting(0.2, "tau of the softmax; 0.07 in the first version", least=1e-4)
    queue_length: int = setting(65536, "Q, keys of past batches, over all processes", least=1, auto=True)
    teacher_momentum: float = setting(0.999, "share of the key network that each step keeps", least=0, most=1)
    bn_splits: int = setting(
        8,
        "G, groups of a batch with separate batch norm; keys are shuffled between groups of at least two images",
        least=1,
    )
    batch_norm: bool = setting(False, "batch norm in the projection head, and in the predictor")
    predictor: bool = setting(False, "add an MLP after the query's head only")
    symmetric: bool = setting(False, "both full-resolution views give keys; off: only the second view does")


class MoCoV2(Method):
    Settings = MoCoV2Settings
    advice = "Try more --bn-splits, a higher --temperature, a lower --learning-rate, or a lower --teacher-momentum."
    small = {"hidden": 512, "teacher_momentum": 0.99, "bn_splits": 4, "symmetric": True}
    paper = Training(
        optimizer="sgd",
        learning_rate=0.03,
        weight_decay=1e-4,
        epochs=200,
        batch_size=256,
        crops=Crops(global_scale=(0.2, 1.0), augment="moco_v2"),
    )

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        if not (run.small or run.short):
            return {}
        length = min(4096, run.num_images)  # a longer queue would hold old keys of the same images
        return {"queue_length": Choice(length, "at most the images, on small images and in short runs")}

    def __init__(self, make_backbone: MakeBackbone, settings: MoCoV2Settings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        self.backbone = make_backbone()
        hidden, dim, norm = settings.hidden, settings.dim, settings.batch_norm
        self.head = ProjectionHead(self.backbone.num_features, hidden, dim, norm)
        self.predictor = ProjectionHead(dim, hidden, dim, norm) if settings.predictor else nn.Identity()
        self.key_backbone, self.key_head = Teacher.of(self.backbone), Teacher.of(self.head)
        self.queue = FeatureQueue(settings.queue_length, dim)
        self.queue.fill(F.normalize(torch.randn(settings.queue_length, dim), dim=1))
        normalized = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())
        self.splits = settings.bn_splits if normalized else 1  # a transformer has nothing to split for

    def chance_loss(self) -> float:
        return log(self.settings.queue_length + 1)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        views = batch.views
        keyed = [0, 1] if self.settings.symmetric else [1]  # views that give keys
        querying = [v for v in range(len(views)) if self.settings.symmetric or v != 1]
        k = self.keys([views[v] for v in keyed], progress)
        q = self.in_groups(self.query, [views[v] for v in querying])
        pairs = [(i, j) for i, v in enumerate(querying) for j, w in enumerate(keyed) if v != w]
        loss = info_nce(q, k, self.queue.rows, pairs, self.settings.temperature)
        return Output(loss, features=q[0], state=k)

    def query(self, views: Sequence[Tensor]) -> Tensor:
        """(V * B, D) unit rows, view after view."""
        return F.normalize(self.predictor(self.head(self.encode_views(views))).float(), dim=1)

    def key(self, views: Sequence[Tensor]) -> Tensor:
        """(V * B, D) unit rows, view after view, without gradients."""
        return F.normalize(self.key_head(self.key_backbone(torch.cat(list(views)))).float(), dim=1)

    @torch.no_grad()
    def keys(self, views: Sequence[Tensor], progress: Progress) -> Tensor:
        """(V, B, D): an image's key stands in another group than its query, or batch statistics would give it away."""
        order = torch.randperm(len(views[0]), generator=progress.generator("shuffled batch norm")).to(views[0].device)
        return self.in_groups(self.key, [view[order] for view in views])[:, order.argsort()]

    def in_groups(self, encode: Callable[[Sequence[Tensor]], Tensor], views: Sequence[Tensor]) -> Tensor:
        """(V, B, D): each group of images passes alone, so it has batch statistics of its own."""
        count = max(1, min(self.splits, len(views[0]) // 2))  # one image alone has no statistics
        groups = zip(*(view.tensor_split(count) for view in views), strict=True)
        return torch.cat([encode(group).unflatten(0, (len(views), -1)) for group in groups], dim=1)

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        self.key_backbone.update(self.backbone, self.settings.teacher_momentum)
        self.key_head.update(self.head, self.settings.teacher_momentum)
        for output in outputs:
            for keys in output.state:
                self.queue.push(keys)


def info_nce(q: Tensor, k: Tensor, queue: Tensor, pairs: Sequence[tuple[int, int]], temperature: float) -> Tensor:
    """Eq. 1, the mean over `pairs` (i, j) of queries `q[i]` and keys `k[j]`, against the `queue` (Q, D).

    `q` (V, B, D) and `k` (V', B, D) are unit rows. -log(e^p / (e^p + sum of e^n)) is softplus(log-sum of e^n - p).
    """
    with torch.autocast(q.device.type, enabled=False):  # products of unit rows in full precision
        against = (q @ queue.T / temperature).logsumexp(dim=2)  # (V, B)
        terms = [F.softplus(against[i] - (q[i] * k[j]).sum(dim=1) / temperature) for i, j in pairs]
        return torch.stack(terms).mean()
