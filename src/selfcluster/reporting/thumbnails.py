"""Small pictures for a page that opens offline.

A picture that cannot be read any more is None, never an error: the page is about the run, not about the disk.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from markupsafe import Markup
from PIL import Image

from selfcluster.files import write_atomically

if TYPE_CHECKING:
    from selfcluster.data.sources import Source

_QUALITIES = (78, 60, 40, 15)  # tried in turn until a picture is small enough
_MOST_BYTES = 4_000  # what most photographs of 104 px need; noise would need 12,000
PIXEL_ART = 64  # images up to this size are stored as they are, and the page enlarges them without smoothing


class Pictures(Protocol):
    """What has images to read by position, such as a `Source`."""

    def read(self, i: int, /) -> bytes | np.ndarray: ...


def read_squares(
    source: Pictures,
    index: Sequence[int],
    side: int,
    look: Callable[[int, bytes | np.ndarray], np.ndarray] | None = None,
) -> list[Image.Image | None]:
    """The middle squares of images, at most `side` pixels wide, read by several threads.

    Args:
        source: has `read(i)` that gives the bytes of a file or a uint8 array (H, W) or (H, W, C).
        index: positions in the source.
        side: of the square, in pixels; smaller images keep their size.
        look: gets a position and what was read there, in one of the threads, and gives the pixels (H, W, C) uint8. It
            may raise BadImage. None: they are decoded here.
    """
    from selfcluster.data.decode import BadImage, decode
    from selfcluster.data.images import open_content
    from selfcluster.data.sources import Source

    def read(i: int) -> Image.Image | None:
        try:
            data = source.read(i)
            if look is not None:
                return _square(look(i, data), side)
            if isinstance(source, Source):  # values deeper than 8 bits are shown as the run read them
                return _square(open_content(source, data).pixels(3, side), side)
            return _square(data if isinstance(data, np.ndarray) else decode(data, shrink_to=side), side)
        except (BadImage, OSError, ValueError):
            return None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, index))


def positions_of(source: Source, names: Iterable[str]) -> dict[str, int]:
    """Return where a source has the images of these names; those that it lacks are left out."""
    wanted = set(names)
    return {name: i for i, name in enumerate(source.ids) if name in wanted}


def card_pictures(source: Source, names: Mapping[int, str], side: int) -> dict[int, dict[str, object]]:
    """Return the `data:` URI of each image, and whether it is pixel art, by the numbers of `names`.

    Images that the source lacks, or that cannot be read, are left out.
    """
    where = positions_of(source, names.values())
    known = sorted(set(where.values()))
    read = dict(zip(known, read_squares(source, known, side), strict=True))
    found = {number: read[where[name]] for number, name in names.items() if name in where}
    return {
        number: {"uri": Markup(data_uri(picture)), "pixels": is_pixel_art(picture)}
        for number, picture in found.items()
        if picture is not None
    }


def data_uri(picture: Image.Image) -> str:
    """The picture as a `data:` URI: PNG for tiny ones that it makes small, JPEG of about 4 kB for the rest."""
    if picture.width <= PIXEL_ART and len(png := _encoded(picture, "PNG")) * 3 // 4 <= _MOST_BYTES:
        return "data:image/png;base64," + png
    return "data:image/jpeg;base64," + _jpeg(picture, _MOST_BYTES)


def is_pixel_art(picture: Image.Image) -> bool:
    """True for images so small that smoothing would only blur them."""
    return picture.width <= PIXEL_ART


def _square(image: np.ndarray, side: int) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"an image of type {image.dtype} and shape {image.shape} cannot be shown")
    gray = image.ndim == 2 or image.shape[2] < 3
    pixels = image if image.ndim == 2 else image[:, :, 0] if gray else image[:, :, :3]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    box = (left, top, left + edge, top + edge)
    if edge <= side:
        return picture.crop(box)
    # Hamming's filter: as good as the bicubic one for smaller copies, in a third of the time of Lanczos
    return picture.resize((side, side), Image.Resampling.HAMMING, box=box, reducing_gap=3.0)


def _jpeg(picture: Image.Image, most_bytes: int) -> str:
    code = ""
    for quality in _QUALITIES:
        code = _encoded(picture, "JPEG", quality=quality, optimize=True)
        if len(code) * 3 // 4 <= most_bytes:
            break
    return code


def _encoded(picture: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def write_picture(picture: Image.Image, path: Path, **options: object) -> None:
    """Write a picture, whole or not at all, in the format that the file's name says.

    Raises:
        ValueError: no format has such names.
        OSError: the disk is full; gives the bytes needed and free.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: {path.suffix or 'a name without an ending'} is not a picture format")
    buffer = io.BytesIO()  # in memory first, so that its size is known
    picture.save(buffer, kind, **options)
    write_atomically(path, buffer.getvalue())
