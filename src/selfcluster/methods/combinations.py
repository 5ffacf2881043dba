"""DeeperCluster's three ways to predict an image's rotation and its cluster together.

Caron et al. 2019, arXiv 1905.01278, section 4.1 (sum and product, eq. 1, 2 and 4) and section 4.2 (hierarchy, eq. 5).
n samples, F features, m super-clusters of k clusters each; a cluster's number is super-cluster * k + its place there,
-1 = none; S = 4 m super-classes (super-cluster, rotation), numbered 4 * super-cluster + quarter turns.
Each is a module called with features (n, F), turns (n,) and clusters (n,); it returns the loss, a mean over all ranks'
samples that have a cluster, and the turns (n,) that it would have answered.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfcluster.distributed import all_reduce, world_size
from selfcluster.methods.base import labeled_cross_entropy
from selfcluster.models.classifiers import GroupedClassifiers

TURNS = 4


class Hierarchical(nn.Module):
    """Eq. 5: the super-class, then under its own classifier the cluster in it. A shard holds some sub-classifiers."""

    def __init__(self, width: int, m: int, k: int, shard: tuple[int, int]) -> None:
        super().__init__()
        self.k = k
        self.super = nn.Linear(width, TURNS * m)
        self.sub = GroupedClassifiers(width, k, TURNS * m, shard)

    def forward(self, f: Tensor, turn: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.super(f).float()  # (n, S)
        group = super_class(cluster, turn, self.k)
        count = all_reduce((group >= 0).sum().float()) / world_size()  # a rank's mean: gradients are averaged
        sub = self.sub(f, group, cluster % self.k) / torch.where(count > 0, count, 1.0)
        return labeled_cross_entropy(logits, group) + sub, logits.argmax(dim=1) % TURNS


class Sum(nn.Module):
    """Eq. 1 + eq. 2: two tasks that know nothing of each other."""

    def __init__(self, width: int, m: int, k: int, shard: tuple[int, int]) -> None:
        super().__init__()
        self.rotation = nn.Linear(width, TURNS)
        self.cluster = nn.Linear(width, m * k)

    def forward(self, f: Tensor, turn: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.rotation(f).float()  # (n, 4)
        rotations = labeled_cross_entropy(logits, torch.where(cluster >= 0, turn, -1))
        return rotations + labeled_cross_entropy(self.cluster(f).float(), cluster), logits.argmax(dim=1)


class Product(nn.Module):
    """Eq. 4: one class for each cluster in each rotation."""

    def __init__(self, width: int, m: int, k: int, shard: tuple[int, int]) -> None:
        super().__init__()
        self.joint = nn.Linear(width, TURNS * m * k)

    def forward(self, f: Tensor, turn: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.joint(f).float()  # (n, 4 m k)
        target = torch.where(cluster >= 0, cluster * TURNS + turn, -1)
        return labeled_cross_entropy(logits, target), logits.argmax(dim=1) % TURNS


COMBINATIONS = {"hierarchical": Hierarchical, "sum": Sum, "product": Product}


def super_class(cluster: Tensor, turn: Tensor, k: int) -> Tensor:
    """(n,) in [0, S), -1 where there is no cluster."""
    return torch.where(cluster >= 0, cluster // k * TURNS + turn, -1)
