"""Initial centroids of k-means: random members, k-means++ on a subsample, k-means||.

k-means++: Arthur and Vassilvitskii 2007. k-means||: Bahmani et al. 2012, arXiv 1203.6402 (algorithm 2).
All choices use a row's global number, so they do not depend on how rows are distributed over ranks.

Letters: N rows of all ranks, d dimensions, k centroids, m candidates.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from selfcluster import distributed, randomness
from selfcluster.clustering.assign import nearest_centroid
from selfcluster.clustering.rows import Rows, choose

_SUBSAMPLE = 65_536  # k-means++ is sequential in k, so a large set is sampled first
_BLOCK = 4096  # rows made float64 at once
_ROUNDS = 5  # section 5 of arXiv 1203.6402: five rounds suffice
_OVERSAMPLING = 2.0  # candidates per round, in units of k


def random_members(rows: Rows, k: int, seed: int) -> Tensor:
    """Return k different rows, each equally likely, but none of weight zero: (k, d), equal on all ranks.

    If directions are clustered, rows of zeros are chosen only if there are fewer than k others, because a row of zeros
    is equally far from everything.

    Raises:
        ValueError: fewer than k rows have a weight above zero.
    """
    if rows.weight is None and not rows.has_zeros:
        return rows.numbers(choose(rows.total, k, seed))
    alive = np.flatnonzero(_all_weights(rows) > 0)
    if len(alive) < k and rows.has_zeros:
        alive = np.flatnonzero(_all_weights(rows, zeros=True) > 0)
    if len(alive) < k:
        raise ValueError(f"only {len(alive)} rows have a weight above zero, fewer than n_clusters={k}")
    return rows.numbers(alive[choose(len(alive), k, seed)])


def k_means_plus_plus(rows: Rows, k: int, seed: int) -> Tensor:
    """Return k-means++ centroids of at most 65,536 rows (4k if that is more): (k, d), equal on all ranks."""
    size = min(rows.total, max(_SUBSAMPLE, 4 * k))
    numbers = np.sort(choose(rows.total, size, seed)) if size < rows.total else np.arange(size)
    plain = rows.weight is None and not rows.has_zeros
    weight = None if plain else torch.from_numpy(_all_weights(rows)[numbers])
    chosen = _spread(rows.numbers(numbers), k, seed, weight)
    return distributed.broadcast(chosen)


def k_means_parallel(rows: Rows, k: int, seed: int) -> Tensor:
    """Return k-means|| centroids: five rounds draw about 2k rows each by squared distance, then k-means++ chooses.

    Returns:
        (k, d), equal on all ranks. Where the draws give fewer than k rows, random members are added.
    """
    candidates = rows.numbers(choose(rows.total, 1, seed))  # (m, d)
    distances = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    new = candidates
    for turn in range(_ROUNDS):
        for part, x in rows.blocks():
            found = nearest_centroid(x, new).distances.double().cpu()
            weight = rows.weights(part)
            found = found if weight is None else found * weight.cpu()
            found = found if not rows.has_zeros else found * (x != 0).any(dim=1).cpu()
            distances[part] = torch.minimum(distances[part], found)
        cost = float(distributed.all_reduce(distances.sum()[None].to(rows.device)))
        if cost == 0:
            break
        numbers = torch.arange(rows.offset, rows.offset + len(rows))
        luck = randomness.draw(seed, "k-means||", turn, numbers, 0, 1).squeeze(1)
        picked = (luck < distances * (_OVERSAMPLING * k / cost)).nonzero().squeeze(1)
        new = distributed.all_gather(rows.read(picked.numpy()))
        if len(new) == 0:
            break
        candidates = torch.cat([candidates, new])
    candidates = torch.cat([candidates, random_members(rows, k, seed + 1)]) if len(candidates) < k else candidates
    counts = torch.zeros(len(candidates), dtype=torch.float64, device=rows.device)
    for part, x in rows.blocks():
        labels, weight = nearest_centroid(x, candidates).labels, rows.weights(part)
        counts.index_add_(
            0, labels, torch.ones_like(labels, dtype=torch.float64) if weight is None else weight.double()
        )
    return distributed.broadcast(_spread(candidates, k, seed, distributed.all_reduce(counts).cpu()))


def _all_weights(rows: Rows, zeros: bool = False) -> np.ndarray:
    """Return the weights (N,) of all ranks' rows; rows without a direction get 0, unless `zeros` is True."""
    weight = rows.weights(slice(0, len(rows)))
    weight = torch.ones(len(rows)) if weight is None else weight
    if rows.has_zeros and not zeros:
        weight = weight * torch.cat([(x != 0).any(dim=1) for _, x in rows.blocks()]).to(weight.device)
    return distributed.all_gather(weight.to(rows.device)).cpu().double().numpy()


def _spread(x: Tensor, k: int, seed: int, weight: Tensor | None) -> Tensor:
    """Draw by k-means++ from (m, d) rows in memory."""
    generator = np.random.default_rng(randomness.key(seed, "k-means++"))
    mass = np.ones(len(x)) if weight is None else weight.double().cpu().numpy()
    middle = x.mean(dim=0, dtype=torch.float64)
    shifted = torch.empty_like(x)  # distances from products are precise only near the origin
    for block in range(0, len(x), _BLOCK):
        part = slice(block, block + _BLOCK)
        shifted[part] = x[part].double() - middle
    squares = shifted.square().sum(dim=1)
    least: np.ndarray | None = None
    chosen: list[int] = []
    for _ in range(k):
        odds = mass if least is None else mass * least
        odds = odds if odds.sum() > 0 else _unchosen(len(x), chosen)  # fewer different rows than k
        steps = np.cumsum(odds)
        pick = int(np.searchsorted(steps, generator.random() * steps[-1], side="right"))
        pick = min(pick, int(np.flatnonzero(odds)[-1]))  # rounding of the last step
        chosen.append(pick)
        gap = squares - 2 * (shifted @ shifted[pick]) + squares[pick]
        found = gap.clamp_(min=0).double().cpu().numpy()
        least = found if least is None else np.minimum(least, found)
        least[chosen] = 0.0
    return x[torch.tensor(chosen, device=x.device)]


def _unchosen(n: int, chosen: list[int]) -> np.ndarray:
    odds = np.ones(n)
    odds[chosen] = 0.0
    return odds if odds.any() else np.ones(n)
