"""ODC: cluster and learn at the same time; each step reassigns the labels of its images, from a memory of features.

Zhan et al. 2020, arXiv 2006.10645. B images, V views, D compact features, N images in all, K clusters.
Two memories: of samples (their features F and labels y) and of centroids C. A step reads y, predicts it, moves F
towards the new feature (eq. 2) and sets y to the nearest centroid (eq. 3) for the image's next visit.
Both are the same on all processes. At ImageNet's N = 1,281,167, D = 256 and K = 10,000 they hold 1,342,743,680 bytes,
1,311,915,008 of them F, in each process and each checkpoint. A step uses the rows of its batch; every tenth, all rows.
At the start, a process also needs two copies of its share of F (2,623,830,016 bytes with one process) and some more.
Departs: the weighted loss is divided by the weights of its batch, as released (the paper leaves the factor open); with
several views all predict the label, and the memory takes the mean of the full-resolution ones; small clusters are
refilled in at most ten rounds a step, and once after the first k-means (released: an error where a cluster is empty).
The paper gives neither the classifier's momentum (`head_momentum`; 0 as released), nor the mode in which the network
makes the first features: here in training mode (released: not). The released weights are those of
`--rules released --learning-rate 0.06 --drop 0.4 --epochs 440`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.memory import CentroidMemory, LabelMemory, SampleMemory
from selfcluster.clustering.rebalance import rebalance
from selfcluster.distributed import share
from selfcluster.methods.base import (
    Embed,
    MakeBackbone,
    Method,
    check_clusters,
    clusters_from_data,
    labeled_cross_entropy,
)
from selfcluster.setting import setting
from selfcluster.types import Assignment, Batch, Crops, DatasetInfo, EpochPlan, Group, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class ODCSettings:
    dim: int = setting(256, "D, size of the compact features that are clustered", least=1)
    hidden: int = setting(512, "width of the head's hidden layer", least=1, auto=True)
    dropout: float = setting(0.5, "dropout after the hidden layer", least=0, most=1)
    norm_momentum: float = setting(
        0.001, "momentum of the running statistics in the head's batch norm; 0.1 for short runs", least=0, most=1
    )
    num_prototypes: int = setting(10000, "K, about ten times the classes you expect", least=2, auto=True)
    memory_momentum: float = setting(0.5, "m, share of the new feature in an image's memory, eq. 2", least=0, most=1)
    min_cluster: int = setting(
        20,
        "refill clusters of N images or fewer from the largest cluster; less than images / K; 0: only empty clusters",
        least=0,
        auto=True,
    )
    centroids_every: int = setting(10, "steps between updates of the centroids", least=1)
    kmeans_iterations: int = setting(20, "k-means iterations of the first clustering", least=1)
    head_momentum: float = setting(
        0.0, "momentum of the classifier under sgd, larc and lars; 0 as released", least=0, most=1
    )
    rules: Literal["paper", "released"] = setting(
        "paper",
        "paper: as in the article; released: as in the published code (features of length 1, nearest by dot product, "
        "clusters of N images are not refilled, images drawn with replacement)",
    )


class ODC(Method):
    Settings = ODCSettings
    per_image = ("pseudo.labels", "samples.rows", "samples.written")
    idle = ((("head_momentum",), "optimizer", ("adamw",)),)
    online = True
    advice = "Try fewer --num-prototypes, a lower --learning-rate, or stronger color changes (--augment odc)."
    paper = Training(
        optimizer="sgd",
        learning_rate=0.015,
        schedule="multistep",
        milestones=(400,),
        weight_decay=1e-5,
        epochs=480,
        batch_size=512,
        crops=Crops(global_crops=1, augment="odc"),
    )
    # hundreds of steps, not a million: statistics must settle, and features that move fast keep labels changing
    small = {
        "hidden": 512,
        "norm_momentum": 0.1,
        "dropout": 0.0,
        "memory_momentum": 0.25,
        "optimizer": "sgd",
        "learning_rate": 0.06,
        "weight_decay": 5e-4,
    }

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        check_clusters(settings["num_prototypes"], num_images)

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        chosen = clusters_from_data(run)
        k = run.given.get("num_prototypes", chosen["num_prototypes"].value)
        least = max(1, min(20, run.num_images // (6 * k)))
        return chosen | {"min_cluster": Choice(least, "a sixth of the average cluster size, as in the paper")}

    def __init__(self, make_backbone: MakeBackbone, settings: ODCSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        n, k = data.num_samples, settings.num_prototypes
        least = settings.min_cluster + (settings.rules == "paper")  # that a cluster has to hold to be left alone
        if least * k > n:
            way = (
                f"--min-cluster {n // (6 * k)}" if n >= 6 * k else f"--num-prototypes {max(2, n // 10)} --min-cluster 1"
            )
            raise ValueError(
                f"--min-cluster {settings.min_cluster} is too high: {n} images in {k} clusters are {n / k:.1f} per "
                f"cluster on average. Use {way}"
            )
        self.released = settings.rules == "released"
        self.metric = "inner_product" if self.released else "l2"
        self.backbone = make_backbone()
        self.classifier = nn.Linear(settings.dim, k)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        wide, narrow = nn.Linear(self.backbone.num_features, settings.hidden), nn.Linear(settings.hidden, settings.dim)
        for layer in (wide, narrow):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.head = nn.Sequential(
            wide,
            nn.BatchNorm1d(settings.hidden, momentum=settings.norm_momentum, affine=False),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            narrow,
            nn.ReLU(),
        )
        self.samples = SampleMemory(n, settings.dim, settings.memory_momentum, normalize=self.released)
        self.pseudo = LabelMemory(n)
        self.centroids = CentroidMemory(k, settings.dim)

    def groups(self) -> list[Group]:
        body = [*self.backbone.parameters(), *self.head.parameters()]
        head = Group(self.classifier.parameters(), momentum=self.settings.head_momentum)
        return [Group([p for p in body if p.requires_grad]), head]

    def chance_loss(self) -> float:
        return log(self.settings.num_prototypes)

    def plan(self) -> EpochPlan:
        return EpochPlan(replace=self.released)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        views, size = len(batch.views), batch.views[0].shape[-2:]
        f = self.compact(self.encode_views(batch.views))  # (V * B, D)
        old = self.pseudo.labels[batch.index]  # (B,)
        weight = self.centroids.counts.clamp(min=1).float().rsqrt()  # (K,), section 3.2
        loss = labeled_cross_entropy(self.classifier(f).float(), old.repeat(views), weight)
        full = [f_v for f_v, v in zip(f.detach().chunk(views), batch.views, strict=True) if v.shape[-2:] == size]
        mean = F.normalize(torch.stack(full), dim=2).mean(dim=0)  # (B, D)
        new = self.centroids.nearest(self.samples.moved(batch.index, mean), self.metric)  # eq. 2 and 3
        log = {"change_ratio": (new != old).float().mean()}
        return Output(loss, log, features=f[: len(old)], codes=new, state=(batch.index, mean, new))

    def compact(self, features: Tensor) -> Tensor:
        """(n, F) to (n, D), not negative."""
        return self.head(features).float()

    def should_reassign(self, progress: Progress) -> bool:
        return progress.step == 0  # uninterrupted from then on

    @torch.no_grad()
    def reassign(self, progress: Progress, embed: Embed) -> dict[str, float]:
        """Fill the memories: k-means over the features of all images, once."""
        # in training mode like all later features: a new network's running statistics are not those of images
        first = embed(lambda views: self.compact(self.encode_views(views)), train=not self.released)
        self.samples.write_in_blocks(first.index, first.rows, epoch=0)  # unit rows
        seen = first.seen.nonzero().flatten()
        del first  # k-means takes a copy as large
        mine = seen[share(len(seen))]
        settings = self.settings
        kmeans: Any = KMeans(
            settings.num_prototypes, max_iter=settings.kmeans_iterations, random_state=progress.number("k-means")
        ).fit(self.samples.rows[mine])
        self.pseudo.write(mine, kmeans.labels_)
        self.centroids.recompute(self.samples.rows, self.pseudo.labels)
        return {"inertia": float(kmeans.inertia_), "remade_at_start": self.refill(progress)}

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        index, features, new = (torch.cat(parts) for parts in zip(*(o.state for o in outputs), strict=True))
        self.samples.write(index, features, progress.epoch)
        self.centroids.move(*self.pseudo.write(index, new))
        if (progress.step + 1) % self.settings.centroids_every == 0:
            involved = None if self.released else self.centroids.involved
            self.centroids.recompute(self.samples.rows, self.pseudo.labels, involved)
        self.refill(progress)

    def refill(self, progress: Progress) -> int:
        """Refill the small clusters; return their number."""
        return rebalance(
            self.samples.rows,
            self.pseudo.labels,
            self.centroids,
            self.settings.min_cluster + (not self.released),  # paper: not larger than; released: below
            metric=self.metric,
            half="second" if self.released else "random",
            rounds=1 if self.released else 10,
            seed=progress.number("rebalance"),
        )

    def pseudo_labels(self) -> Tensor:
        return self.pseudo.labels

    def project(self, features: Tensor) -> Tensor:
        return F.normalize(self.compact(features), dim=1)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment:
        z = self.project(features)
        cluster = self.centroids.nearest(z, self.metric)
        return Assignment(cluster, (z - self.centroids.rows[cluster]).norm(dim=1))
