"""Measures how well the clusters agree with metadata: columns of a CSV, or EXIF.

Caron et al. 2019, arXiv 1905.01278, section 4.2: NMI (geometric) of clusters and metadata over the epochs. If an
image has several tags, the least frequent one counts. A table may cover only some of the images; each column is scored
on the images that it covers. N images.
Departs: an image's color is the mean of its pixels; the paper does not say what "their mean color" averages over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from selfcluster.clustering.scores import ami, nmi
from selfcluster.evaluation import metadata
from selfcluster.evaluation.clustering import cluster_vectors
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import LabeledFeatures, Subject
from selfcluster.runs.labels import label_files, read_labels
from selfcluster.setting import setting


@dataclass(frozen=True, kw_only=True)
class MetadataSettings:
    table: str | None = setting(
        None, "CSV with a column id or path, and further columns, as for report --metadata; default: EXIF of the images"
    )
    columns: str | None = setting(
        None, "columns to score, separated by commas; default: all columns with repeated values"
    )
    tags: Literal["rarest", "random"] = setting(
        "rarest", "tag to use if an image has several, such as `a;b`: rarest or random"
    )
    cell: float = setting(1.0, "size in degrees of the grid cells that group EXIF places", least=1e-4, most=90)
    k: int | None = setting(None, "make K new clusters with k-means; default: the run's own clusters", least=1)
    neighbors: int = setting(10, "neighbors of each image in the neighbor graph", least=1)
    shown: int = setting(3, "number of purest and of most mixed clusters to list per column", least=0)
    least: int = setting(5, "list a cluster only if the column has values for this many of its images", least=1)
    colors: bool = setting(True, "measure the deviation of mean colors; this reads every image again")


class Metadata(Protocol):
    Settings = MetadataSettings
    needs = ("clusters", "features")
    labels = "none"

    def run(self, subject: Subject, settings: MetadataSettings) -> Result:
        subject.refuse_test("metadata")
        subject.check_clusters(settings.k)  # before the images are embedded
        if settings.table is not None:
            _known_columns(metadata.read_columns(settings.table, subject.source().ids), settings.columns)
        images = subject.all_features
        columns, notes = _columns(subject, images, settings)
        if settings.k is None:
            clusters = subject.assigned(images)
        else:
            clusters = cluster_vectors(subject.projected(images.vectors), settings.k, seed=subject.seed)[0]
        graph = metadata.neighbor_graph(images.vectors, settings.neighbors)
        epochs = dict(_epochs(subject, images.ids))
        numbers: dict[str, Any] = {"images": len(images.ids), "clusters": len(np.unique(clusters[clusters >= 0]))}
        table: list[dict[str, Any]] = []
        for column, (labels, names) in columns.items():
            same, chance = metadata.same_label_edges(graph, labels)
            row = {"column": column, "what": "all", **_agreement(labels, clusters), "values": len(names)}
            table.append(row | {"edges": same, "edges_by_chance": chance})
            numbers |= {f"{column}_nmi": row["nmi"], f"{column}_ami": row["ami"], f"{column}_edges": same}
            for epoch, trained in epochs.items():
                table.append({"column": column, "what": f"epoch {epoch}", **_agreement(labels, trained)})
            table += _listed(column, metadata.cluster_purity(clusters, labels, settings.least), names, settings.shown)
        if settings.colors:
            colors = metadata.mean_colors(subject.source(), images.rows)
            numbers |= _color_numbers(clusters, colors)
            notes = (
                *notes,
                "color_deviation: root mean squared distance of mean colors (RGB, 0 to 1) to the cluster's.",
            )
        return result_of("metadata", numbers, subject, settings, table=tuple(table), notes=notes)


def _agreement(labels: np.ndarray, clusters: np.ndarray) -> dict[str, object]:
    """Return NMI and AMI over the images that have both, and their number; NaN if no image has both."""
    both = (labels >= 0) & (clusters >= 0)
    scores = (nmi(labels, clusters), ami(labels, clusters)) if both.any() else (float("nan"), float("nan"))
    return {"images": int(both.sum()), "nmi": scores[0], "ami": scores[1]}


def _columns(
    subject: Subject, images: LabeledFeatures, settings: MetadataSettings
) -> tuple[dict[str, tuple[np.ndarray, list[str]]], tuple[str, ...]]:
    """Return the labels (N,) and names of each column, and a note on the columns that were left out."""
    if settings.table is None:
        cells: Mapping[str, list[str]] = metadata.exif_columns(subject.source(), images.rows, settings.cell)
        if not any(any(column) for column in cells.values()):
            raise ValueError("no image has EXIF that names a camera, a day or a place; give a CSV with --table")
    else:
        cells = metadata.read_columns(settings.table, images.ids)
    chosen = _known_columns(cells, settings.columns)
    columns = {name: metadata.one_tag(cells[name], settings.tags, subject.seed) for name in chosen}
    if images.labels is not None and images.labels.ndim == 1 and "label" not in columns:
        columns["label"] = images.labels, images.class_names or []
    groups = {name: column for name, column in columns.items() if 1 < len(column[1]) < (column[0] >= 0).sum()}
    without = [name for name in columns if name not in groups]
    if not groups:
        raise ValueError(
            f"no column groups the images: in the columns {', '.join(without)}, all images have the same value, or "
            "each image has a different one"
        )
    notes = (
        (
            "Not scored, because all images have the same value or each image has a different one: "
            f"{', '.join(without)}.",
        )
        if without
        else ()
    )
    return groups, notes


def _known_columns(cells: Mapping[str, list[str]], names: str | None) -> list[str]:
    """The columns to score; raises ValueError for one that is not there."""
    wanted = list(cells) if names is None else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in cells]:
        raise ValueError(f"--columns {names}: there is no {unknown[0]!r}; there are {', '.join(cells)}")
    return wanted


def _epochs(subject: Subject, ids: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each epoch that a run has stored, and the pseudo-labels (N,) of the images."""
    for epoch, path in label_files(subject.run).items() if subject.run is not None else ():
        names, labels = read_labels(path)
        of = dict(zip(names, labels.tolist(), strict=True))
        yield epoch, np.array([of.get(name, -1) for name in ids], np.int64)


def _listed(column: str, rows: list[dict[str, Any]], names: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Yield rows of the purest clusters, then of the most mixed ones, no cluster twice."""
    mixed = rows[max(count, len(rows) - count) :][::-1]
    for what, some in (("purest", rows[:count]), ("most mixed", mixed)):
        for row in some:
            yield {"column": column, "what": what, **row, "label": names[row["label"]]}


def _color_numbers(clusters: np.ndarray, colors: np.ndarray) -> dict[str, float]:
    apart = metadata.color_deviations(clusters, colors)
    together = metadata.color_deviations(np.zeros(len(colors), np.int64), colors)
    values = np.array(list(apart.values()))
    return {
        "color_deviation": float(values.mean()) if len(values) else float("nan"),
        "color_deviation_lowest": float(values.min()) if len(values) else float("nan"),
        "color_deviation_of_all": together.get(0, float("nan")),
    }
