"""DeepCluster: cluster the features of all images each epoch, and train the network to predict the clusters.

Caron et al. 2018, arXiv 1807.05520, and section 3 of Caron's thesis (power-iteration clustering, weights for uniform
sampling). B images, V views, F features, d axes kept, N images in all, K rows of the classifier (C clusters in use).
Features are the backbone's output, for `deepcluster_alexnet` and `deepcluster_vgg16` before the last ReLU, of center
crops; the classifier stands behind the ReLU.
Departs: whitening bounds the smallest variances (1e-5 of the largest; the released code has no bound);
`uniform` draws each cluster equally often; the released sampler draws images by the positions of other images
(`weighting released` repeats this); the classifier has no momentum, as released (the thesis gives 0.9 for all
parameters: `head_momentum`); if a cluster is empty, its centroid and its donor's are the donor's times 1 + 1/1024 and
1 - 1/1024, as in faiss (the thesis adds a small random perturbation: `split`); weighted losses are divided by the sum
of the batch's weights, not by its number of images; if power iteration finds more than `max_clusters`, images of the
smallest clusters are not used in this epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.assign import nearest_centroid
from selfcluster.clustering.members import cluster_members
from selfcluster.clustering.pic import PowerIterationClustering
from selfcluster.clustering.whitening import WhiteningMemory
from selfcluster.distributed import all_gather, all_reduce, share
from selfcluster.methods.base import (
    Embed,
    MakeBackbone,
    Method,
    check_clusters,
    check_enough_images,
    clusters_from_data,
    labeled_cross_entropy,
    stability,
)
from selfcluster.setting import setting
from selfcluster.types import Assignment, Batch, Crops, DatasetInfo, EpochPlan, Group, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class DeepClusterSettings:
    num_prototypes: int = setting(10000, "K, clusters of k-means", least=2, auto=True)
    clustering: Literal["kmeans", "pic"] = setting(
        "kmeans", "kmeans, or pic (power iteration clustering), which chooses the number of clusters itself"
    )
    max_clusters: int = setting(10000, "with pic: maximum number of clusters", least=1)
    pca_dim: int = setting(256, "d, whitened dimensions of the features for k-means", least=1)
    kmeans_iterations: int = setting(20, "updates of the centroids at each reassignment", least=1)
    reassign_epochs: int = setting(1, "epochs from one reassignment to the next", least=1)
    weighting: Literal["uniform", "inverse", "inverse_sqrt", "none", "released"] = setting(
        "uniform",
        "balance clusters by drawing them equally often (uniform), by weights in the loss (inverse, inverse_sqrt), not "
        "at all (none), or as in the published code (released)",
    )
    split: Literal["alternating", "random"] = setting(
        "alternating", "how an empty cluster moves away from its donor: up and down by 1/1024 in turn, or at random"
    )
    head_momentum: float = setting(
        0.0, "momentum of the classifier under sgd, larc and lars; the thesis has 0.9", least=0, most=1
    )
    dropout: float = setting(
        0.0, "dropout between features and classifier; AlexNet and VGG16 contain the paper's dropout", least=0, most=1
    )


class DeepCluster(Method):
    Settings = DeepClusterSettings
    per_image = ("labels",)
    idle = (
        (("max_clusters",), "clustering", ("kmeans",)),
        (("num_prototypes", "kmeans_iterations", "split"), "clustering", ("pic",)),
        (("head_momentum",), "optimizer", ("adamw",)),
    )
    supports_accumulation = True
    # small images keep their colors, which the views change (not compared with edges); a rate that ends at 0 leaves
    # the last new classifiers near chance; on the digits, one seed of 10 epochs, 64 axes ended with 70 effective
    # clusters of 80, 256 axes with 22
    small = {"sobel": False, "schedule": "constant", "pca_dim": 64}
    advice = "Try more --num-prototypes, stronger views (--augment cifar), or a lower --learning-rate."
    paper = Training(
        backbone="deepcluster_alexnet",
        sobel=True,
        optimizer="sgd",
        learning_rate=0.05,
        schedule="constant",
        weight_decay=1e-5,
        epochs=500,
        batch_size=256,
        crops=Crops(global_crops=1, augment="weak"),
    )

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        if settings["clustering"] == "kmeans":
            check_clusters(settings["num_prototypes"], num_images)
        if settings["accumulate"] > 1 and settings["weighting"] in ("inverse", "inverse_sqrt"):
            raise ValueError(
                f"--accumulate {settings['accumulate']}: --weighting {settings['weighting']} divides by the weights of "
                "a whole batch, so several small batches do not equal a large one. Use a smaller --batch-size or "
                "--weighting uniform"
            )

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        return clusters_from_data(run)

    def __init__(self, make_backbone: MakeBackbone, settings: DeepClusterSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        self.pic = settings.clustering == "pic"
        n = data.num_samples
        k = min(n, settings.max_clusters) if self.pic else settings.num_prototypes
        check_enough_images(k, n)
        self.backbone = make_backbone()
        width = self.backbone.num_features
        d = min(settings.pca_dim, width, n)
        self.head = nn.Linear(width, k)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("labels", torch.full((n,), -1))  # (N,), -1 = none
        self.register_buffer("clusters", torch.tensor(k))  # C: rows of the head from here on are masked
        self.register_buffer("weight", torch.ones(k))  # of each cluster in the loss
        self.whitening = WhiteningMemory(d, width)
        self.register_buffer("centroids", torch.zeros(k, d))
        self.labels: Tensor
        self.clusters: Tensor
        self.weight: Tensor
        self.centroids: Tensor

    def groups(self) -> list[Group]:
        body = [p for p in self.backbone.parameters() if p.requires_grad]
        return [Group(body), Group(self.head.parameters(), momentum=self.settings.head_momentum)]

    def chance_loss(self) -> float | None:
        even = self.settings.weighting in ("uniform", "inverse")  # else guessing by size does better
        return log(self.settings.num_prototypes) if even and not self.pic else None

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.encode_views(batch.views)  # (V * B, F)
        target = self.labels[batch.index]  # (B,)
        logits = self.logits(F.dropout(self.final_relu(features), self.settings.dropout, self.training))
        loss = labeled_cross_entropy(logits, target.repeat(len(batch.views)), self.weight)
        # health counts num_prototypes codes; power iteration may find more
        return Output(loss, features=features[: len(target)], codes=None if self.pic else target)

    def logits(self, features: Tensor) -> Tensor:
        """Rectified features (n, F) to scores (n, K), -infinity for clusters that are not in use."""
        unused = torch.arange(len(self.weight), device=features.device) >= self.clusters
        return self.head(features).float().masked_fill(unused, -torch.inf)

    def should_reassign(self, progress: Progress) -> bool:
        return progress.step % (self.settings.reassign_epochs * progress.steps_per_epoch) == 0

    @torch.no_grad()
    def reassign(self, progress: Progress, embed: Embed) -> dict[str, float]:
        """Cluster the whitened features of all center crops, and start the classifier anew."""
        shares = embed(lambda views: self.encode(views[0]), view="center")
        rows = self.whitening.fit_transform(shares.rows)  # (n, d)
        seen, order = all_gather(shares.index).sort()
        before = self.labels.clone()
        self.labels.fill_(-1)
        # by the images' numbers: the same whoever holds what
        if self.pic:
            self.labels[seen] = all_gather(self.power_iteration(all_gather(rows)[order][share(len(order))]))
        else:
            steps, seed = self.settings.kmeans_iterations, progress.number("k-means")
            k, noise = len(self.centroids), self.settings.split == "random"
            found = cluster_members(rows, shares.index, seen, k, max_iter=steps, seed=seed, random_split=noise)
            self.labels[seen], self.centroids[:] = found.labels, found.centers
        sizes = torch.bincount(self.labels[self.labels >= 0], minlength=len(self.weight))
        power = {"inverse": -1.0, "inverse_sqrt": -0.5}.get(self.settings.weighting, 0.0)
        self.weight.copy_(sizes.clamp(min=1).float() ** power)
        # drawn on the host, so that every device and rank starts from the same
        self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=progress.generator("head")) * 0.01)
        self.head.bias.zero_()
        log = {"clusters": float((sizes > 0).sum()), "largest_cluster": float(sizes.max())}
        return log | stability(before, self.labels)

    def power_iteration(self, rows: Tensor) -> Tensor:
        """Labels of this rank's whitened rows, the largest cluster first; -1 beyond the classifier's rows."""
        labels = torch.as_tensor(PowerIterationClustering().fit_predict(rows), device=rows.device)
        everyone = all_gather(labels)
        rank = torch.bincount(everyone).argsort(descending=True, stable=True).argsort()
        labels, k = rank[labels], len(self.centroids)
        self.clusters.fill_(min(k, len(rank)))
        kept = labels < k
        sums = torch.zeros(k, rows.shape[1] + 1, dtype=torch.float64, device=rows.device)
        sums.index_add_(0, labels[kept], F.pad(rows[kept].double(), (0, 1), value=1.0))
        sums = all_reduce(sums)  # (K, d + 1), the last column counts
        self.centroids.copy_(sums[:, :-1] / sums[:, -1:].clamp(min=1))
        return torch.where(kept, labels, -1)

    def pseudo_labels(self) -> Tensor:
        return self.labels

    def plan(self) -> EpochPlan:
        reset = ("head.weight", "head.bias")
        if self.settings.weighting == "uniform":
            return EpochPlan(balance=self.labels, reset=reset)
        if self.settings.weighting == "released":
            # it draws image i, and shows the i-th of the images put in order of their clusters
            seen = (self.labels >= 0).nonzero().flatten()
            drawn = torch.full_like(self.labels, -1)
            drawn[seen[self.labels[seen].argsort(stable=True)]] = self.labels[seen]
            return EpochPlan(balance=drawn, reset=reset)
        return EpochPlan(reset=reset)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment:
        """The nearest centroid in the whitened space of the last reassignment."""
        found = nearest_centroid(self.whitening.transform(features.float()), self.centroids[: int(self.clusters)])
        return Assignment(found.labels, found.distances.float().sqrt())
