"""Where images come from: a folder, a list of paths, a folder of tars, an array, or the built-in digits.

A `Source` knows N ids in bytewise order, and reads image i: bytes of a file, or an (H, W, C) uint8 array. Nothing here
imports torch, so that an empty folder is refused before anybody waits for it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from selfcluster.data import labels as labeling
from selfcluster.data import subsets
from selfcluster.data.files import (
    IMAGE_SUFFIXES,
    DataError,
    Listing,
    ReadLog,
    read_file,
    read_list,
    scan,
    with_retries,
)
from selfcluster.data.labels import LabelsError
from selfcluster.data.names import Names, to_id
from selfcluster.data.shards import index_tars


class Reader(Protocol):
    """Reads image i of a set."""

    def read(self, i: int, log: ReadLog) -> bytes | np.ndarray: ...
    def take(self, rows: np.ndarray) -> Reader: ...
    def storage_order(self) -> np.ndarray: ...


class Files:
    """Reads files below a folder by their names."""

    def __init__(self, root: bytes, listing: Listing) -> None:
        self.root, self._listing = root, listing

    def read(self, i: int, log: ReadLog) -> bytes:
        path = os.path.join(self.root, self._listing.names.raw(i))
        data, status = with_retries(lambda: read_file(path), log)
        if (status.st_size, status.st_mtime_ns) != (self._listing.sizes[i], self._listing.mtimes[i]):
            log.note_change(i)
        return data

    def take(self, rows: np.ndarray) -> Files:
        old = self._listing
        return Files(self.root, Listing(old.names.take(rows), old.sizes[rows], old.mtimes[rows]))

    def storage_order(self) -> np.ndarray:
        return np.arange(len(self._listing.names))


class Arrays:
    """Reads rows of an array in memory."""

    def __init__(self, images: np.ndarray, rows: np.ndarray | None = None) -> None:
        self._images = images  # (M, H, W, C) uint8
        self._rows = np.arange(len(images)) if rows is None else rows

    def read(self, i: int, log: ReadLog) -> np.ndarray:
        return self._images[self._rows[i]]

    def take(self, rows: np.ndarray) -> Arrays:
        return Arrays(self._images, self._rows[rows])

    def storage_order(self) -> np.ndarray:
        return np.arange(len(self._rows))


class Source:
    """N images with their ids; made by `open_source`.

    Attributes:
        ids: N texts, bytewise sorted (see `names.py`).
        labels: (N,) int64 or None.
        class_names: the names that `labels` index, or None.
        skipped: (id, reason) of files that were found and are no regular images; at most 1,000 are named.
        fingerprint: changes when an image is added, removed or edited.
        log: retries and changed files met while reading.
    """

    def __init__(
        self,
        reader: Reader,
        listing: Listing,
        kind: str,
        where: str,
        labels: np.ndarray | None = None,
        class_names: list[str] | None = None,
        subset: dict[str, Any] | None = None,
    ) -> None:
        self._reader, self._listing = reader, listing
        self.kind, self.where = kind, where
        self.ids = listing.names
        self.labels, self.class_names = labels, class_names
        self.skipped = listing.skipped
        self.subset = subset or {}
        self.log = ReadLog()
        self._summary: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def root(self) -> str | None:
        """The whole path of the folder that the ids begin at; None where images are no files."""
        root = getattr(self._reader, "root", None)
        return None if root is None else to_id(os.path.abspath(root))

    def read(self, i: int) -> bytes | np.ndarray:
        """Image i: the bytes of its file, or (H, W, C) uint8 pixels.

        Raises:
            BadImage: vanished, not_regular, no_permission, read_error, truncated, too_large.
        """
        return self._reader.read(i, self.log)

    def storage_order(self) -> np.ndarray:
        """(N,) the rows in the order in which reading is fastest."""
        return self._reader.storage_order()

    @property
    def fingerprint(self) -> str:
        """A hash over ids, sizes and modification times (over the pixels for an array)."""
        return self.summary()["fingerprint"]

    def summary(self) -> dict[str, Any]:
        """What a later run needs to tell whether the data has changed, and in words how: see `difference`."""
        if self._summary is None:
            names, listing = self.ids, self._listing
            ids = _hash(names.buffer, names.offsets)
            sizes, mtimes = _hash(listing.sizes), _hash(listing.mtimes)
            self._summary = {
                "images": len(self),
                "bytes": int(listing.sizes.sum()),
                "newest": int(listing.mtimes.max()),
                "ids": ids,
                "sizes": sizes,
                "mtimes": mtimes,
                "fingerprint": _hash(ids.encode(), sizes.encode(), mtimes.encode()),
            }
        return dict(self._summary)

    def difference(self, earlier: dict[str, Any]) -> str:
        """What has changed since the summary `earlier` was taken; empty where nothing has."""
        now = self.summary()
        if now["fingerprint"] == earlier.get("fingerprint"):
            return ""
        if now["images"] != earlier.get("images"):
            return f"there were {earlier.get('images')} images, there are {now['images']}"
        if now["ids"] != earlier.get("ids"):
            return f"still {now['images']} images, but under other names"
        if now["sizes"] != earlier.get("sizes"):
            return f"the same names, but other sizes: {earlier.get('bytes')} bytes then, {now['bytes']} now"
        return "the same names and sizes, but files were modified since"

    def describe(self) -> dict[str, Any]:
        """What was read and how, for `config.yaml` and the console."""
        described: dict[str, Any] = {"kind": self.kind, "data": self.where, "images": len(self)}
        if self.class_names is not None:
            described["classes"] = len(self.class_names)
            described["class_names"] = _hash(
                *(f"{name}\n".encode("utf-8", "surrogateescape") for name in self.class_names)
            )
        if self._listing.passed:
            described["passed_over"] = dict(sorted(self._listing.passed.items()))
        return described | self.subset

    def take(self, rows: np.ndarray, labels: np.ndarray | None = None) -> Source:
        """The subset at the sorted `rows`, with other `labels` if given."""
        old = self._listing
        listing = Listing(self.ids.take(rows), old.sizes[rows], old.mtimes[rows], old.skipped, old.passed)
        if labels is None and self.labels is not None:
            labels = self.labels[rows]
        return Source(self._reader.take(rows), listing, self.kind, self.where, labels, self.class_names, self.subset)


def open_source(
    data: str | os.PathLike[str] | np.ndarray,
    *,
    labels_from: str | None = None,
    limit: int | None = None,
    classes: str | os.PathLike[str] | None = None,
    long_tail: float | None = None,
    label_noise: float | None = None,
    seed: int = 0,
) -> Source:
    """Open a set of images.

    Args:
        data: a folder (searched to any depth), a .txt/.csv/.parquet list of paths, a .tar or a folder of them, an array
            (N, H, W) or (N, H, W, C), or "builtin:digits".
        labels_from: "folders" (the name of the folder that holds the image), "column:NAME" of the list, a .csv of
            id and label (of several rows for an image one is drawn by `seed`), or "labels" (the digits' own). None: no
            labels.
        limit: keep so many images, drawn by `seed`.
        classes: a file of class names, one a line; only their images are kept. Needs labels.
        long_tail: ratio of the largest class to the smallest of a long-tailed subset. Needs labels.
        label_noise: share of labels to make wrong. Needs labels.
        seed: of the subset, the noise and the drawn tags.

    Returns:
        the images in bytewise order of their ids.

    Raises:
        DataError: nothing there, nothing to read, or a damaged tar.
        LabelsError: labels that are not there; names the classes found.

    >>> open_source(np.zeros((20, 8, 8), np.uint8)).ids[3]
    '03'
    """
    source, texts = _open(data, labels_from)
    if not len(source):
        raise DataError(_nothing_found(source))
    if labels_from is not None:
        source.labels, source.class_names = _labels(source, labels_from, texts, seed)
    asked = {"classes": classes, "long_tail": long_tail, "label_noise": label_noise}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked and source.labels is None:
        raise LabelsError(f"{next(iter(asked))} needs labels; say where they are with labels_from (--labels-from)")
    if classes is not None:
        source = _only_classes(source, os.fspath(classes))
    if long_tail is not None:
        source = _subset(source, lambda: subsets.long_tailed(_known(source.labels), long_tail, seed))
    if limit is not None:
        source = _subset(source, lambda: subsets.limited(len(source), limit, seed))
    if label_noise is not None:
        names = source.class_names or []
        source.labels = subsets.noisy(_known(source.labels), len(names), label_noise, seed)
    if limit is not None or asked:
        chosen = {"limit": limit} if limit is not None else {}
        source.subset = {
            **chosen,
            **{k: str(v) if k == "classes" else v for k, v in asked.items()},
            "subset_seed": seed,
        }
    return source


def check_enough(num_samples: int, batch_size: int) -> None:
    """Refuse to train on fewer images than one batch; needs no torch, so it can come first.

    Raises:
        DataError: names both numbers.
    """
    if num_samples < batch_size:
        raise DataError(
            f"{num_samples} images are fewer than one batch of {batch_size}; "
            f"use --batch-size {num_samples} or less, or more images"
        )


def _open(data: Any, labels_from: str | None) -> tuple[Source, list[str] | None]:
    if isinstance(data, np.ndarray):
        return _from_array(data, "array"), None
    if isinstance(data, list | tuple):
        raise DataError(
            f"data is a {type(data).__name__}: write the paths into a .txt file, a line each, and give that"
        )
    text = os.fspath(data)
    if text == "array" and not os.path.exists(text):
        raise DataError("the images of that run were an array, which is not kept: give the array again as `data`")
    if text.startswith("builtin:"):
        return _builtin(text)
    try:
        status = os.stat(text)
    except (OSError, ValueError) as error:
        raise DataError(f"no data at {text!r}: {getattr(error, 'strerror', None) or error}") from error
    column = labels_from.removeprefix("column:") if labels_from and labels_from.startswith("column:") else None
    suffix = Path(text).suffix.lower()
    if stat.S_ISREG(status.st_mode) and suffix in (".txt", ".csv", ".parquet"):
        listing, texts = read_list(text, column)
        root = os.path.dirname(os.path.abspath(os.fsencode(text)))
        if all(listing.names.raw(i).lower().endswith(b".tar") for i in range(len(listing.names))):
            found, reader = index_tars(root, listing)
            return Source(reader, found, "tar", text), None
        return Source(Files(root, listing), listing, "list", text), texts
    root = os.fsencode(text)
    if stat.S_ISREG(status.st_mode) and suffix == ".tar":
        shard = Listing(Names.of([os.path.basename(root)]), np.array([status.st_size]), np.array([status.st_mtime_ns]))
        found, reader = index_tars(os.path.dirname(root), shard)
        return Source(reader, found, "tar", text), None
    if not stat.S_ISDIR(status.st_mode):
        raise DataError(
            f"{text!r} is neither a folder nor a .txt, .csv, .parquet or .tar file; "
            "an image is given by its folder or a list"
        )
    found = scan(root)
    if len(found.names) or not found.passed[".tar"]:
        return Source(Files(root, found), found, "folder", text), None
    found, reader = index_tars(root, scan(root, (b".tar",)))
    return Source(reader, found, "tar", text), None


def _from_array(images: np.ndarray, where: str) -> Source:
    images = _as_bytes(images)
    width = len(str(max(0, len(images) - 1)))
    names = Names.of(f"{i:0{width}d}".encode() for i in range(len(images)))
    sizes = np.full(len(images), images[0].nbytes if len(images) else 0)
    # an array has no modification times: a hash of each image's pixels stands in their place
    hashes = [int.from_bytes(hashlib.blake2b(x.tobytes(), digest_size=7).digest(), "little") for x in images]
    return Source(Arrays(images), Listing(names, sizes, np.array(hashes, dtype=np.int64)), "array", where)


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 from an array of other shape or type; one rule for the whole array, nothing is clipped."""
    if images.ndim == 3 and images.shape[2] == 3:
        raise DataError(
            f"an array of shape {images.shape} is one image in color, or {images.shape[0]} that are 3 pixels wide"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        hint = "; move the channels last" if images.ndim == 4 and images.shape[1] in (1, 3) else ""
        raise DataError(f"an array of shape {images.shape} is not (N, H, W), (N, H, W, 1) or (N, H, W, 3){hint}")
    if images.dtype == np.uint8 or not len(images):
        return images.astype(np.uint8, copy=False)
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype == np.uint16:
        return ((images.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(images.min()), float(images.max())
    top = 1.0 if images.dtype.kind == "f" and high <= 1 else 255.0
    if not (low >= 0 and high <= top):  # written so that NaN fails
        raise DataError(f"an array of {images.dtype} with values from {low:g} to {high:g}; scale it to 0..1 or 0..255")
    return np.floor(images * (255.0 / top) + 0.5).astype(np.uint8)


def _builtin(text: str) -> tuple[Source, list[str] | None]:
    if text != "builtin:digits":
        raise DataError(f"{text!r} is not built in; 'builtin:digits' is")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    source = _from_array(np.floor(digits.images * (255 / 16) + 0.5).astype(np.uint8), text)
    source.kind = "builtin"
    return source, [str(label) for label in digits.target]


def _labels(source: Source, labels_from: str, texts: list[str] | None, seed: int) -> tuple[np.ndarray, list[str]]:
    if texts is not None and (labels_from.startswith("column:") or labels_from in ("labels", "folders")):
        return labeling.number(texts)
    if labels_from == "folders" and source.kind != "array":
        return labeling.from_folders(source.ids)
    if labels_from.lower().endswith(".csv"):
        return labeling.from_table(source.ids, labels_from, seed)
    raise LabelsError(
        f"no labels from {labels_from!r} for {source.where} ({source.kind}); "
        "choose folders, column:NAME of a .csv or .parquet list, or a .csv file of id and label"
    )


def _only_classes(source: Source, path: str) -> Source:
    labels, names = _known(source.labels), source.class_names or []
    kept = subsets.read_classes(path, names)
    rows = np.flatnonzero(np.isin(labels, kept))
    smaller = source.take(rows, np.searchsorted(kept, labels[rows]))
    smaller.class_names = [names[k] for k in kept]
    return smaller


def _subset(source: Source, rows: Callable[[], np.ndarray]) -> Source:
    return source.take(rows())


def _known(labels: np.ndarray | None) -> np.ndarray:
    if labels is None:
        raise LabelsError("there are no labels")
    return labels


def _hash(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).astype("<i8").tobytes())
    return digest.hexdigest()


def _nothing_found(source: Source) -> str:
    passed: Counter[str] = source._listing.passed
    others = ", ".join(f"{n} {what}" for what, n in passed.most_common(5)) or "nothing at all"
    return f"no images in {source.where!r}: looked for {', '.join(IMAGE_SUFFIXES)} and .tar, found {others}"


__all__ = ["DataError", "LabelsError", "Source", "open_source", "to_id"]
