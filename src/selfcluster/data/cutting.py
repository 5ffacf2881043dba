"""One batch in the making: read, decode and cut its images, and replace the bad ones; what the loader's threads do.

B images of this rank in a batch, V views, C channels, S a view's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from selfcluster import randomness
from selfcluster.data.budget import decoding
from selfcluster.data.errors import BadImage
from selfcluster.data.images import ArrayImage, open_row
from selfcluster.data.pixels import OpenedImage
from selfcluster.data.quarantine import Find, TooManyBadImages
from selfcluster.data.sources import Source
from selfcluster.data.threads import Watch
from selfcluster.views.crops import center, cut, decoded_side
from selfcluster.views.plans import ViewPlan

CHUNK = 16  # images a thread takes at once: one call draws all their boxes
_TRIES = 1000  # replacements drawn for one bad image before giving up


@dataclass
class Job:
    """One batch in the making: `shown` (B,), the images really shown, and, per view, `pixels` (B, C, S, S) uint8."""

    step: int
    index: np.ndarray  # (B,) as planned
    plan: ViewPlan
    seed: int
    crop: bool  # random crops; else the center view
    substitute: bool  # replace bad images; else mark them -1 in `shown`
    shown: np.ndarray
    pixels: list[np.ndarray]
    finds: list[Find] = field(default_factory=list)


class Cutter:
    """Fills the slots of jobs from the images of a source; safe among threads that fill different slots.

    Args:
        source: the images.
        bad: (N,) bool, images known to be bad; read while it changes.
        allowed: how many may be bad. A batch that finds more looks for no replacements: the run ends anyway.
        watch: told which image is being read.
        channels: 1 or 3.
        image_size: side of the center view.
        center: interpolation and crop of the center view, as `views.crops.center` takes them.
        seed: of the replacements.
        images: (N, H, W, C) uint8 in host memory, or None to read each image.
    """

    def __init__(
        self,
        source: Source,
        bad: np.ndarray,
        watch: Watch,
        *,
        allowed: int,
        channels: int,
        image_size: int,
        center: dict[str, Any],
        seed: int,
        images: Tensor | None,
    ) -> None:
        self._source, self._bad, self._watch, self._images = source, bad, watch, images
        self._allowed = allowed
        self._channels, self._image_size, self._center_options, self._seed = channels, image_size, center, seed

    def begin(self, job: Job) -> range:
        """Make room for the job's pixels; return the slots at which the parts of the work start."""
        count = len(job.index)
        job.pixels = [np.empty((count, self._channels, size, size), np.uint8) for size in job.plan.sizes]
        return range(0, count, CHUNK)

    def replaced(self, job: Job) -> np.ndarray:
        """Return (B,) the job's images with the known bad ones replaced; nothing is read."""
        shown = job.index.copy()
        for attempt in range(_TRIES):
            wrong = self._bad[shown]
            if not wrong.any():
                return shown
            shown[wrong] = self._substitute(job, job.index[wrong], attempt)
        raise no_substitute(job)

    def load(self, job: Job, start: int) -> list[Find]:
        """Fill the job's slots from `start` on. Runs in a thread and writes to no other slot.

        A slot whose image is bad, and for which no other was found, shows -1.
        """
        finds: list[Find] = []
        slots = range(start, min(start + CHUNK, len(job.index)))
        wrong = self._fill(job, list(slots), finds)
        for attempt in range(_TRIES):
            if not wrong:
                return finds
            if not job.substitute:
                job.shown[wrong] = -1
                return finds
            if len({row for row, _, _ in finds}) > self._allowed:  # more tries find more of the same
                break
            job.shown[wrong] = self._substitute(job, job.index[wrong], attempt)
            wrong = self._fill(job, wrong, finds)
        job.shown[wrong] = -1
        return finds

    def _fill(self, job: Job, slots: list[int], finds: list[Find]) -> list[int]:
        """Read, decode and cut the images `job.shown[slots]`; return the slots whose image was bad."""
        opened: list[OpenedImage | ArrayImage | None] = []
        sizes = np.ones((len(slots), 2), dtype=np.int64)
        for k, slot in enumerate(slots):
            row = int(job.shown[slot])
            image = None
            if not self._bad[row]:
                try:
                    image = self._open(row)
                    sizes[k] = image.height, image.width
                except BadImage as error:
                    finds.append((row, error.reason, error.detail))
            opened.append(image)
        boxes = None
        if job.crop:
            boxes = np.stack(
                job.plan.boxes(job.seed, job.step, job.shown[slots], sizes[:, 0], sizes[:, 1])
            )  # (V, n, 5)
        wrong = []
        for k, slot in enumerate(slots):
            image = opened[k]
            opened[k] = None  # its bytes are not needed after this
            if image is None:
                wrong.append(slot)
                continue
            try:
                with decoding().hold(image.decode_bytes):
                    if boxes is None:
                        self._center(image, job.pixels[0][slot])
                    else:
                        self._crops(image, boxes[:, k], job, slot)
            except BadImage as error:
                finds.append((int(job.shown[slot]), error.reason, error.detail))
                wrong.append(slot)
        return wrong

    def _open(self, row: int) -> OpenedImage | ArrayImage:
        if self._images is not None:
            return ArrayImage(self._images[row].numpy())
        with self._watch.reading(row):
            return open_row(self._source, row)

    def _center(self, image: OpenedImage | ArrayImage, out: np.ndarray) -> None:
        size = self._image_size
        side = decoded_side(size, self._center_options["crop_pct"])
        center(image.pixels(self._channels, shrink_to=side), size, **self._center_options, out=out)

    def _crops(self, image: OpenedImage | ArrayImage, boxes: np.ndarray, job: Job, slot: int) -> None:
        """Cut all views from one decode; a JPEG is decoded smaller if no view has to be enlarged for it."""
        sides = boxes[:, 2:4].min(axis=1)  # (V,)
        needed = float((np.array(job.plan.sizes) / sides).max()) * min(image.height, image.width)
        pixels = image.pixels(self._channels, shrink_to=math.ceil(needed))
        down, across = pixels.shape[0] / image.height, pixels.shape[1] / image.width
        boxes = boxes * np.array([down, across, down, across, 1], dtype=np.float32)
        for view, (box, group) in enumerate(zip(boxes, job.plan.views, strict=True)):
            cut(pixels, box, group.size, group.interpolation, out=job.pixels[view][slot])

    def _substitute(self, job: Job, index: np.ndarray, attempt: int) -> np.ndarray:
        high, low = randomness.draw(self._seed, "replace", job.step, index, attempt, 2).astype(np.float64).T
        return ((high + low * 2.0**-24) * len(self._source)).astype(np.int64)


def no_substitute(job: Job) -> TooManyBadImages:
    """Return the error for a batch whose bad images were all to be replaced by bad ones."""
    return TooManyBadImages(f"{_TRIES} images drawn to replace a bad one at step {job.step} were all bad themselves")
