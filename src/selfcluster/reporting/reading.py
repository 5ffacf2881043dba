"""Everything that a page needs of the images themselves, from one reading of each.

Small pictures, what is seen in the pixels (see `selfcluster audit`) and what the camera wrote beside them. N images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfcluster.reporting.album import Album
from selfcluster.reporting.sheets import Sheets, make_sheets
from selfcluster.reporting.thumbnails import positions_of

if TYPE_CHECKING:
    from selfcluster.data.audit import Examined
    from selfcluster.data.sources import Source

SHEET_BYTES = 9_000_000  # of all small pictures together; with vectors and ids, 20,000 images stay below 25 MB


@dataclass(frozen=True)
class Reading:
    """`examined` has a row for each image of the source; None where the pixels were not looked at.

    `exif` holds camera, day and place of the N images of the album, "" where a file does not say; None: not asked for.
    """

    sheets: Sheets
    examined: Examined | None = None
    exif: dict[str, list[str]] | None = None


def read_images(
    album: Album,
    source: Source | None,
    progress: Callable[[str], None] | None = None,
    *,
    with_exif: bool = False,
) -> Reading:
    """Read each image of the album once. One that cannot be read is missing in the sheets.

    Args:
        album: the images.
        source: where they are read from; None: they are not.
        progress: receives lines of text.
        with_exif: also read EXIF.
    """
    from selfcluster.data.audit import examine_image, unexamined
    from selfcluster.data.exif import FIELDS, read_exif
    from selfcluster.data.sources import Source

    if source is None:
        return Reading(Sheets([], 0, list(range(len(album)))))
    place = positions_of(source, album.ids)
    positions = [place.get(name) for name in album.ids]
    if not isinstance(source, Source):  # anything that has ids and reads
        return Reading(make_sheets(source, positions, SHEET_BYTES, progress))
    begun = time.monotonic()
    examined = unexamined(source.ids[:])
    exif = {name: [""] * len(album) for name in FIELDS} if with_exif else None
    album_row = {row: i for i, row in enumerate(positions) if row is not None}

    def look(row: int, data: bytes | np.ndarray) -> np.ndarray:
        if exif is not None and isinstance(data, bytes):
            for name, value in read_exif(data).items():
                exif[name][album_row[row]] = value
        return examine_image(source, data, examined, row)

    sheets = make_sheets(source, positions, SHEET_BYTES, progress, look)
    if progress is not None:
        also = "" if exif is None else f"; {sum(map(any, zip(*exif.values(), strict=True))):,} have EXIF"
        progress(f"  read {len(album_row):,} images in {time.monotonic() - begun:.0f} s{also}")
    return Reading(sheets, examined, exif)
