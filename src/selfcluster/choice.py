"""What a recipe chooses and why, and what a method may know of a run when it chooses its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
