"""K-means of some of the images, selected by number, if the features are distributed over the ranks.

It serves clusterings that follow one another (Caron et al. 2019, arXiv 1905.01278, section 4.2: all images into m sets,
then each set into k): each rank keeps its rows, and only sums and counts are exchanged. The images from which clusters
start are drawn by number, so the result depends neither on the number of ranks nor on which rank holds which image.

Letters: N images, M members, n rows of this rank, d dimensions, k clusters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfcluster import distributed
from selfcluster.clustering.kmeans import KMeans


class Members(NamedTuple):
    """`labels` (M,) int64, `centers` (k, d) and the inertia, equal on all ranks."""

    labels: Tensor
    centers: Tensor
    inertia: float


@torch.no_grad()
def cluster_members(
    rows: Tensor, index: Tensor, members: Tensor, k: int, *, max_iter: int, seed: int, random_split: bool = False
) -> Members:
    """Cluster only the images `members` by k-means, starting from random members.

    Args:
        rows: (n, d), features of the images `index`: this rank's share.
        index: (n,) int64, image numbers; no image is on two ranks.
        members: (M,) int64, equal on all ranks; each is in some rank's `index`.
        k: clusters. If there are fewer members, the surplus centers are copies of others and have no image.
        max_iter: updates of the centers.
        seed: of the start and of the donors for empty clusters, which are split.
        random_split: an empty cluster starts beside its donor in a random direction (see `KMeans`).
    """
    device = rows.device
    place = torch.full((int(members.max()) + 1,), -1, device=device)  # of each image, its row here
    known = index < len(place)
    place[index[known]] = known.nonzero().flatten()
    at = place[members]  # (M,), -1 where another rank holds it
    here = (at >= 0).nonzero().flatten()
    drawn = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))[:k].to(device)
    start = rows.new_zeros(len(drawn), rows.shape[1])
    mine = at[drawn] >= 0
    start[mine] = rows[at[drawn[mine]]]
    first, policy = distributed.all_reduce(start), "split_randomly" if random_split else "split"
    kmeans: Any = KMeans(len(drawn), init=first, max_iter=max_iter, empty=policy, random_state=seed)
    kmeans.fit(rows[at[here]])
    labels = torch.empty_like(members)
    labels[distributed.all_gather(here)] = distributed.all_gather(kmeans.labels_)
    copies = torch.arange(k, device=device) % len(drawn)
    return Members(labels, kmeans.cluster_centers_[copies], float(kmeans.inertia_))


def fill_up_(labels: Tensor, k: int, least: int, generator: torch.Generator) -> None:
    """Fill clusters of fewer than `least` members with half of what the largest cluster can give, in place.

    `labels` (M,) in [0, k) with M >= k least; the members that move are drawn at random.
    """
    while (sizes := torch.bincount(labels, minlength=k)).min() < least:
        donor = (labels == sizes.argmax()).nonzero().flatten()
        order = torch.randperm(len(donor), generator=generator).to(donor.device)
        labels[donor[order[: max(1, (len(donor) - least) // 2)]]] = sizes.argmin()
