"""Look at every image of one or two sets: copies, near copies, dark, blurred and constant ones, and unreadable ones.

Copies: equal bytes of the file (equal pixels for arrays). Near copies: small gray versions of two images, 16 x 16
pixels, whose correlation is `near` or more: the same picture in another size, format or quality, or with small changes.
Pictures that are cropped by much, turned or mirrored are not found. Dark: no pixel above 24 of 255. Constant: all
pixels within 8 of 255. Blurred: hardly any detail of the size of a pixel (see `sharpness`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfcluster.data.budget import decoding
from selfcluster.data.errors import BadImage, DataError
from selfcluster.data.images import CONSTANT, DARK, open_content
from selfcluster.data.problems import Finding
from selfcluster.data.sources import Source
from selfcluster.files import write_atomically

# of 16 x 16 versions: half the size and JPEG of quality 60 keep 0.997; of scikit-learn's 1,797 digits, all different,
# one pair reaches it, and 29 reach 0.98
NEAR = 0.99
# sharpness of scikit-learn's two photographs at 256 pixels: 0.18 and 0.45; after a Gaussian blur of 1 pixel 0.014 and
# 0.015, of 2 pixels 0.0011 and 0.0015
BLURRED = 0.004
_SIDE = 16  # of the small versions that are compared
_ROUNDING = 20 / 12  # variance of the Laplacian of values that were rounded: 1/12 each, times 4 x 4 + 4
_LOOKED_AT = 256  # shorter side, in pixels, at which blur is judged
_FLAT = 2.0  # standard deviation in gray levels below which a small version has no picture to compare
_BLOCK = 1024  # rows compared with all others at a time
_BRUTE = 50_000  # up to so many images every pair is compared; above, only those that share a part of their hash
_BUCKET = 500  # images that share a part of a hash: more have nothing in common but being plain
_CHUNK = 8


@dataclass
class Examined:
    """N images of a set. Rows of bad images hold zeros; `findings` name them."""

    ids: list[str]
    digests: list[bytes]  # of the content; empty for unreadable files
    small: np.ndarray  # (N, 256) float32 unit rows with mean 0; zeros where there is no picture to compare
    bits: np.ndarray  # (N,) uint64: which pixels of an 8 x 8 version are above the median
    dark: np.ndarray  # (N,) bool
    constant: np.ndarray  # (N,) bool
    blurred: np.ndarray  # (N,) bool
    findings: list[Finding] = field(default_factory=list)


def examine(source: Source, pool: Executor | None = None, done: Callable[[int], None] | None = None) -> Examined:
    """Read and decode every image once.

    Args:
        source: the images.
        pool: threads, or None.
        done: called with the number of images examined so far.
    """
    count = len(source)
    result = unexamined(source.ids[:])
    order = source.storage_order()
    chunks = [order[k : k + _CHUNK].tolist() for k in range(0, count, _CHUNK)]

    def look(rows: list[int]) -> list[Finding]:
        return [finding for row in rows if (finding := _look(source, row, result)) is not None]

    for number, findings in enumerate((pool.map if pool is not None else map)(look, chunks), start=1):
        result.findings += findings
        if done is not None:
            done(min(number * _CHUNK, count))
    result.findings.sort(key=lambda finding: finding.id)
    return result


def unexamined(ids: list[str]) -> Examined:
    """Return what `examine_image` fills, row by row, for images of these ids."""
    count = len(ids)
    return Examined(
        ids,
        [b""] * count,
        np.zeros((count, _SIDE * _SIDE), np.float32),
        np.zeros(count, np.uint64),
        dark=np.zeros(count, dtype=bool),
        constant=np.zeros(count, dtype=bool),
        blurred=np.zeros(count, dtype=bool),
    )


def sharpness(gray: np.ndarray) -> float:
    """Return the variance of the Laplacian of (H, W) over the variance of the pixels; small where there is no detail.

    >>> sharpness(np.indices((9, 9)).sum(axis=0) % 2 * 255.0) > 1
    True
    """
    values = gray.astype(np.float32)
    values -= values.mean()
    laplacian = values[:-2, 1:-1] + values[2:, 1:-1]
    laplacian += values[1:-1, :-2]
    laplacian += values[1:-1, 2:]
    laplacian -= 4 * values[1:-1, 1:-1]
    laplacian -= laplacian.mean()
    detail, all_of_it = (float(np.vdot(part, part)) / part.size for part in (laplacian, values))
    return max(0.0, detail - _ROUNDING) / max(all_of_it, 1e-9)


def exact_groups(examined: Examined) -> list[list[int]]:
    """Return the rows of equal content, in groups of two and more; the largest group first."""
    groups: dict[bytes, list[int]] = {}
    for row, digest in enumerate(examined.digests):
        if digest:
            groups.setdefault(digest, []).append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))


def near_groups(examined: Examined, near: float = NEAR) -> list[list[int]]:
    """Return the rows of near copies that are not exact ones, as connected groups; the largest first."""
    first = _first_of_each(examined)
    parent = {row: row for row in first}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for a, b in _near_pairs(examined, examined, np.array(first, dtype=np.int64), np.array(first, dtype=np.int64), near):
        if a < b:
            parent[root(b)] = root(a)
    groups: dict[int, list[int]] = {}
    for row in first:
        groups.setdefault(root(row), []).append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))


def exact_leaks(one: Examined, two: Examined) -> list[tuple[int, int]]:
    """Return (row of one, row of two) of equal content; each row of two once."""
    where = {digest: row for row, digest in reversed(list(enumerate(one.digests))) if digest}
    return [(where[digest], row) for row, digest in enumerate(two.digests) if digest in where]


def near_leaks(one: Examined, two: Examined, near: float = NEAR) -> list[tuple[int, int]]:
    """Return (row of one, row of two) of near copies that are not exact ones; each row of two once."""
    exact = {row for _, row in exact_leaks(one, two)}
    found: dict[int, int] = {}
    for a, b in _near_pairs(one, two, np.arange(len(one.ids)), np.arange(len(two.ids)), near):
        if b not in exact:
            found[b] = min(a, found.get(b, a))
    return sorted((a, b) for b, a in found.items())


def write_hashes(examined: Examined, path: Path) -> int:
    """Write the SHA-256 of each readable image, in the format of `sha256sum`; return how many."""
    lines = [f"{digest.hex()}  {id}\n" for digest, id in zip(examined.digests, examined.ids) if digest]
    write_atomically(path, "".join(lines))
    return len(lines)


def compare_hashes(examined: Examined, path: Path) -> dict[str, list[str]]:
    """Return the ids that are changed, missing or added since `write_hashes` wrote the file.

    Raises:
        DataError: the file holds anything else.
    """
    earlier: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        digest, _, id = line.partition("  ")
        if len(digest) != 64 or not id:
            raise DataError(f"{path} line {number}: expected a SHA-256, two spaces and the id of an image")
        earlier[id] = digest
    now = {id: digest.hex() for id, digest in zip(examined.ids, examined.digests)}
    return {
        "changed": [id for id in now if id in earlier and now[id] != earlier[id]],
        "missing": [id for id in earlier if id not in now],
        "added": [id for id in now if id not in earlier],
    }


def _look(source: Source, row: int, result: Examined) -> Finding | None:
    try:
        examine_image(source, source.read(row), result, row)
    except BadImage as error:
        return Finding(source.ids[row], error.reason, error.detail)
    return None


def examine_image(source: Source, data: bytes | np.ndarray, result: Examined, row: int) -> np.ndarray:
    """Look at one image that was read, write what is seen into a row of `result`, and return its pixels.

    Args:
        source: where the image is from.
        data: what it read.
        result: see `unexamined`; the row's digest is set for a bad image, too.
        row: of `result`.

    Returns:
        (H, W, 1 or 3) uint8; the shorter side is 256 pixels or more if the image has so many.

    Raises:
        BadImage: it cannot be decoded.
    """
    content = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
    result.digests[row] = hashlib.sha256(content).digest()
    image = open_content(source, data)
    with decoding().hold(image.decode_bytes):
        pixels = image.pixels(None, shrink_to=_LOOKED_AT)
        whole = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        extremes: Any = whole.getextrema()  # of each channel; NumPy is slow where the last axis is short
        lowest, highest = np.array(extremes).reshape(-1, 2).T
        picture = whole.convert("L")
    scale = _LOOKED_AT / min(picture.size)
    if scale < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BOX)
    small = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    result.dark[row] = highest.max() <= DARK
    result.constant[row] = (highest - lowest).max() <= CONSTANT
    gray = np.asarray(picture)
    result.blurred[row] = not result.constant[row] and min(gray.shape) > 2 and sharpness(gray) < BLURRED
    if small.std() >= _FLAT:
        centered = small.reshape(-1) - small.mean()
        result.small[row] = centered / np.linalg.norm(centered)
        eighths = small.reshape(8, _SIDE // 8, 8, _SIDE // 8).mean(axis=(1, 3)).reshape(-1)
        result.bits[row] = np.packbits(eighths > np.median(eighths)).view(">u8")[0]
    return pixels


def _first_of_each(examined: Examined) -> list[int]:
    """Rows that have a picture to compare, one of each content."""
    seen: set[bytes] = set()
    rows = []
    for row, digest in enumerate(examined.digests):
        if digest and digest not in seen and examined.small[row].any():
            seen.add(digest)
            rows.append(row)
    return rows


def _near_pairs(
    one: Examined, two: Examined, rows: np.ndarray, others: np.ndarray, near: float
) -> Iterator[tuple[int, int]]:
    """Yield (row of one, row of two) whose small versions correlate by `near` or more."""
    if len(rows) <= _BRUTE and len(others) <= _BRUTE:
        theirs = two.small[others]
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            for a, b in np.argwhere(one.small[block] @ theirs.T >= near).tolist():
                yield int(block[a]), int(others[b])
        return
    for mine, yours in _sharing_bits(one.bits[rows], two.bits[others]):
        a, b = rows[mine], others[yours]
        for i, j in np.argwhere(one.small[a] @ two.small[b].T >= near).tolist():
            yield int(a[i]), int(b[j])


def _sharing_bits(one: np.ndarray, two: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield positions in both that share one of four 16-bit parts: up to three differing bits are always found."""
    for part in range(4):
        keys, others = ((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF) for bits in (one, two))
        by_key, by_other = np.argsort(keys, kind="stable"), np.argsort(others, kind="stable")
        for key in np.intersect1d(keys, others):
            mine = by_key[slice(*np.searchsorted(keys[by_key], [key, key + np.uint64(1)]))]
            yours = by_other[slice(*np.searchsorted(others[by_other], [key, key + np.uint64(1)]))]
            if len(mine) <= _BUCKET and len(yours) <= _BUCKET:
                yield mine, yours
