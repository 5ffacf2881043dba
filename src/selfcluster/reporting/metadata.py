"""The clusters that `evaluate metadata` found purest and most mixed, with images, for the page.

Caron et al. 2019, arXiv 1905.01278, figure 5. Results come from files that anyone may have edited: what is not of the
expected type is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfcluster.reporting.gallery import Member
from selfcluster.runs.contents import Clusters

MOST_COLUMNS = 12
_IMAGES = 6
_CLUSTERS = 3


@dataclass(frozen=True)
class MarkedCluster:
    """A cluster: its number, the commonest value of a column in it, and that value's share of `count` images.

    `images` go from the nearest to the farthest to the cluster's center; empty where the run has no such cluster.
    """

    number: int
    label: str
    share: float
    count: int
    images: list[Member]


@dataclass(frozen=True)
class MarkedColumn:
    """A column of metadata, its NMI with the clusters (None: not known), and clusters at both ends, the purest first.

    `mixed` begins with the most mixed cluster.
    """

    name: str
    nmi: float | None
    purest: list[MarkedCluster]
    mixed: list[MarkedCluster]

    @property
    def images(self) -> list[Member]:
        """All images of these clusters that are shown."""
        return [image for cluster in (*self.purest, *self.mixed) for image in cluster.images]


def marked_columns(results: Sequence[Mapping[str, Any]], clusters: Clusters | None) -> list[MarkedColumn]:
    """Return the columns of the newest metadata result for the run's own clusters, the highest NMI first.

    Args:
        results: as of `read_results`, oldest first.
        clusters: the run's table; None: it has none.
    """
    own = [result for result in results if result["protocol"] == "metadata" and _is_own(result)]
    table = own[-1].get("table") if own and clusters is not None else None
    rows = [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []
    columns = []
    for name in dict.fromkeys(str(row.get("column")) for row in rows):
        of_column = [row for row in rows if str(row.get("column")) == name]
        nmi = next((row.get("nmi") for row in of_column if row.get("what") == "all"), None)
        ends = [[row for row in of_column if row.get("what") == what][:_CLUSTERS] for what in ("purest", "most mixed")]
        purest, mixed = ([m for row in end if (m := _marked(row, clusters)) is not None] for end in ends)
        if purest or mixed:
            columns.append(MarkedColumn(name, nmi if isinstance(nmi, float) else None, purest, mixed))
    return sorted(columns, key=lambda column: -(column.nmi or 0.0))[:MOST_COLUMNS]


def _is_own(result: Mapping[str, Any]) -> bool:
    """Whether a result is of the run's own clusters and images, and not of new ones."""
    settings, subject = (part if isinstance(part := result.get(key), dict) else {} for key in ("settings", "subject"))
    return settings.get("k") is None and subject.get("train") is None and subject.get("role") in (None, "run")


def _marked(row: Mapping[str, Any], clusters: Clusters | None) -> MarkedCluster | None:
    number, share, count = row.get("cluster"), row.get("share"), row.get("images")
    if clusters is None or not isinstance(number, int) or not isinstance(count, int):
        return None
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        return None
    rows = np.flatnonzero(clusters.cluster == number)
    rows = rows[np.argsort(clusters.distance[rows], kind="stable")]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_IMAGES, len(rows))).round().astype(int))
    return MarkedCluster(number, str(row.get("label")), share, count, [Member(i) for i in rows[chosen].tolist()])
