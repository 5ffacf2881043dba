"""Columns of metadata by which the clusters of a page can be sorted: those of a table, or camera, day and place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from selfcluster.evaluation.metadata import one_tag, read_columns
from selfcluster.reporting.album import Album
from selfcluster.reporting.reading import Reading
from selfcluster.runs.contents import Contents

Columns = dict[str, tuple[np.ndarray, list[str]]]  # numbers (N,) and names of the values, by the column's name


def table_columns(contents: Contents, metadata: Path) -> Columns:
    """The columns of a table that group the images."""
    if contents.clusters is None or not len(contents.clusters.cluster):
        raise ValueError(f"--metadata {metadata}: the run has no clusters that could agree with it")
    cells = read_columns(str(metadata), contents.clusters.ids.to_pylist(), "--metadata")
    grouping = _grouping(cells)
    if not grouping:
        raise ValueError(
            f"--metadata {metadata}: no column groups the images: in the columns {', '.join(cells)}, all images have "
            "the same value, or each image has a different one"
        )
    return grouping


def exif_columns(contents: Contents, album: Album, reading: Reading) -> Columns:
    """Camera, day and place of EXIF, as far as they group the images."""
    if contents.clusters is None or reading.exif is None:
        return {}
    at = {name: i for i, name in enumerate(album.ids)}
    rows = [at[name] for name in contents.clusters.ids.to_pylist()]
    return _grouping({name: [values[i] for i in rows] for name, values in reading.exif.items()})


def _grouping(cells: Mapping[str, list[str]]) -> Columns:
    """Those columns in which some images, but not all, share a value."""
    columns = {name: one_tag(values) for name, values in cells.items()}
    return {name: found for name, found in columns.items() if 1 < len(found[1]) < (found[0] >= 0).sum()}
