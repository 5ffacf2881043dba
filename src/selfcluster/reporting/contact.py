"""Contact sheets: the images of a cluster side by side, a picture (PNG) a cluster, and all of them as one PDF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from selfcluster.data.sources import Source
from selfcluster.files import make_writable
from selfcluster.reporting.thumbnails import is_pixel_art, read_squares, write_picture
from selfcluster.runs.groups import Groups

_COLUMNS, _SIDE, _GAP, _HEAD = 8, 160, 8, 44  # pixels but for the first
_PAPER, _INK, _ABSENT = (255, 255, 255), (32, 32, 32), (214, 214, 214)


def write_contact_sheets(groups: Groups, source: Source, folder: Path, most: int = 64) -> list[Path]:
    """Write `NAME.png` for each cluster and `contact-sheets.pdf` with all of them; return the files.

    Args:
        groups: the clusters.
        source: the images.
        folder: it is made where it is missing.
        most: images of a cluster, those nearest to its center. An image that cannot be read leaves a gray square.
    """
    make_writable(folder)
    place = {name: row for row, name in enumerate(source.ids)}
    names, files, sheets = groups.folder_names(), [], []
    for number in groups.numbers:
        rows = np.flatnonzero(groups.clusters == number)
        rows = rows[np.argsort(groups.distances[rows], kind="stable")]
        title = f"{groups.name_of(number)}: {len(rows):,} images"
        if len(rows) > most:
            title += f", the {most} nearest to the center"
        sheets.append(draw_sheet(title, _pictures([groups.ids[row] for row in rows[:most]], source, place)))
        files.append(folder / f"{names[number]}.png")
        write_picture(sheets[-1], files[-1])
    if sheets:
        files.append(folder / "contact-sheets.pdf")
        first, *others = sheets
        write_picture(first, files[-1], save_all=True, append_images=others, resolution=150)
    return files


def draw_sheet(title: str, pictures: Sequence[Image.Image | None]) -> Image.Image:
    """Return the pictures in rows of eight under a title."""
    columns = min(_COLUMNS, max(1, len(pictures)))
    rows = -(-len(pictures) // columns)
    width = max(columns * (_SIDE + _GAP) + _GAP, 4 * (_SIDE + _GAP))  # wide enough for the title
    sheet = Image.new("RGB", (width, _HEAD + rows * (_SIDE + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, fill=_INK, font=ImageFont.load_default(22))
    for n, picture in enumerate(pictures):
        x, y = _GAP + n % columns * (_SIDE + _GAP), _HEAD + n // columns * (_SIDE + _GAP)
        if picture is None:
            draw.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), fill=_ABSENT)
        else:
            smooth = Image.Resampling.NEAREST if is_pixel_art(picture) else Image.Resampling.LANCZOS
            sheet.paste(picture.convert("RGB").resize((_SIDE, _SIDE), smooth), (x, y))
    return sheet


def _pictures(ids: Sequence[str], source: Source, place: Mapping[str, int]) -> list[Image.Image | None]:
    known = [name for name in ids if name in place]
    pictures = dict(zip(known, read_squares(source, [place[name] for name in known], _SIDE), strict=True))
    return [pictures.get(name) for name in ids]
