"""How stored values deeper than 8 bits become 0..255: one range for a whole set of images.

Images of 8 bits and fewer use their whole range: 0..255 is kept, 0..15 is spread. For deeper ones (10 to 64 bits,
signed numbers, floats) the set has one range LOW..HIGH: LOW becomes 0, HIGH becomes 255, values outside are cut off.
The user gives it (`--range LOW HIGH`), or `choose_range` takes it from a seeded sample of the set:

1. Values that are not finite, and those that the file declares as "no data" (GDAL's tag), are left out.
2. A smallest or largest value that lies further from all others than these lie apart is taken for "no data" too, such
   as -9999 among temperatures. Both ends are checked; the others must have more than 16 different values.
3. LOW and HIGH are the percentiles 0.1 and 99.9 of the remaining values.
4. If these cover more than half of 0..1 (floats only), 0..255, 0..1023, 0..4095, 0..16383 or 0..65535, and no value
   lies outside it, that whole range is used: photographs of 16 bits keep their exposure.

A single image that belongs to no set has the range of its type, see `own_range`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from selfcluster.data.errors import BadImage, DataError

_PERCENTILES = (0.1, 99.9)
_COMMON = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_DISTINCT = 16  # as many or fewer values are classes or levels, among which a gap means nothing
_WHITE = 255.0  # what a page shows behind a transparent image


@dataclass(frozen=True)
class ValueRange:
    """LOW..HIGH of stored values. `reason` says where it comes from, in words."""

    low: float
    high: float
    reason: str = ""

    @classmethod
    def of(cls, numbers: Sequence[float] | None) -> ValueRange | None:
        """Return the range LOW..HIGH that a user or a run's configuration names; None for None.

        Raises:
            DataError: LOW is not smaller than HIGH.
        """
        if numbers is None:
            return None
        low, high = (float(number) for number in numbers)
        if not low < high:
            raise DataError(f"--range {low:g} {high:g}: the first number must be smaller than the second")
        return cls(low, high, "as asked")

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Stored:
    """The values of an image as its file holds them.

    values: (H, W, 1 or 3), any plain type. bits: how many the file uses for a value. alpha: (H, W) in 0..1, or None.
    premultiplied: the values were multiplied by alpha. inverted: the smallest value is white. nodata: a value that
    means "nothing was measured here", or None.
    """

    values: np.ndarray
    bits: int
    alpha: np.ndarray | None = None
    premultiplied: bool = False
    inverted: bool = False
    nodata: float | None = None


def to_pixels(stored: Stored, value_range: ValueRange | None) -> np.ndarray:
    """Return (H, W, 1 or 3) uint8 of an image's stored values; None takes the range of the image's own type.

    Raises:
        BadImage: not_finite, where a value is NaN or infinite and not declared as "no data".
    """
    missing = _missing(stored)  # (H, W) or None
    measured = stored.values if missing is None else stored.values[~missing]
    if stored.values.dtype.kind == "f" and not np.isfinite(measured).all():
        count = int((~np.isfinite(measured)).sum())
        raise BadImage(
            "not_finite", f"{count} values are NaN or infinite; replace them, or name the value in the tag GDAL_NODATA"
        )
    used = value_range or own_range(measured, stored.bits)
    if stored.values.dtype in (np.uint8, np.uint16) and stored.alpha is None and missing is None:
        levels = np.arange(np.iinfo(stored.values.dtype).max + 1, dtype=stored.values.dtype)
        table = _spread(levels, used, stored.inverted)
        return np.floor(table * 255 + 0.5).astype(np.uint8)[stored.values]
    values = stored.values.astype(np.float64)
    if stored.premultiplied and stored.alpha is not None:
        values /= np.maximum(stored.alpha, 1e-6)[:, :, None]
    share = _spread(values, used, stored.inverted)
    if missing is not None:
        share[missing] = 0
    levels = share * 255
    if stored.alpha is not None:
        alpha = stored.alpha[:, :, None]
        levels = levels * alpha + _WHITE * (1 - alpha)
    return np.floor(levels + 0.5).astype(np.uint8)


def _spread(values: np.ndarray, used: ValueRange, inverted: bool) -> np.ndarray:
    """The values' places in the range, 0..1; an empty range has everything at 0."""
    share = (values.astype(np.float64) - used.low) / max(used.high - used.low, np.finfo(np.float64).tiny)
    np.clip(share, 0, 1, out=share)
    return 1 - share if inverted else share


def own_range(values: np.ndarray, bits: int) -> ValueRange:
    """Return the range of an image that belongs to no set.

    Unsigned numbers of up to 16 bits use all that their bits can hold. Others use the first of 0..1 (floats only),
    0..255, 0..65535 that holds every value, else their smallest and largest.
    """
    if values.dtype.kind == "u" and bits <= 16:
        return ValueRange(0.0, float(2**bits - 1))
    lowest, highest = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    ranges = [(0.0, 1.0)] if values.dtype.kind == "f" else []
    ranges += [(0.0, 255.0), (0.0, 65535.0), (lowest, highest)]
    return ValueRange(*next((low, high) for low, high in ranges if low <= lowest and highest <= high))


def choose_range(samples: Iterable[Stored], per_image: int = 16_384) -> ValueRange | None:
    """Return one range for the set that the sampled images stand for, by the rule above; None without any value."""
    parts: list[np.ndarray] = []
    kinds: set[str] = set()
    for stored in samples:
        missing = _missing(stored)
        values = stored.values.reshape(-1) if missing is None else stored.values[~missing].reshape(-1)
        values = values[:: max(1, len(values) // per_image)].astype(np.float64)
        parts.append(values[np.isfinite(values)])
        kinds.add(f"{stored.values.dtype.name}" if stored.values.dtype.kind == "f" else f"{stored.bits}-bit")
    values = np.sort(np.concatenate(parts)) if parts else np.empty(0)
    if not len(values):
        return None
    values, dropped = _without_outliers(values)
    low, high = (float(x) for x in np.percentile(values, _PERCENTILES))
    floats = all(kind.startswith("float") for kind in kinds)
    note = "".join(f", {value:g} means no data" for value in dropped)
    if len(kinds) > 1:
        note += f"; {' and '.join(sorted(kinds))} images get the same range: if their units differ, use separate runs"
    for top in ((1.0,) if floats else ()) + _COMMON:
        if values[0] >= 0 and values[-1] <= top and high - low > top / 2:
            return ValueRange(0.0, top, f"{', '.join(sorted(kinds))} images use most of this range{note}")
    low, high = float(f"{low:.6g}"), float(f"{high:.6g}")
    if low == high:
        high = low + 1
    return ValueRange(low, high, f"percentiles {_PERCENTILES[0]} and {_PERCENTILES[1]} of a sample{note}")


def to_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """Return (H, W, channels) of (H, W, 1 or 3) uint8: three equal channels, or ITU-R 601-2 luma; None changes nothing.

    >>> to_channels(np.full((2, 2, 1), 7, np.uint8), 3)[0, 0].tolist()
    [7, 7, 7]
    """
    if channels in (None, pixels.shape[2]):
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]


def _missing(stored: Stored) -> np.ndarray | None:
    """(H, W) where the file's "no data" value stands in all channels."""
    if stored.nodata is None:
        return None
    values, nodata = stored.values, stored.nodata
    if np.isnan(nodata):
        found = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)
    elif values.dtype.kind == "f":
        found = values == np.float64(nodata).astype(values.dtype)
    else:
        limits = np.iinfo(values.dtype)
        fits = np.isfinite(nodata) and nodata == int(nodata) and limits.min <= nodata <= limits.max
        found = values == int(nodata) if fits else np.zeros(values.shape, dtype=bool)
    everywhere: np.ndarray = np.all(found, axis=2)
    return everywhere if everywhere.any() else None


def _without_outliers(values: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Sorted values without one far value at either end, and these values."""
    dropped: list[float] = []
    for end in (0, -1):
        extreme = values[end]
        others = values[values != extreme]
        if len(others) <= _DISTINCT or len(np.unique(others)) <= _DISTINCT:
            continue
        low, high = np.percentile(others, _PERCENTILES)
        gap = low - extreme if end == 0 else extreme - high
        if gap > high - low:
            values = others
            dropped.append(float(extreme))
    return values, dropped
