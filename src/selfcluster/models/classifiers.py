"""Many linear classifiers of which a sample needs one: a classifier a group, and the groups shared out over ranks.

Caron et al. 2019, arXiv 1905.01278, section 4.2: the second level of a hierarchical loss, and its distributed training.
n samples, F features, S groups, k classes in each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupedClassifiers(nn.ModuleDict):
    """S linear classifiers (F to k), named by their group; shard i of c holds groups i S / c to (i + 1) S / c - 1.

    Raises:
        ValueError: S cannot be shared out evenly.
    """

    def __init__(self, in_dim: int, classes: int, groups: int, shard: tuple[int, int] = (0, 1)) -> None:
        number, shards = shard
        if groups % shards:
            raise ValueError(f"{groups} groups cannot be shared out evenly over {shards} shards")
        self.num_groups, each = groups, groups // shards
        held = range(number * each, (number + 1) * each)
        super().__init__({str(group): nn.Linear(in_dim, classes) for group in held})

    def forward(self, features: Tensor, group: Tensor, target: Tensor) -> Tensor:
        """The sum of the samples' cross-entropies, each under its own group's classifier.

        Args:
            features: (n, F).
            group: (n,) int64 in [-1, S); a sample of -1, or of a group whose classifier is not here, adds nothing.
            target: (n,) int64 in [0, k).
        """
        order = group.argsort(stable=True)
        counts = torch.bincount(group + 1, minlength=self.num_groups + 1).tolist()  # -1 comes first
        features_of, target_of = features[order].split(counts), target[order].split(counts)
        terms = []
        for name, classifier in self.items():
            s = int(name) + 1  # a group without samples takes part: DDP waits for every gradient
            terms.append(F.cross_entropy(classifier(features_of[s]).float(), target_of[s], reduction="sum"))
        return torch.stack(terms).sum()


@torch.no_grad()
def restart_(linear: nn.Linear, generator: torch.Generator) -> None:
    """nn.Linear's own initialization, from a generator of the host: uniform up to 1 / sqrt(F)."""
    bound = linear.in_features**-0.5
    for parameter in linear.parameters():
        parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
