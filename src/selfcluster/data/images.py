"""One image of a source, opened but not yet decoded; and what a sample, or all of them, look like."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import TypedDict

import numpy as np

from selfcluster.data.budget import decoding
from selfcluster.data.decode import open_image
from selfcluster.data.errors import BadImage
from selfcluster.data.order import shuffled
from selfcluster.data.pixels import OpenedImage
from selfcluster.data.problems import Finding, grouped, listed
from selfcluster.data.ranges import Stored, ValueRange, choose_range, to_channels
from selfcluster.data.sources import Source

log = logging.getLogger("selfcluster.data")

_GRAY_TOLERANCE = 8  # levels between channels that JPEG may put into a gray picture stored in color
DARK = 24  # of 255: a picture without a brighter pixel shows nothing
CONSTANT = 8  # of 255: a picture whose levels all lie this close together shows nothing
_WARN_SHARE = 0.1  # warn if at least this share of the sampled images is nearly black or nearly constant
_RANGE_LOOKED_AT = 256  # headers read to find deep images
_RANGE_SAMPLED = 64  # deep images whose values are read
_CHUNK = 16


class ArrayImage:
    """An image that needs no decoding; the interface of `OpenedImage`."""

    frames = 1
    decode_bytes = 0
    is_deep = False

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # (H, W, 1 or 3) uint8
        self.height, self.width = array.shape[:2]
        self.stored_size = (self.width, self.height)

    def pixels(self, channels: int | None = 3, shrink_to: int | None = None) -> np.ndarray:
        """(H, W, C) uint8; nothing is ever shrunk."""
        return to_channels(self._array, channels)


def open_row(source: Source, i: int, in_time: bool = False) -> OpenedImage | ArrayImage:
    """Read image i of a source and look at its header; `in_time` reads in a thread of its own, with a timeout.

    Raises:
        BadImage: it cannot be read, or is no usable image.
    """
    return open_content(source, source.read_in_time(i) if in_time else source.read(i))


def open_content(source: Source, data: bytes | np.ndarray) -> OpenedImage | ArrayImage:
    """Look at the header of what `source` has read; raise BadImage where it is no usable image."""
    if not isinstance(data, bytes):
        return ArrayImage(data)
    image = open_image(data, max_pixels=source.max_pixels)
    if image.is_deep:
        image.value_range = range_of(source)
    return image


def range_of(source: Source) -> ValueRange | None:
    """Return the range of the source's deep images (see `ranges.py`); measured once, from the same sample everywhere.

    None where the sample has no deep image: one that turns up later has the range of its type.
    """
    with source.range_lock:
        if not source.is_range_known:
            source.set_range(choose_range(_deep_images(source)))
        return source.value_range


class SampleDescription(TypedDict):
    """What a sample of images looks like. Sizes are [min, median, max] in pixels, or None where none could be read."""

    sampled: int
    bad: float  # share of the sample
    channels: int  # 1 if all are gray, else 3
    height: list[int] | None
    width: list[int] | None
    side: list[int] | None  # the shorter one
    frames: int  # files with more than one frame or page; the first is used
    dark: int  # images without a pixel above 24 of 255
    constant: int  # images whose pixels all lie within 8 of 255
    deep: int  # images with more than 8 bits
    range: ValueRange | None  # of the deep ones
    findings: list[Finding]  # the bad ones


def describe_images(source: Source, sample: int = 256) -> SampleDescription:
    """Look at up to `sample` images, evenly spread over the source, to choose settings by."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).astype(np.int64))
    sizes: list[tuple[int, int, int]] = []
    gray = True
    counts = dict.fromkeys(("frames", "dark", "constant", "deep"), 0)
    findings: list[Finding] = []
    for i in rows.tolist():
        try:
            image = open_row(source, i, in_time=True)
            with decoding().hold(image.decode_bytes):
                pixels = image.pixels(None, shrink_to=64)
                lowest, highest = pixels.min(axis=(0, 1)).astype(int), pixels.max(axis=(0, 1)).astype(int)
                gray = gray and (pixels.shape[2] == 1 or _spread(pixels) <= _GRAY_TOLERANCE)
        except BadImage as error:
            findings.append(Finding(source.ids[i], error.reason, error.detail))
            continue
        sizes.append((image.height, image.width, min(image.height, image.width)))
        counts["frames"] += image.frames > 1
        counts["dark"] += int(highest.max()) <= DARK
        counts["constant"] += int((highest - lowest).max()) <= CONSTANT
        counts["deep"] += image.is_deep
    height, width, side = (_three(values) for values in (zip(*sizes) if sizes else ((), (), ())))
    return SampleDescription(
        sampled=len(rows),
        bad=1 - len(sizes) / len(rows),
        channels=1 if gray else 3,
        height=height,
        width=width,
        side=side,
        frames=counts["frames"],
        dark=counts["dark"],
        constant=counts["constant"],
        deep=counts["deep"],
        range=source.value_range if counts["deep"] else None,
        findings=findings,
    )


def remarks(seen: SampleDescription, where: str) -> tuple[list[str], list[str]]:
    """Return (notes, warnings) about what `describe_images` saw; raises BadImages where nothing could be read."""
    if seen["side"] is None:
        raise BadImages(
            f"none of {seen['sampled']} images looked at in {where} can be read:\n" + listed(grouped(seen["findings"]))
        )
    notes, warnings = [], []
    if seen["range"] is not None:
        used = seen["range"]
        notes.append(
            f"images deeper than 8 bits: values {used} become 0..255 ({used.reason or 'as asked'}); "
            "--range LOW HIGH sets other values"
        )
    advice = "Look at them. If they have more than 8 bits, --range LOW HIGH sets the values that become black and white"
    for count, words in ((seen["dark"], "nearly black"), (seen["constant"], "nearly constant")):
        if count >= max(1, _WARN_SHARE * (seen["sampled"] - len(seen["findings"]))):
            warnings.append(f"{count} of {seen['sampled']} images looked at are {words}. {advice}")
    if seen["dark"] == seen["constant"] and len(warnings) == 2:
        warnings = warnings[1:]  # the same images, most likely
    return notes, warnings


def check_images(source: Source, sample: int = 64) -> None:
    """Look at a sample and log what a user should know about it, before work is done on all images.

    Raises:
        BadImages: none of the sampled images can be read.
    """
    notes, warnings = remarks(describe_images(source, sample), source.where)
    for text in notes:
        log.log(
            logging.INFO if source.value_range and source.value_range.reason == "as asked" else logging.WARNING, text
        )
    for text in warnings:
        log.warning(text)


class BadImages(RuntimeError):
    """None of the sampled images can be read. The message gives the reasons with counts and examples."""


def survey(
    source: Source, known: np.ndarray, seconds: float, pool: Executor | None
) -> tuple[list[tuple[int, str, str]], int]:
    """Decode all images that are not yet known to be bad, small, within a time.

    Args:
        source: the images.
        known: (N,) bool, those to leave out.
        seconds: after which to stop; images are taken in random order, so that the share stays true.
        pool: threads, or None.

    Returns:
        (row, reason, detail) of the bad ones, and how many images were looked at.
    """
    rows = shuffled(len(source), 0, "survey")
    rows = rows[~known[rows]]
    until = time.monotonic() + seconds
    chunks = [rows[k : k + _CHUNK] for k in range(0, len(rows), _CHUNK)]

    def look(chunk: np.ndarray) -> tuple[list[tuple[int, str, str]], int]:
        finds: list[tuple[int, str, str]] = []
        for count, row in enumerate(chunk.tolist()):
            if time.monotonic() > until:
                return finds, count
            try:
                image = open_row(source, row)
                with decoding().hold(image.decode_bytes):
                    image.pixels(None, shrink_to=1)
            except BadImage as error:
                finds.append((row, error.reason, error.detail))
        return finds, len(chunk)

    results = list((pool.map if pool is not None else map)(look, chunks))
    return [find for finds, _ in results for find in finds], sum(count for _, count in results)


def _three(values: Sequence[int]) -> list[int] | None:
    """[min, median, max]."""
    return [int(min(values)), int(np.median(values)), int(max(values))] if values else None


def _deep_images(source: Source) -> Iterator[Stored]:
    found = 0
    for row in shuffled(len(source), 0, "range sample")[:_RANGE_LOOKED_AT].tolist():
        try:
            data = source.read_in_time(row)
            image = open_image(data, max_pixels=source.max_pixels) if isinstance(data, bytes) else None
            if image is None or not image.is_deep:
                continue
            stored = image.stored()
        except BadImage:
            continue
        yield stored
        found += 1
        if found == _RANGE_SAMPLED:
            return


def _spread(pixels: np.ndarray) -> int:
    """The largest difference between the channels of a pixel."""
    return int((pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)).max())
