"""ClusterFit: a new network predicts the clusters of a trained network's features.

Yan et al. 2020, arXiv 1912.03330. B images, V views, F features, T teachers (one head each), K clusters, N images.
What a head learns (`target`) is made once, before the first step (`training/targets.py`): k-means of the teacher's
l2-normalized features of center crops, or one of the paper's comparisons. Distillation and regression ask the teacher
at each step, about the very views that the new network sees.
Departs: k-means takes all images (released: at most 256 for each cluster). The teacher of a distillation is a run of
`supervised` on the same classes; public weights teach their own classes, with `distill_weight` 1 and without labels.
Distillation multiplies its soft term by the squared temperature, as Hinton et al. (arXiv 1503.02531) do and
the paper does not say: at 20 that term would vanish. The paper does not give the regression's loss: here it is the
squared distance to the unit feature. Rates are one for all parameters (released: no decay of batch norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster import distributed, randomness
from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.assign import nearest_centroid
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.members import cluster_members
from selfcluster.clustering.whitening import Whitening
from selfcluster.methods.base import MakeBackbone, check_clusters, clusters_from_data
from selfcluster.methods.supervised import Supervised
from selfcluster.setting import setting
from selfcluster.types import Assignment, Crops, DatasetInfo, Training


@dataclass(frozen=True, kw_only=True)
class ClusterFitSettings:
    teacher: str | None = setting(
        None,
        "starter, timm:NAME, a run, an export, FILE, NETWORK=FILE or an untrained network; repeat for several",
        repeat=True,
    )
    teacher_layer: str | None = setting(
        None, "layer whose output is clustered, e.g. layer3, or one per teacher: layer3,blocks.11"
    )
    teacher_pca: int = setting(0, "principal components to keep and whiten before k-means; 0: no whitening", least=0)
    target: Literal["kmeans", "per_label", "prototypes", "distill", "regress"] = setting(
        "kmeans",
        "kmeans: clusters of the teacher's features; per_label: clusters within each label; prototypes: the nearest "
        "class mean; distill: the teacher's predictions; regress: its features",
    )
    num_prototypes: int = setting(16000, "K, clusters of a teacher's features (kmeans, per_label)", least=2, auto=True)
    kmeans_iterations: int = setting(50, "updates of the centroids on all images", least=1)
    kmeans_sample: int | None = setting(
        None, "run k-means on N images first; then 5 --kmeans-iterations are enough", least=1
    )
    kmeans_sample_iterations: int = setting(30, "updates of the centroids on that sample", least=1)
    rounds: int = setting(
        1, "number of rounds; each round clusters the features of the network from the round before", least=1
    )
    distill_weight: float = setting(
        0.75,
        "weight of the teacher's predictions in the loss; the labels have 1 minus this; 1: no labels are needed",
        least=0,
        most=1,
    )
    distill_temperature: float = setting(20.0, "T, temperature of the softmax of both networks", least=1e-4)


class ClusterFit(Supervised):
    Settings = ClusterFitSettings
    idle = (
        (("distill_weight", "distill_temperature"), "target", ("kmeans", "per_label", "prototypes", "regress")),
        (("kmeans_iterations", "kmeans_sample", "teacher_pca"), "target", ("prototypes", "distill", "regress")),
        (("kmeans_sample_iterations",), "kmeans_sample", (None,)),
    )
    supports_accumulation = True
    advice = "Try fewer --num-prototypes, a lower --learning-rate, or another --teacher-layer."
    paper = Training(
        schedule="step",
        milestones=(30,),
        epochs=105,
        crops=Crops(global_crops=1, augment="clusterfit"),
    )

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        if settings["target"] in ("kmeans", "per_label"):
            check_clusters(settings["num_prototypes"], num_images)

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        return clusters_from_data(run)

    def __init__(self, make_backbone: MakeBackbone, settings: ClusterFitSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        teachers = list(data.teacher or [])
        self.teachers = nn.ModuleList(teachers)  # asked at each step; none where all targets are made beforehand
        for teacher, head in zip(teachers, self.heads, strict=False):
            if teacher.width != head.out_features:
                raise ValueError(
                    f"the teacher knows {teacher.width} classes, but the labels have {head.out_features}; give a "
                    "--teacher that was trained on these classes"
                )

    def widths(self) -> list[int]:
        alone = self.settings.target == "distill" and self.settings.distill_weight == 1
        if alone or self.settings.target == "regress":
            return [teacher.width for teacher in self.data.teacher]
        return super().widths()

    def chance_loss(self) -> float | None:
        return None if len(self.teachers) else super().chance_loss()

    def losses(self, outputs: Sequence[Tensor], targets: Tensor, views: Sequence[Tensor]) -> list[Tensor]:
        if not len(self.teachers):
            return super().losses(outputs, targets, views)
        told = [torch.cat([teacher(view) for view in views]) for teacher in self.teachers]  # each (V * B, F or K)
        if self.settings.target == "regress":
            return [(out - F.normalize(t)).square().sum(dim=1).mean() for out, t in zip(outputs, told, strict=True)]
        weight = self.settings.distill_weight
        soft = [self.divergence(out, t) for out, t in zip(outputs, told, strict=True)]
        if weight == 1:  # no labels are needed, and the teacher's classes may be others
            return soft
        hard = super().losses(outputs, targets, views)
        return [weight * s + (1 - weight) * h for s, h in zip(soft, hard, strict=True)]

    def divergence(self, outputs: Tensor, told: Tensor) -> Tensor:
        """Cross-entropy to the teacher's softened predictions, less their entropy, which no weight moves."""
        t = self.settings.distill_temperature
        student, teacher = ((logits / t).log_softmax(dim=1) for logits in (outputs, told))
        return t**2 * (teacher.exp() * (teacher - student)).sum(dim=1).mean()

    def codes(self, outputs: Tensor) -> Tensor | None:
        """The predicted clusters (B,), where there are --num-prototypes of them."""
        return outputs.argmax(dim=1) if self.settings.target in ("kmeans", "per_label") else None

    def pseudo_labels(self) -> Tensor | None:
        made = self.settings.target in ("kmeans", "per_label", "prototypes")
        return self.labels[0] if made else None

    @torch.no_grad()
    def assign(self, features: Tensor) -> Assignment | None:
        return None if self.settings.target == "regress" else super().assign(features)


def cluster(rows: Tensor, index: Tensor, config: RunSettings, k: int | None = None, number: int = 0) -> Tensor:
    """Return clusters (n,) of rows (n, F): k-means to K, in two stages with a sample, whitened with `teacher_pca`.

    `index` (n,): the images of the rows. Start and sample are drawn by it, so they are equal on any number of ranks.
    """
    if config["teacher_pca"]:
        rows = Whitening(config["teacher_pca"], normalize=False).fit_transform(rows)
    k = int(config["num_prototypes"] if k is None else k)
    seed, steps = randomness.key(config["seed"], "clusterfit", number) >> 33, config["kmeans_iterations"]
    everyone = distributed.all_gather(index).sort().values
    size = config["kmeans_sample"]
    if size is None or size >= len(everyone):
        found = cluster_members(rows, index, everyone, k, max_iter=steps, seed=seed)
        return found.labels[torch.searchsorted(everyone, index)]
    drawn = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(seed))[: max(k, size)]
    sample, first = everyone[drawn.to(index.device)], config["kmeans_sample_iterations"]
    start = cluster_members(rows, index, sample, k, max_iter=steps if first is None else first, seed=seed).centers
    kmeans: Any = KMeans(k, init=start, max_iter=steps, random_state=seed)
    return kmeans.fit(rows).labels_


def prototypes(rows: Tensor, labels: Tensor) -> Tensor:
    """Return for each row (n, F) the label whose mean over all ranks' rows is nearest (n,): one assignment."""
    count = 1 + max(distributed.gather_objects(int(labels.max()) if len(labels) else 0))
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, labels, rows)
    sizes = torch.bincount(labels, minlength=count)
    sums, sizes = distributed.all_reduce(sums), distributed.all_reduce(sizes)
    known = sizes.nonzero().flatten()  # a label without an image has no mean
    return known[nearest_centroid(rows, sums[known] / sizes[known, None]).labels]


def cluster_by_label(rows: Tensor, index: Tensor, labels: Tensor, config: RunSettings) -> Tensor:
    """Return K clusters (n,) that lie within one label each; a label's share is in proportion to its size's root."""
    count = 1 + max(distributed.gather_objects(int(labels.max()) if len(labels) else 0))
    sizes = distributed.all_reduce(torch.bincount(labels, minlength=count)).cpu().numpy()
    shares = allot(sizes, config["num_prototypes"])
    found, first = torch.empty_like(labels), 0
    if config["teacher_pca"]:  # of all rows: a label alone may have fewer than there are components
        rows = Whitening(config["teacher_pca"], normalize=False).fit_transform(rows)
    for label in np.flatnonzero(shares):
        here = labels == label
        within: RunSettings = {**config, "teacher_pca": 0}
        found[here] = first + cluster(rows[here], index[here], within, int(shares[label]), int(label))
        first += int(shares[label])
    return found


def allot(sizes: np.ndarray, k: int) -> np.ndarray:
    """Return how many of k clusters each label gets (L,), in proportion to the roots of the labels' sizes (L,).

    A label gets at least 1 and at most as many clusters as it has images. What rounding leaves over goes where the
    share falls short most.

    >>> allot(np.array([100, 400, 0]), 6).tolist()
    [2, 4, 0]
    """
    least, most = np.minimum(sizes, 1), sizes
    if not least.sum() <= k <= most.sum():
        raise ValueError(
            f"--num-prototypes {k}: must be between {least.sum()}, the number of labels, and {most.sum()}, the number "
            "of labeled images"
        )
    wanted = k * np.sqrt(sizes) / np.sqrt(sizes).sum()
    shares = np.clip(np.floor(wanted).astype(np.int64), least, most)
    while (missing := k - shares.sum()) != 0:
        step = int(np.sign(missing))
        free = shares < most if step > 0 else shares > least
        shares[np.argmax(np.where(free, step * (wanted - shares), -np.inf))] += step
    return shares
