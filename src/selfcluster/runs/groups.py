"""A run's clusters as people left them: the table, with the merges, splits, names and rubbish of `curation.jsonl`.

n images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfcluster.runs.curation import read_curation
from selfcluster.runs.tables import clusters_of

_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f]')  # no file system of today allows less than what is left
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # devices of Windows
_LONGEST = 100  # bytes of a folder's name; file systems allow 255


@dataclass(frozen=True)
class Groups:
    """Images with their present clusters.

    `ids` and `paths` (n,) texts, `clusters` (n,) int64, -1 = none, `distances` (n,) float32 to the center of the
    cluster that the algorithm found. `names` of the clusters that people named; `rubbish`: clusters to throw away;
    `selected`: the ids that people ticked.
    """

    ids: list[str]
    paths: list[str]
    clusters: np.ndarray
    distances: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)
    rubbish: frozenset[int] = frozenset()
    selected: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def numbers(self) -> list[int]:
        """The clusters that hold an image, sorted; -1 stands for the images in no cluster."""
        return [int(number) for number in np.unique(self.clusters)]

    def name_of(self, cluster: int) -> str:
        """Return a cluster's name; "cluster 7" or "no cluster" where people gave none."""
        return self.names.get(cluster) or ("no cluster" if cluster < 0 else f"cluster {cluster}")

    def without_rubbish(self) -> Groups:
        """Return the images outside the clusters that are marked as rubbish."""
        return self.take(np.flatnonzero(~np.isin(self.clusters, list(self.rubbish))))

    def take(self, rows: np.ndarray) -> Groups:
        """Return some of the images."""
        ids, paths = ([values[i] for i in rows] for values in (self.ids, self.paths))
        return Groups(ids, paths, self.clusters[rows], self.distances[rows], self.names, self.rubbish, self.selected)

    def folder_names(self) -> dict[int, str]:
        """Return a folder name for each cluster: safe on every system, no two equal where case does not count."""
        width = len(str(max(self.numbers, default=0)))
        chosen: dict[int, str] = {}
        taken: set[str] = set()
        for number in self.numbers:
            plain = "no-cluster" if number < 0 else f"cluster-{number:0{width}d}"
            name = safe_name(self.names.get(number, "")) or plain
            if name.casefold() in taken:
                name = f"{name} ({number})"
            taken.add(name.casefold())
            chosen[number] = name
        return chosen


def safe_name(text: str) -> str:
    """Return a text as a file name that every system takes; empty where nothing of it is left.

    >>> safe_name("../cats: small?"), safe_name("CON"), safe_name("..")
    ('_cats_ small_', '_CON', '')
    """
    name = _UNSAFE.sub("_", text).strip(" .")
    name = name.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore").rstrip(" .")
    return f"_{name}" if _RESERVED.match(name) else name


def read_groups(run: Path) -> Groups:
    """Return a run's clusters as people left them.

    Raises:
        RunError: the run has no clusters.
        CurationError: a row of `curation.jsonl` does not fit the clusters.
    """
    table = clusters_of(run)
    state = read_curation(run, table.by_id())
    clusters = np.array([state.cluster_of(image) for image in table.ids], dtype=np.int64)
    rubbish = frozenset(state.rubbish - state.merged.keys())
    return Groups(table.ids, table.paths, clusters, table.distances, dict(state.names), rubbish, tuple(state.selected))
