"""How a network's images are prepared: size, center crop, interpolation, mean and standard deviation.

The rules are timm's, so that timm's own transform and ours show a network the same pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_SMALL = 64  # pixels: up to this side an image is shown whole
_CROP_PCT = 0.875  # 224 of 256 pixels, the crop of the papers' evaluations
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CROP_MODES = ("center", "squash")


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its images.

    Attributes:
        mean, std: of pixels in 0..1, one number a channel.
        image_size: side of the network's images in pixels.
        interpolation: "bilinear" or "bicubic".
        crop_pct: `image_size` over the side that an image is resized to before its center is cut out.
        crop_mode: "center" resizes the shorter side; "squash" resizes both sides, so that the aspect ratio is lost.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    interpolation: str = "bilinear"
    crop_pct: float = _CROP_PCT
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} need one number for each channel")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation={self.interpolation!r} is neither 'bilinear' nor 'bicubic'")
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode={self.crop_mode!r}: choose from {', '.join(CROP_MODES)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct} must be above 0 and at most 1")

    @property
    def channels(self) -> int:
        """3 for color, 1 for gray."""
        return len(self.mean)

    def loader_arguments(self) -> dict[str, Any]:
        """The keyword arguments that a `Loader` takes."""
        return {
            "mean": self.mean,
            "std": self.std,
            "image_size": self.image_size,
            "channels": self.channels,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }

    def as_config(self) -> dict[str, Any]:
        """The entries of timm's `pretrained_cfg`, as plain JSON values."""
        size = self.image_size
        return {
            "input_size": [self.channels, size, size],
            "mean": [float(m) for m in self.mean],
            "std": [float(s) for s in self.std],
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }


def default_preprocessing(channels: int, image_size: int) -> Preprocessing:
    """Return the preprocessing of a network without a pretrained configuration: ImageNet's for color, 0.5 for gray."""
    mean, std = _IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    return Preprocessing(mean, std, image_size, crop_pct=default_crop_pct(image_size))


def default_crop_pct(image_size: int) -> float:
    """Return 1 up to 64 px, where an image is shown whole, and 0.875 above."""
    return 1.0 if image_size <= _SMALL else _CROP_PCT


def resized(images: Preprocessing, image_size: int | None) -> Preprocessing:
    """Return the preprocessing for another size; None keeps the size. Up to 64 px an image is shown whole."""
    if image_size is None or image_size == images.image_size:
        return images
    return replace(images, image_size=image_size, crop_pct=1.0 if image_size <= _SMALL else images.crop_pct)


def recolored(images: Preprocessing, channels: int) -> Preprocessing:
    """Return the preprocessing for images of other channels: gray takes the mean over the colors."""
    if channels == images.channels:
        return images
    count = images.channels
    return replace(images, mean=(sum(images.mean) / count,) * channels, std=(sum(images.std) / count,) * channels)


def from_config(config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that timm's `pretrained_cfg` (or our overlay of it) describes.

    Entries that are missing take the values of selfcluster's first release: bilinear, and the default crop.
    """
    channels, size = config["input_size"][0], config["input_size"][1]
    interpolation = config.get("interpolation") or "bilinear"
    mode = config.get("crop_mode") or "center"
    default = default_preprocessing(channels, size)
    return Preprocessing(
        tuple(config.get("mean") or default.mean),
        tuple(config.get("std") or default.std),
        size,
        interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        min(1.0, config.get("crop_pct") or default.crop_pct),
        mode if mode in CROP_MODES else "center",
    )


def hub_preprocessing(folder: Path) -> dict[str, Any]:
    """Return what Hugging Face's `preprocessor_config.json` beside the weights says of the images, in timm's words."""
    read = read_object(folder / "preprocessor_config.json")
    if not isinstance(read.get("image_mean"), list) or not isinstance(read.get("image_std"), list):
        return {}
    size = _side(read.get("crop_size")) if read.get("do_center_crop") else None
    resized = _side(read.get("size"))
    side = size or resized
    words: dict[str, Any] = {"mean": tuple(read["image_mean"]), "std": tuple(read["image_std"])}
    words["interpolation"] = {2: "bilinear", 3: "bicubic"}.get(read.get("resample", 2), "bicubic")
    if side is None or resized is None:
        return words
    shortest = isinstance(read.get("size"), int) or "shortest_edge" in read.get("size", {})
    words |= {"input_size": (len(words["mean"]), side, side), "crop_pct": min(1.0, side / resized)}
    return words | {"crop_mode": "center" if shortest and size else "squash"}


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty where the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _side(value: object) -> int | None:
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", value.get("height"))
    return int(value) if isinstance(value, int | float) else None
