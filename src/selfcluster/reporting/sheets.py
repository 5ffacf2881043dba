"""Thumbnails of all images in sheets: pictures of many cells that a page decodes only when it shows one of them.

N images. A sheet holds `PER_SHEET` square cells in rows of `COLUMNS`.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from selfcluster.reporting.thumbnails import Pictures, read_squares

COLUMNS = 16
PER_SHEET = COLUMNS * COLUMNS
_LEAST, _MOST = 24, 96  # sides of a cell, in pixels
_BYTES_A_PIXEL = 0.2  # what WebP of quality 75 needs for small photographs
_QUALITIES = (75, 60, 40, 15)  # tried in turn until a sheet is small enough
_EVERY = 5.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Sheets:
    """`pictures` are WebP files in base64; image i is cell i % PER_SHEET of picture i // PER_SHEET.

    `cell` is the side of a cell in pixels; `missing` are the images that could not be read, gray in their sheet.
    """

    pictures: list[str]
    cell: int
    missing: list[int]


def make_sheets(
    source: Pictures,
    positions: Sequence[int | None],
    most_bytes: int,
    progress: Callable[[str], None] | None = None,
    look: Callable[[int, bytes | np.ndarray], np.ndarray] | None = None,
) -> Sheets:
    """Read all images and draw their middle squares into sheets.

    Args:
        source: has `read(i)`, see `read_squares`.
        positions: N positions in the source, None where it lacks an image.
        most_bytes: of all sheets together, before base64. It decides the side of a cell, and then the quality.
        progress: receives a line about every five seconds.
        look: sees what was read of each image, see `read_squares`.
    """
    n = len(positions)
    cell = cell_side(n, most_bytes)
    pictures: list[str] = []
    missing: list[int] = []
    said = time.monotonic()
    native = 0
    with ThreadPoolExecutor(1) as encoder:  # one sheet is encoded while the next is read
        jobs = []
        for start in range(0, n, PER_SHEET):
            part = positions[start : start + PER_SHEET]
            squares = iter(read_squares(source, [p for p in part if p is not None], cell, look))
            tiles = [None if p is None else next(squares) for p in part]
            missing += [start + k for k, tile in enumerate(tiles) if tile is None]
            if not native:  # pictures smaller than a cell are not enlarged: the page does that without any bytes
                native = max((tile.width for tile in tiles if tile is not None), default=0)
                cell = min(cell, max(native, 1)) if native else cell
            share = most_bytes * len(part) // max(n, 1)
            jobs.append(encoder.submit(_encode, tiles, cell, share))
            if progress is not None and time.monotonic() - said > _EVERY:
                said = time.monotonic()
                progress(f"  thumbnails of {min(start + PER_SHEET, n):,} of {n:,} images")
        pictures = [job.result() for job in jobs]
    return Sheets(pictures, cell, missing)


def cell_side(n: int, most_bytes: int) -> int:
    """Return the side in pixels, a multiple of 8, at which n photographs need about `most_bytes`.

    >>> cell_side(1_000, 14_000_000), cell_side(100_000, 14_000_000)
    (96, 24)
    """
    side = (most_bytes / max(n, 1) / _BYTES_A_PIXEL) ** 0.5
    return int(min(_MOST, max(_LEAST, side // 8 * 8)))


def _encode(tiles: list[Image.Image | None], cell: int, most_bytes: int) -> str:
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell, rows * cell), (128, 128, 128))
    for n, tile in enumerate(tiles):
        if tile is not None:
            smooth = Image.Resampling.NEAREST if tile.width < cell else Image.Resampling.LANCZOS
            drawn = tile.convert("RGB")
            drawn = drawn if drawn.size == (cell, cell) else drawn.resize((cell, cell), smooth)
            sheet.paste(drawn, (n % COLUMNS * cell, n // COLUMNS * cell))
    code = _smallest(sheet, most_bytes)
    while len(code) > most_bytes and cell > _LEAST:  # noise, say; the page scales a sheet to the size that it needs
        cell //= 2
        sheet = sheet.resize((COLUMNS * cell, rows * cell), Image.Resampling.LANCZOS)
        code = _smallest(sheet, most_bytes)
    return base64.b64encode(code).decode("ascii")


def _smallest(sheet: Image.Image, most_bytes: int) -> bytes:
    """The sheet as WebP in the best quality that fits, or the lowest."""
    code = b""
    for quality in _QUALITIES:
        if len(code) > 4 * most_bytes and quality != _QUALITIES[-1]:
            continue  # the next quality will not do
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=quality, method=2)
        code = buffer.getvalue()
        if len(code) <= most_bytes:
            break
    return code
