"""What the public functions return: typed objects that read like dicts, with tables for pandas and notebooks.

n images, F features.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingImports] - used only where the user has it

_ROWS = 10  # of a table shown in a notebook


class _Readable(Mapping[str, Any]):
    """A dataclass that reads like a dict of its fields; a field that is not set is left out."""

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return [f.name for f in fields if getattr(self, f.name) is not None or f.default is dataclasses.MISSING]

    def _table(self) -> Mapping[str, list[Any]]:
        """Columns for people; by default the fields as names and values."""
        return {"name": list(self), "value": [self[name] for name in self]}

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a pandas DataFrame; pandas must be installed."""
        import pandas as pd  # pyright: ignore[reportMissingImports]

        return pd.DataFrame(dict(self._table()))

    def _repr_html_(self) -> str:
        columns = self._table()
        count = max(map(len, columns.values()), default=0)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        rows = [
            "".join(f"<td>{html.escape(_short(values[i]))}</td>" for values in columns.values())
            for i in range(min(count, _ROWS))
        ]
        more = f"<p>{count - _ROWS:,} more rows</p>" if count > _ROWS else ""
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


@dataclass(frozen=True)
class Embedded(_Readable):
    """Features of images. `vectors` (n, F) float32; `labels` (n,) int64, -1 = none, or (n, L), or None."""

    out: str | None
    ids: list[str]
    paths: list[str]
    vectors: np.ndarray
    labels: np.ndarray | None
    class_names: list[str] | None

    def _table(self) -> Mapping[str, list[Any]]:
        columns: dict[str, list[Any]] = {"id": self.ids, "path": self.paths}
        if self.labels is not None:
            columns["label"] = self.labels.tolist()
        return columns | {"vector": list(self.vectors)}


@dataclass(frozen=True)
class Clustered(_Readable):
    """Clusters of images. `labels` (n,) int64, -1 = in no cluster; `distances` (n,) float32 to the clusters' means."""

    out: str
    csv: str
    images: int
    clusters: int
    largest: int
    smallest: int
    none: int
    ids: list[str]
    labels: np.ndarray
    distances: np.ndarray
    k: int | None = None
    k_low: int | None = None
    k_high: int | None = None
    run: str | None = None
    report: str | None = None

    def _table(self) -> Mapping[str, list[Any]]:
        return {"id": self.ids, "cluster": self.labels.tolist(), "distance": self.distances.tolist()}


class Trained(dict[str, Any]):
    """The summary of a run: run, method, images, steps, loss, and what else its method reports."""

    @property
    def labels(self) -> np.ndarray:
        """(n,) the run's clusters, in the order of the images' ids; -1 = none."""
        from pathlib import Path

        from selfcluster.runs.tables import CLUSTERS, read_clusters

        return read_clusters(Path(self["run"]) / CLUSTERS).clusters

    def to_pandas(self) -> pd.DataFrame:
        """Return the run's metrics as a pandas DataFrame, a row a report; pandas must be installed."""
        from pathlib import Path

        import pandas as pd  # pyright: ignore[reportMissingImports]

        from selfcluster.runs.folder import read_metrics

        return pd.DataFrame(read_metrics(Path(self["run"])))

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(_short(v))}</td></tr>" for k, v in self.items())
        return f"<table>{rows}</table>"


class Hits(list[dict[str, Any]]):
    """The images most similar to a given image, best first: rank, cosine, id, path, cluster."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas DataFrame; pandas must be installed."""
        import pandas as pd  # pyright: ignore[reportMissingImports]

        return pd.DataFrame(list(self))


def _short(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"array {value.shape}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
