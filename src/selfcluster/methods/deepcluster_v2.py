"""DeepCluster-v2: predict, from every view, the k-means cluster of the image in the previous epoch.

Caron et al. 2020, arXiv 2006.09882, section 4 and its released code. B images, V views, D projection, N images in all,
H heads with K prototypes each; head h clusters the memory of full-resolution view h mod 2.
Departs: the first memory's two full-resolution views go through the network in one pass, so batch norm sees both
(released: one view after the other); colors are divided by 0.229, 0.224, 0.225 (released: 0.228 for red); initial
centroids are a random draw over all images (released: over the first process's); images that the last epoch did not
show have no label and count in no mean (released: a batch of none gives NaN); memories hold the rows of all processes
and are the same on each, so a run may go on with another number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.memory import SampleMemory
from selfcluster.distributed import all_gather, share
from selfcluster.methods.base import (
    Embed,
    MakeBackbone,
    Method,
    check_clusters_of_last_epoch,
    check_enough_images,
    clusters_from_data,
    labeled_cross_entropy,
    stability,
)
from selfcluster.models.heads import ProjectionHead, Prototypes
from selfcluster.setting import setting
from selfcluster.types import Assignment, Batch, Crops, DatasetInfo, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class DeepClusterV2Settings:
    dim: int = setting(128, "D, size of the projected features", least=1)
    hidden: int = setting(2048, "width of the projection head's hidden layer; 0: one linear layer", least=0, auto=True)
    num_prototypes: int = setting(3000, "K, clusters per head", least=2, auto=True)
    num_heads: int = setting(3, "H, independent clusterings", least=1)
    temperature: float = setting(0.1, "tau of the softmax", least=1e-4)
    kmeans_iterations: int = setting(10, "updates of the centroids at each reassignment", least=1)


class DeepClusterV2(Method):
    Settings = DeepClusterV2Settings
    per_image = ("labels", "memories.0.rows", "memories.0.written", "memories.1.rows", "memories.1.written")
    supports_accumulation = True
    advice = "Try fewer --num-prototypes, a lower --learning-rate, or gentler views (fewer --local-crops)."
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
        check_clusters_of_last_epoch(settings, num_images)

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        return clusters_from_data(run)

    def __init__(self, make_backbone: MakeBackbone, settings: DeepClusterV2Settings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        n, k = data.num_samples, settings.num_prototypes
        check_enough_images(k, n)
        self.backbone = make_backbone()
        self.head = ProjectionHead(self.backbone.num_features, settings.hidden, settings.dim)
        self.heads: Any = nn.ModuleList(Prototypes(settings.dim, k) for _ in range(settings.num_heads))
        self.heads.requires_grad_(False)  # centroids are the classifier: k-means writes them, gradients never do
        self.memories: Any = nn.ModuleList(SampleMemory(n, settings.dim) for _ in range(2))
        self.register_buffer("labels", torch.full((settings.num_heads, n), -1))  # (H, N), -1 = none
        self.labels: Tensor

    def chance_loss(self) -> float:
        return log(self.settings.num_prototypes)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        z = self.project(self.encode_views(batch.views))  # (V * B, D)
        views = len(batch.views)
        losses = []
        for prototypes, labels in zip(self.heads, self.labels, strict=True):
            target = labels[batch.index]  # (B,), the same for every view of an image
            losses.append(labeled_cross_entropy(prototypes(z) / self.settings.temperature, target.repeat(views)))
        first = z[: len(batch.index)]
        state = (batch.index, [z_v.detach() for z_v in z.chunk(views)[:2]])
        return Output(torch.stack(losses).mean(), features=first, codes=self.labels[0, batch.index], state=state)

    def project(self, features: Tensor) -> Tensor:
        """(n, F) to unit rows (n, D)."""
        return F.normalize(self.head(features).float(), dim=1)

    def project_pair(self, views: Sequence[Tensor]) -> Tensor:
        """The first two views, side by side (B, 2 D)."""
        return torch.cat(self.project(self.encode_views(views[:2])).chunk(2), dim=1)

    @torch.no_grad()
    def reassign(self, progress: Progress, embed: Embed) -> dict[str, float]:
        """Cluster the rows that the last epoch wrote; before the first epoch, one pass in training mode writes them."""
        if progress.step == 0:
            first = embed(self.project_pair, view="train", train=True)
            for memory, z in zip(self.memories, first.rows.chunk(2, dim=1), strict=True):
                memory.write_in_blocks(first.index, z, epoch=0)
        written = self.memories[0].written == progress.epoch  # rows of epoch e are written as e + 1
        index = written.nonzero().flatten()
        before = self.labels[0].clone()
        self.labels.fill_(-1)
        log: dict[str, float] = {}
        for h, labels in enumerate(self.labels):
            mine, found = self.cluster(h, self.memories[h % 2].rows[index[share(len(index))]], progress)
            labels[index] = all_gather(mine)
            log |= found
        return log | stability(before, self.labels[0])

    def cluster(self, h: int, rows: Tensor, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        """Centroids of head h from this rank's share `rows` (n, D) of a memory; its labels (n,) and scalars to log."""
        kmeans: Any = KMeans(
            self.settings.num_prototypes,
            spherical=True,
            init="random",
            max_iter=self.settings.kmeans_iterations,
            empty="keep",
            random_state=progress.number(f"k-means head {h}"),
        ).fit(rows)
        self.heads[h].weight.copy_(kmeans.cluster_centers_)
        return kmeans.labels_, {f"inertia_{h}": float(kmeans.inertia_)}

    def pseudo_labels(self) -> Tensor:
        return self.labels[0]

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        for output in outputs:
            index, features = output.state
            for memory, z in zip(self.memories, features, strict=True):
                memory.write(index, z, epoch=progress.epoch + 1)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment:
        best, cluster = self.heads[0](self.project(features)).max(dim=1)
        return Assignment(cluster, 1 - best)
