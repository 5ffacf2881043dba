"""What a recipe chooses and why, and what a method may know of a run when it chooses its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict


@dataclass(frozen=True)
class Choice:
    """A value and the reason for it."""

    value: Any
    reason: str


@dataclass(frozen=True)
class RunShape:
    """What the recipe `auto` has settled before it asks the method.

    `layout`: grayscale images, whose layout is kept. `small`: images up to 64 px. `short`: a run that sees few images.
    `given`: the user's own settings, which decide.
    """

    num_images: int
    batch_size: int
    epochs: float
    steps: int
    layout: bool
    small: bool
    short: bool
    given: Mapping[str, Any]


class RunSettings(TypedDict):
    """The configuration of a run, flat: the shared flags, and those of a method that other files read.

    A run has the settings of its own method only; `about` says what was read and how, and of which release.
    """

    method: str
    data: str
    about: dict[str, Any]
    backbone: str
    patch_size: int | None
    init: str | None
    allow_partial: bool
    freeze_norm: str
    freeze_layers: float
    sobel: bool
    channels: int
    image_size: int
    global_crops: int
    local_crops: int
    local_size: int
    epochs: float
    minutes: float | None
    images_seen: int | None
    batch_size: int
    accumulate: int
    warmup_epochs: float
    schedule: str
    milestones: tuple[float, ...]
    seed: int
    workers: int | None
    device: str
    precision: str
    max_bad: float
    judge_sample: int
    keep: str | None
    # of methods
    num_prototypes: int
    num_super_clusters: int
    pretext: str
    num_permutations: int
    network_dropout: float | None
    clustering: str
    weighting: str
    centering: str
    loss: str
    target: str
    rounds: int
    teacher: str | None
    teacher_layer: str | None
    teacher_pca: int | None
    kmeans_iterations: int
    kmeans_sample: int | None
    kmeans_sample_iterations: int | None
