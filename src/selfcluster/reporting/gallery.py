"""The clusters as cards: who is nearest to the center, who farthest, who is there at all.

N images, K clusters. Only positions are chosen here; pictures are read elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfcluster.clustering import scores

NEAREST, RANDOM, FARTHEST = 6, 3, 3


@dataclass(frozen=True)
class Member:
    """An image by its row in the table of clusters; `times` counts its copies in the cluster, itself included."""

    row: int
    times: int = 1


@dataclass(frozen=True)
class Cluster:
    """One cluster. `spread` is its members' mean distance to the center; `purity` the share of its commonest label.

    `stability` is its best overlap with a cluster of another seed. `values` are its commonest value of each column of
    metadata and that value's share among the members that have one; None where no member has.
    Members are listed for the clusters that are shown as cards only.
    """

    number: int
    size: int
    share: float
    spread: float
    purity: float | None = None
    label: str | None = None
    stability: float | None = None
    values: tuple[tuple[str, float] | None, ...] = ()
    repeated: int = 0
    nearest: tuple[Member, ...] = ()
    random: tuple[Member, ...] = ()
    farthest: tuple[Member, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        return self.nearest + self.random + self.farthest


@dataclass(frozen=True)
class Gallery:
    """`cards` have pictures, `rows` do not; both biggest first. `empty` numbers have no image, `without` images no
    cluster; `repeated` images are copies of another one in their cluster. `purity` is over all labeled images;
    `columns` are the names of the metadata that each cluster's `values` follow."""

    cards: list[Cluster]
    rows: list[Cluster]
    empty: int
    without: int
    repeated: int
    purity: float | None = None
    columns: tuple[str, ...] = ()

    @property
    def is_stability_known(self) -> bool:
        """Whether any cluster has a stability."""
        return any(c.stability is not None for c in self.clusters)

    @property
    def clusters(self) -> list[Cluster]:
        return self.cards + self.rows


def build_gallery(
    cluster: np.ndarray,
    distance: np.ndarray,
    *,
    copies: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    stability: Mapping[int, float] | None = None,
    metadata: Mapping[str, tuple[np.ndarray, Sequence[str]]] | None = None,
    cards: int = 60,
    seed: int = 0,
) -> Gallery:
    """Choose what is shown of every cluster.

    Args:
        cluster: (N,) int64, -1 = none.
        distance: (N,) float32 to the center; NaN sorts last.
        copies: (N,) int64, equal where two rows show the same picture; None: not known.
        labels: (N,) int64, -1 = unknown; None: no purity is computed.
        class_names: what the labels are called; None: by number.
        stability: of the clusters by number, in [0, 1]; None: not known.
        metadata: of each column by name: (N,) int64 numbers of its values, -1 = none, and what the values are called.
        cards: how many clusters get pictures: half of them the biggest, the others by equal parts the smallest, the
            tightest, the most stable and those that agree best with each column of metadata.
        seed: of the random members.
    """
    order = np.lexsort((distance, cluster))  # by cluster, nearest first
    order = order[cluster[order] >= 0]
    numbers, starts, sizes = np.unique(cluster[order], return_index=True, return_counts=True)
    k = len(numbers)
    groups = np.split(order, starts[1:]) if k else []
    finite = np.where(np.isfinite(distance[order]), distance[order], 0).astype(np.float64)
    counted = np.add.reduceat(np.isfinite(distance[order]), starts) if k else np.empty(0)
    total = np.add.reduceat(finite, starts) if k else np.empty(0)
    spread = np.where(counted > 0, total / np.maximum(counted, 1), np.nan)
    purity, common = _purity(groups, labels)
    steady = np.array([(stability or {}).get(number, np.nan) for number in numbers.tolist()])
    columns = metadata or {}
    agreed = [_purity(groups, values) for values, _ in columns.values()]
    heads = [steady] if stability else []
    shown = _shown(sizes, spread, cards, heads + [shares for shares, _ in agreed if shares is not None])

    def value(i: int, column: int, names: Sequence[str]) -> tuple[str, float] | None:
        shares, commonest = agreed[column]
        return None if shares is None or commonest[i] < 0 else (names[commonest[i]], float(shares[i]))

    def describe(i: int) -> Cluster:
        label = None
        if purity is not None and common[i] >= 0:
            label = class_names[common[i]] if class_names is not None else str(common[i])
        return Cluster(
            number=int(numbers[i]),
            size=int(sizes[i]),
            share=float(sizes[i] / len(order)),
            spread=float(spread[i]),
            purity=None if purity is None else float(purity[i]),
            label=label,
            stability=float(steady[i]) if np.isfinite(steady[i]) else None,
            values=tuple(value(i, column, names) for column, (_, names) in enumerate(columns.values())),
            repeated=int(sizes[i] - len(np.unique(copies[groups[i]]))) if copies is not None else 0,
            **(_members(groups[i], copies, int(numbers[i]), seed) if i in shown else {}),
        )

    every = [describe(int(i)) for i in np.lexsort((numbers, -sizes))]
    return Gallery(
        cards=[c for c in every if c.members],
        rows=[c for c in every if not c.members],
        empty=int(numbers[-1] + 1 - k) if k else 0,
        without=len(cluster) - len(order),
        repeated=sum(c.repeated for c in every),
        purity=scores.purity(labels, cluster) if labels is not None and (labels[order] >= 0).any() else None,
        columns=tuple(columns),
    )


def _shown(sizes: np.ndarray, spread: np.ndarray, cards: int, more: Sequence[np.ndarray] = ()) -> set[int]:
    """Whatever a reader sorts by, the head of the list has pictures. `more` are sorted from the highest (K,) down."""
    k = len(sizes)
    if k <= cards:
        return set(range(k))
    orders = (
        np.lexsort((np.arange(k), -sizes)),
        np.lexsort((np.arange(k), sizes)),
        np.argsort(spread, kind="stable"),
        *(np.argsort(-values, kind="stable") for values in more),
    )
    half = cards // 2
    ends = [half + (cards - half) * part // (len(orders) - 1) for part in range(len(orders))]
    shown: set[int] = set()
    for by, until in zip(orders, ends, strict=True):
        for i in by.tolist():
            if len(shown) >= until:
                break
            shown.add(i)
    return shown


def _members(group: np.ndarray, copies: np.ndarray | None, number: int, seed: int) -> dict[str, tuple[Member, ...]]:
    """Nearest, farthest and random members, every picture once; `group` is sorted by distance."""
    if copies is None:
        times = np.ones(len(group), np.int64)
    else:
        _, first, counts = np.unique(copies[group], return_index=True, return_counts=True)
        kept = np.argsort(first)  # back to nearest first
        group, times = group[first[kept]], counts[kept]
    everyone = [Member(int(row), int(n)) for row, n in zip(group, times, strict=True)]
    near, rest = everyone[:NEAREST], everyone[NEAREST:]
    far, rest = rest[::-1][:FARTHEST], rest[: max(0, len(rest) - FARTHEST)]
    drawn = np.random.default_rng((seed, number)).permutation(len(rest))[:RANDOM]
    return {"nearest": tuple(near), "random": tuple(rest[i] for i in drawn), "farthest": tuple(far)}


def _purity(groups: list[np.ndarray], labels: np.ndarray | None) -> tuple[np.ndarray | None, list[int]]:
    if labels is None:
        return None, []
    shares, common = [], []
    for group in groups:
        values, counts = np.unique(labels[group][labels[group] >= 0], return_counts=True)
        shares.append(counts.max() / counts.sum() if len(counts) else np.nan)
        common.append(int(values[counts.argmax()]) if len(counts) else -1)
    return np.array(shares), common
