"""DeeperCluster: predict the rotation of an image together with its cluster, in a hierarchy of clusters.

Caron et al. 2019, arXiv 1905.01278. N images, B of this rank, F features, d whitened axes, K clusters: m super-clusters
of k = K // m each. The pretext task has P labels: 4 rotations, or P permutations of an image's tiles (`pretext`). They
make S = P m super-classes (super-cluster, pretext label), numbered P * super-cluster + label.
Every `reassign_epochs` epochs two consecutive k-means over whitened features of unchanged images make new clusters, and
all classifiers start anew. Each epoch gives every image one pretext label, evenly within each cluster. A batch has
equally many images of each super-class, drawn uniformly over its clusters. With several processes, each group of ranks
handles some super-classes and holds only their classifiers: shard i of c (`data.shard`) holds super-classes i S / c to
(i + 1) S / c - 1. The loss of a sub-classifier is the mean over the samples of its own super-class. So its gradient is
S times as large as its part in a mean over the whole batch. The result is the same on any number of processes.
Sampling and clustering are the same for the paper's alternatives of the loss.
Departs:

- An epoch shows an image in one rotation (released: the ranks of the four rotations draw independently).
- A super-cluster of fewer than P images gets half of the largest one's images beyond P, so no super-class is empty.
- Empty clusters are split by 1 +- 1/1024 (released: 1e-7), with donors drawn anew (released: always the same).
- VGG-16's linear layers start from N(0, 0.01), as DeepCluster's do (released: torch's uniform numbers).
- The paper names Jigsaw as another pretext task, but trains none. Here the tiles of the whole image change places, and
  the network sees them together, because clusters need the features of whole images.
- Color images are not padded (released: by 1). Images before the Sobel filters are padded by 2, as released, or by 1
  before a transformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.assign import nearest_centroid
from selfcluster.clustering.members import Members, cluster_members, fill_up_
from selfcluster.clustering.whitening import WhiteningMemory
from selfcluster.distributed import all_reduce, world_size
from selfcluster.methods.base import (
    Embed,
    MakeBackbone,
    Method,
    check_clusters,
    check_dropout,
    clusters_from_data,
    dropout_of,
    labeled_cross_entropy,
    stability,
)
from selfcluster.models.classifiers import GroupedClassifiers, restart_
from selfcluster.setting import setting
from selfcluster.types import Assignment, Batch, Crops, DatasetInfo, EpochPlan, Output, Progress, Training
from selfcluster.views.pretext import ImageChange


@dataclass(frozen=True, kw_only=True)
class DeeperClusterSettings:
    num_prototypes: int = setting(
        320000, "K, total number of clusters; each super-cluster has the same number", least=2, auto=True
    )
    num_super_clusters: int = setting(
        4, "m; P pretext labels make P m super-classes; 2 suits small data; 1: super-classes are the labels", least=1
    )
    pretext: Literal["rotation", "jigsaw"] = setting("rotation", "quarter turns; jigsaw: 3 x 3 tiles change places")
    num_permutations: int = setting(4, "P, orders of the tiles for --pretext jigsaw", least=2)
    combination: Literal["hierarchical", "sum", "product"] = setting(
        "hierarchical", "hierarchical: super-class, then cluster (eq. 5); sum: two losses; product: eq. 4"
    )
    reassign_epochs: int = setting(3, "epochs between two clusterings; 5 on ImageNet", least=1)
    pca_dim: int = setting(4096, "d, whitened dimensions for k-means; at most the number of features", least=1)
    kmeans_iterations: int = setting(10, "updates of the centroids at each clustering", least=1)
    network_dropout: float | None = setting(
        None, "dropout inside deepcluster_vgg16 and deepcluster_alexnet, instead of 0.5", least=0, most=1
    )


class DeeperCluster(Method):
    Settings = DeeperClusterSettings
    idle = ((("num_permutations",), "pretext", ("rotation",)),)
    per_image = ("labels", "turns")
    edge_border = 2  # as published: what the network's own zeros meet are edges of nothing
    advice = "Try fewer --num-prototypes, --sobel (against clusters of colors), or --init with a RotNet run's weights."
    # a rate that ends at 0 leaves the last new classifiers above chance
    small = {"sobel": False, "schedule": "constant", "augment": "weak", "num_super_clusters": 2, "pca_dim": 64}
    paper = Training(
        backbone="deepcluster_vgg16",
        sobel=True,
        learning_rate=0.1,
        per=3072,
        schedule="constant",
        weight_decay=1e-5,
        epochs=100,
        batch_size=3072,
        crops=Crops(global_crops=1, augment="weak"),
    )

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        check_clusters(settings["num_prototypes"], num_images)
        check_dropout(settings)
        kind, m, batch = settings["pretext"], settings["num_super_clusters"], settings["batch_size"]
        groups = m * ImageChange.count(kind, settings["num_permutations"])
        if batch % groups:
            raise ValueError(
                f"--batch-size {batch} does not hold equally many images of each of {groups} super-classes ({m} super-"
                f"clusters by {groups // m} labels of {kind}); use --batch-size {max(groups, batch - batch % groups)}"
            )

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        return clusters_from_data(run)

    def __init__(self, make_backbone: MakeBackbone, settings: DeeperClusterSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        n, wanted, self.m = data.num_samples, settings.num_prototypes, settings.num_super_clusters
        if not 1 <= self.m <= wanted <= n:
            words = f"1 to --num-prototypes {wanted}, which must be at most the number of images, {n}"
            raise ValueError(f"--num-super-clusters {self.m} must be from {words}")
        if self.shards(settings) % data.shard[1]:
            raise ValueError(f"--combination {settings.combination} does not allow {data.shard[1]} shards")
        self.change = ImageChange(settings.pretext, settings.num_permutations)
        self.p = self.change.labels
        self.k, self.num_super_classes = wanted // self.m, self.p * self.m
        self.backbone = make_backbone(**dropout_of(settings.network_dropout))
        width = self.backbone.num_features
        dim, total = min(settings.pca_dim, width), self.m * self.k
        self.heads: Any = COMBINATIONS[settings.combination](width, self.p, self.m, self.k, data.shard)
        self.labels = nn.Buffer(torch.full((n,), -1))  # (N,) super-cluster * k + cluster in it, -1 = none
        self.turns = nn.Buffer(torch.zeros(n, dtype=torch.int64))  # (N,) this epoch's pretext labels
        self.reassigned = nn.Buffer(torch.zeros((), dtype=torch.bool))  # whether the last reassignment clustered
        self.whitening = WhiteningMemory(dim, width)
        self.super_centers = nn.Buffer(torch.zeros(self.m, dim))
        self.centers = nn.Buffer(torch.zeros(total, dim))

    @classmethod
    def shards(cls, settings: DeeperClusterSettings) -> int:
        """Into how many shards the classifiers can be parted at most."""
        if settings.combination != "hierarchical":
            return 1
        return settings.num_super_clusters * ImageChange.count(settings.pretext, settings.num_permutations)

    def sharded(self) -> tuple[str, ...]:
        """Names of the parameters that only the ranks of this shard hold."""
        return tuple(name for name, _ in self.sub_parameters()) if self.data.shard[1] > 1 else ()

    def sub_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if name.startswith("heads.sub.")]

    def chance_loss(self) -> float:
        return log(self.p * self.m * self.k)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        turn, cluster = self.turns[batch.index], self.labels[batch.index]  # each (B,)
        features = self.encode_views([self.change(view, turn) for view in batch.views])  # (V * B, F)
        views = len(batch.views)
        loss, seen = self.heads(self.final_relu(features), turn.repeat(views), cluster.repeat(views))
        right = (seen == turn.repeat(views)).float().mean()
        return Output(loss, log={f"{self.change.name}_accuracy": right}, features=features[: len(turn)], codes=cluster)

    def on_backward(self, progress: Progress) -> None:
        grads = [p.grad for _, p in self.sub_parameters() if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, self.num_super_classes)

    @torch.no_grad()
    def reassign(self, progress: Progress, embed: Embed) -> dict[str, float]:
        """Draw pretext labels; every `reassign_epochs` epochs cluster first and start the classifiers anew."""
        self.reassigned.fill_(progress.epoch % self.settings.reassign_epochs == 0)
        log = self.cluster_images(progress, embed) if self.reassigned else {}
        # round and round over images ordered by cluster, at random in each: every cluster has all labels
        order = torch.randperm(len(self.labels), generator=progress.generator("rotations")).to(self.labels.device)
        order = order[self.labels[order].argsort(stable=True)]
        first = progress.number("first rotation")
        self.turns[order] = (torch.arange(len(order), device=order.device) + first) % self.p
        return log

    def cluster_images(self, progress: Progress, embed: Embed) -> dict[str, float]:
        """Two consecutive k-means over whitened features of unchanged images; no rank holds another's rows."""
        share = embed(lambda views: self.encode(views[0]))
        rows = self.whitening.fit_transform(share.rows)
        seen, before = share.seen.nonzero().flatten(), self.labels.clone()
        if len(seen) < self.num_super_classes:
            raise ValueError(f"{len(seen)} good images are too few for {self.num_super_classes} super-classes")

        def clusters(members: Tensor, k: int, purpose: str) -> Members:
            updates, seed = self.settings.kmeans_iterations, progress.number(purpose)
            return cluster_members(rows, share.index, members, k, max_iter=updates, seed=seed)

        supers, centers, inertia = clusters(seen, self.m, "super-clusters")
        fill_up_(supers, self.m, self.p, progress.generator("small super-clusters"))
        self.super_centers.copy_(centers)
        self.labels.fill_(-1)
        numbers = {"inertia_super": inertia, "inertia": 0.0}
        for p, part in enumerate(self.centers.split(self.k)):
            members = seen[supers == p]
            sub, centers, inertia = clusters(members, self.k, f"clusters of {p}")
            self.labels[members] = p * self.k + sub
            part.copy_(centers)
            numbers["inertia"] += inertia
        for name, head in self.heads.named_modules():
            if isinstance(head, nn.Linear):
                restart_(head, progress.generator(f"classifier {name}"))
        return numbers | stability(before, self.labels)

    def pseudo_labels(self) -> Tensor:
        return self.labels

    def plan(self) -> EpochPlan:
        heads = tuple(f"heads.{name}" for name, _ in self.heads.named_parameters()) if self.reassigned else ()
        return EpochPlan(balance=self.labels, groups=super_class(self.labels, self.turns, self.p, self.k), reset=heads)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment:
        """The nearest super-cluster in the whitened space of the last reassignment, then its nearest cluster."""
        rows = self.whitening.transform(features.float())
        part = nearest_centroid(rows, self.super_centers).labels
        cluster, distance = torch.empty_like(part), rows.new_empty(len(rows))
        for p, centers in enumerate(self.centers.split(self.k)):
            found = nearest_centroid(rows[part == p], centers)
            cluster[part == p], distance[part == p] = p * self.k + found.labels, found.distances.sqrt()
        return Assignment(cluster, distance)


# Section 4.1 (eq. 1, 2, 4) and 4.2 (eq. 5): three ways to predict an image's rotation and its cluster together; a
# permutation in place of the rotation changes P alone. Each is called with features (n, F), pretext labels (n,) and
# clusters (n,), -1 = none. It returns the loss, a mean over all ranks' samples that have a cluster, and the pretext
# labels (n,) that it predicts.


class Hierarchical(nn.Module):
    """Eq. 5: the super-class, then under its own classifier the cluster in it. A shard holds some sub-classifiers."""

    def __init__(self, width: int, p: int, m: int, k: int, shard: tuple[int, int]) -> None:
        super().__init__()
        self.p, self.k = p, k
        self.super = nn.Linear(width, p * m)
        self.sub = GroupedClassifiers(width, k, p * m, shard)

    def forward(self, f: Tensor, turn: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.super(f).float()  # (n, S)
        group = super_class(cluster, turn, self.p, self.k)
        count = all_reduce((group >= 0).sum().float()) / world_size()  # a rank's mean: gradients are averaged
        sub = self.sub(f, group, cluster % self.k) / torch.where(count > 0, count, 1.0)
        return labeled_cross_entropy(logits, group) + sub, logits.argmax(dim=1) % self.p


class Sum(nn.Module):
    """Eq. 1 + eq. 2: two tasks that know nothing of each other."""

    def __init__(self, width: int, p: int, m: int, k: int, shard: tuple[int, int]) -> None:
        super().__init__()
        self.rotation = nn.Linear(width, p)
        self.cluster = nn.Linear(width, m * k)

    def forward(self, f: Tensor, turn: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.rotation(f).float()  # (n, P)
        rotations = labeled_cross_entropy(logits, torch.where(cluster >= 0, turn, -1))
        return rotations + labeled_cross_entropy(self.cluster(f).float(), cluster), logits.argmax(dim=1)


class Product(nn.Module):
    """Eq. 4: one class for each cluster with each pretext label."""

    def __init__(self, width: int, p: int, m: int, k: int, shard: tuple[int, int]) -> None:
        super().__init__()
        self.p = p
        self.joint = nn.Linear(width, p * m * k)

    def forward(self, f: Tensor, turn: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.joint(f).float()  # (n, P m k)
        target = torch.where(cluster >= 0, cluster * self.p + turn, -1)
        return labeled_cross_entropy(logits, target), logits.argmax(dim=1) % self.p


COMBINATIONS = {"hierarchical": Hierarchical, "sum": Sum, "product": Product}


def super_class(cluster: Tensor, turn: Tensor, p: int, k: int) -> Tensor:
    """(n,) in [0, S), -1 where there is no cluster."""
    return torch.where(cluster >= 0, cluster // k * p + turn, -1)
