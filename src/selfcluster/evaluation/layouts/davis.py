"""Videos with a mask for every frame, in the layout of DAVIS.

Pont-Tuset et al. 2017, arXiv 1704.00675: JPEGImages[/480p]/SEQUENCE/00000.jpg and
Annotations[/480p]/SEQUENCE/00000.png. A mask numbers its objects; 0 is the background. The masks of DAVIS 2016 have one
object, with the value 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from selfcluster.data.decode import BadImage, decode
from selfcluster.files import reason_of

_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Sequence:
    """A video: its name, T frames and T masks."""

    name: str
    frames: list[Path]
    masks: list[Path]


def read_sequences(root: Path) -> list[Sequence]:
    """Return the videos in a folder of DAVIS's layout, by name.

    Raises:
        ValueError: the folder has another layout, a video has fewer than 2 frames, or a frame lacks its mask.
    """
    images, masks = root / "JPEGImages", root / "Annotations"
    if not images.is_dir() or not masks.is_dir():
        raise ValueError(f"{root} is not in DAVIS's layout: it needs the folders JPEGImages and Annotations")
    if (images / "480p").is_dir():
        images, masks = images / "480p", masks / "480p"
    found = []
    for folder in sorted(path for path in images.iterdir() if path.is_dir()):
        frames = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        pairs = [masks / folder.name / f"{frame.stem}.png" for frame in frames]
        lacking = [mask for mask in pairs if not mask.is_file()]
        if len(frames) < 2:
            raise ValueError(f"{folder} has {len(frames)} frames; a video needs at least 2")
        if lacking:
            raise ValueError(f"{folder.name}: {len(lacking)} frames have no mask; the first missing is {lacking[0]}")
        found.append(Sequence(folder.name, frames, pairs))
    if not found:
        raise ValueError(f"{images} holds no folder of frames")
    return found


def read_mask(path: Path) -> np.ndarray:
    """Return the numbers of the objects in a mask file, (H, W) uint8; raise ValueError if it is not a mask."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a mask that can be read ({reason_of(error)})") from error
    return values.astype(np.uint8)


def read_frame(path: Path) -> np.ndarray:
    """Return an image file, (H, W, 3) uint8; raise ValueError if it cannot be read."""
    try:
        return decode(path.read_bytes(), channels=3)
    except (BadImage, OSError) as error:
        raise ValueError(f"{path}: {reason_of(error)}") from error
