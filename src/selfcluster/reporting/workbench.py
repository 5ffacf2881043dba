"""What the page needs to show any image and any cluster: ids, clusters, distances, small pictures, packed vectors.

All of it stands in the page itself, so that it works without a server. N images, D kept dimensions.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfcluster.data.sources import Source
from selfcluster.files import message_of
from selfcluster.reporting.album import Album, pack
from selfcluster.reporting.map import lay_out
from selfcluster.reporting.sheets import COLUMNS, PER_SHEET, Sheets
from selfcluster.reporting.thumbnails import PIXEL_ART
from selfcluster.runs.contents import Contents
from selfcluster.runs.curation import CurationError, Row, read_rows

_MOST_UP = 3  # folders from the page up to the images: above that, a path would tell where on this machine they are
_STEPS = 10_000  # of the map's side
_SAME = 1e-5  # principal components of vectors at length 1 below this are rounding: all embeddings are equal


@dataclass(frozen=True)
class Workbench:
    """`data` for the page's script, and the sheets of small pictures as WebP in base64.

    `placed` images are on the map.
    """

    data: dict[str, object]
    sheets: list[str]
    placed: int


def place_images(album: Album, landmarks: int, progress: Callable[[str], None] | None = None) -> np.ndarray:
    """Return (N, 2) places of the album's images on the map, in the unit square, NaN for images without one.

    Args:
        album: the images.
        landmarks: t-SNE places so many images, see `map.lay_out`; 0: no map.
        progress: receives a line of text.
    """
    places = np.full((len(album), 2), np.nan)
    rows = np.flatnonzero(album.embedded)
    if not landmarks or not len(rows):
        return places
    begun = time.monotonic()
    reduced = album.reduced[rows]
    found = lay_out(reduced, album.cluster[rows], landmarks=landmarks) if np.abs(reduced).max() > _SAME else None
    places[rows] = 0.5 if found is None else found
    if progress is not None:
        progress(f"  placed {len(rows):,} images on the map in {time.monotonic() - begun:.0f} s")
    return places


def build_workbench(
    contents: Contents,
    album: Album,
    places: np.ndarray,
    sheets: Sheets,
    source: Source | None,
    page: Path | None,
    progress: Callable[[str], None] | None = None,
    *,
    colors: Mapping[int, str] | None = None,
) -> Workbench:
    """Return all that the page knows of its images.

    Args:
        contents: the run.
        album: its images, at least one.
        places: (N, 2) of `place_images`.
        sheets: their small pictures.
        source: the images, see `write_report`; None: no pictures.
        page: the file that is written, from which the images are reached; None: they are not.
        progress: receives lines of text.
        colors: of the clusters; None: all are gray on the map.
    """
    data = {
        "x": _whole(places[:, 0]),
        "y": _whole(places[:, 1]),
        "colors": {str(cluster): color for cluster, color in (colors or {}).items()},
        "n": len(album),
        "ids": album.ids,
        "cluster": album.cluster.tolist(),
        "distance": [None if not np.isfinite(d) else float(f"{d:.4g}") for d in album.distance.tolist()],
        "row": album.table_rows.tolist(),
        "cell": sheets.cell,
        "pixels": 0 < sheets.cell <= PIXEL_ART and _is_small(source),
        "columns": COLUMNS,
        "perSheet": PER_SHEET,
        "missing": sheets.missing,
        "dim": int(album.reduced.shape[1]),
        "vectors": pack(album.reduced),
        "vectorless": np.flatnonzero(~album.embedded).tolist(),
        "base": _base(source, page),
        "rows": _rows(contents.folder, progress),
        "key": _key(album, contents.folder),
    }
    return Workbench(data, sheets.pictures, int(np.isfinite(places[:, 0]).sum()))


def _rows(run: Path, progress: Callable[[str], None] | None) -> list[Row]:
    """The rows of RUN/curation.jsonl; none where they cannot be used; `progress` then gets the reason."""
    try:
        return read_rows(run)
    except (CurationError, OSError) as error:
        if progress is not None:
            progress(f"  the page shows no names, merges or splits: {message_of(error)}")
        return []


def _whole(places: np.ndarray) -> list[int | None]:
    return [None if math.isnan(p) else round(p * _STEPS) for p in places.tolist()]


def _is_small(source: Source | None) -> bool:
    return not isinstance(source, Source) or source.kind in ("array", "builtin")


def _base(source: Source | None, page: Path | None) -> str | None:
    """The images' folder as the page sees it, with a slash at its end; None where it is far away or no folder."""
    if page is None or not isinstance(source, Source) or source.kind != "folder" or "://" in str(source.location):
        return None
    way = os.path.relpath(Path(source.location).resolve(), page.parent.resolve()).replace(os.sep, "/")
    return None if way.count("..") > _MOST_UP or ":" in way else way + "/"


def _key(album: Album, run: Path) -> str:
    """Tells pages apart by run and clusters, so that a browser keeps the actions of each for itself."""
    found = hashlib.sha256(
        "\n".join([str(run.resolve()), *album.ids]).encode("utf-8", "surrogatepass") + album.cluster.tobytes()
    )
    return found.hexdigest()[:16]
