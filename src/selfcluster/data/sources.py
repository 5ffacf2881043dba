"""Where images come from: a folder, a list of paths, tars, an array, the built-in digits, or a registered reader.

A `Source` has N ids in bytewise order, and reads image i: bytes of a file, or an (H, W, C) uint8 array. This module
does not import torch, so that an empty folder is refused before anybody waits for it.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfcluster.data import changes, store, subsets
from selfcluster.data import labels as labeling
from selfcluster.data.budget import MAX_PIXELS
from selfcluster.data.errors import DataError, LabelsError
from selfcluster.data.kinds import HEADER_BYTES, recognize
from selfcluster.data.listing import IMAGE_SUFFIXES, Listing
from selfcluster.data.names import Names, to_id
from selfcluster.data.ranges import ValueRange
from selfcluster.data.readers.arrays import open_array, open_digits
from selfcluster.data.readers.base import Opened, Reader, find_opener
from selfcluster.data.readers.files import Files, scan
from selfcluster.data.readers.rows import LIST_SUFFIXES, read_list
from selfcluster.data.readers.tars import index_tars
from selfcluster.data.readers.voc import is_split, labels_of, open_split
from selfcluster.data.store import Info, ReadLog
from selfcluster.data.threads import TIMEOUT, in_time
from selfcluster.files import reason_of

_PACKED_SUFFIXES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


class Source:
    """N images with their ids; made by `open_source`.

    Attributes:
        ids: N texts, bytewise sorted (see `names.py`).
        labels: (N,) int64, -1 where an image has none; or (N, L) several labels per image, of 1, 0 and -1 (does not
            count); or None.
        class_names: the names that `labels` index, or None.
        skipped: (id, reason) of files that were found and are no regular images; at most 1,000 are named.
        fingerprint: changes when an image is added, removed, edited or dated anew.
        log: retries and changed files met while reading.
        max_pixels: most pixels of an image, as decoded.
        timeout: seconds that one read outside the loader may take.
        value_range: of the images deeper than 8 bits; None until it is set or measured (`images.range_of`).
    """

    def __init__(
        self,
        reader: Reader,
        listing: Listing,
        kind: str,
        where: str,
        labels: np.ndarray | None = None,
        class_names: list[str] | None = None,
        subset: dict[str, object] | None = None,
    ) -> None:
        self._reader, self._listing = reader, listing
        self.kind, self.where = kind, where
        self.ids = listing.names
        self.labels, self.class_names = labels, class_names
        self.skipped, self.passed = listing.skipped, listing.passed
        self.subset = subset or {}
        self.log = ReadLog()
        self.max_pixels = MAX_PIXELS
        self.value_range: ValueRange | None = None
        self.is_range_known = False
        self.range_lock = threading.Lock()
        self.timeout: float | None = TIMEOUT
        self._summary: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def root(self) -> str | None:
        """The absolute location of the folder that the ids begin at; None where images are no files."""
        root = getattr(self._reader, "root", None)
        return None if root is None else to_id(store.absolute(root))

    @property
    def location(self) -> str:
        """What to open to get the same data again, from any current folder."""
        if self.kind in ("array", "builtin"):
            return self.where
        return os.fsdecode(store.absolute(os.fsencode(self.where)))

    def set_range(self, value_range: ValueRange | None) -> None:
        """Fix the range of the images deeper than 8 bits, such as that of the run that the images are for."""
        self.value_range, self.is_range_known = value_range, True

    def read(self, i: int) -> bytes | np.ndarray:
        """Image i: the bytes of its file, or (H, W, C) uint8 pixels.

        Raises:
            BadImage: vanished, not_regular, no_permission, read_error, truncated, too_large.
        """
        return self._reader.read(i, self.log)

    def read_in_time(self, i: int) -> bytes | np.ndarray:
        """Image i as `read` returns it; for reads outside the loader's threads, which have their own timeout.

        Raises:
            BadImage: as `read`.
            ReadTimeout: it takes longer than the timeout.
        """
        return in_time(lambda: self.read(i), self.ids[i], self.timeout)

    def storage_order(self) -> np.ndarray:
        """(N,) the rows in the order in which reading is fastest."""
        return self._reader.storage_order()

    @property
    def fingerprint(self) -> str:
        """A hash over ids, sizes and modification times (over the pixels for an array)."""
        return self.summary()["fingerprint"]

    def summary(self) -> dict[str, Any]:
        """What a later run needs to tell whether the data has changed: see `changes.py`."""
        if self._summary is None:
            self._summary = changes.summarize(self._listing, self.read_in_time, self.kind in ("array", "builtin"))
        return dict(self._summary)

    def difference(self, earlier: dict[str, object]) -> str:
        """In words, what has changed since the summary `earlier` was taken; empty where nothing has."""
        return changes.difference(self.summary(), earlier)

    def describe(self) -> dict[str, object]:
        """What was read and how, for `config.yaml` and the console."""
        described: dict[str, Any] = {"kind": self.kind, "data": self.where, "images": len(self)}
        if self.class_names is not None:
            described["classes"] = len(self.class_names)
            described["class_names"] = changes.hashed(
                *(f"{name}\n".encode("utf-8", "surrogateescape") for name in self.class_names)
            )
        if self.passed:
            described["passed_over"] = dict(sorted(self.passed.items()))
        return described | self.subset

    def take(self, rows: np.ndarray, labels: np.ndarray | None = None) -> Source:
        """The subset at the sorted `rows`, with other `labels` if given."""
        listing = self._listing.take(rows)
        if labels is None and self.labels is not None:
            labels = self.labels[rows]
        subset = Source(self._reader.take(rows), listing, self.kind, self.where, labels, self.class_names, self.subset)
        subset.max_pixels, subset.timeout = self.max_pixels, self.timeout
        if self.is_range_known:
            subset.set_range(self.value_range)
        return subset


def open_source(
    data: str | os.PathLike[str] | np.ndarray,
    *,
    labels_from: str | None = None,
    limit: int | None = None,
    classes: str | os.PathLike[str] | None = None,
    long_tail: float | None = None,
    label_noise: float | None = None,
    seed: int = 0,
    range: Sequence[float] | None = None,
    max_megapixels: float | None = None,
    timeout: float | None = TIMEOUT,
) -> Source:
    """Open a set of images.

    Args:
        data: a folder (searched to any depth); a .txt/.csv/.parquet list of paths; a .tar or a folder of them; a split
            of PASCAL VOC (ImageSets/Main/trainval.txt); an array (N, H, W) or (N, H, W, C); or "builtin:digits".
            Folders and files may be addresses that fsspec reads, such as "s3://bucket/photos".
        labels_from: the source of the labels; None: no labels. One of
            - "folders": the name of the folder that holds the image;
            - "column:NAME": this column of the list;
            - "columns:A,B,C": these columns of the list, 1 or 0 each, so an image can have several labels;
            - a .csv of id and label; if an image has several rows, `seed` draws one;
            - "tags:FILE.csv": the same file, but all rows of an image count, and a cell may hold several tags
              (`sea;sun`);
            - "voc": the objects in PASCAL VOC's Annotations/, several labels per image;
            - "labels": the labels of the built-in digits.
        limit: keep this many images, drawn by `seed`.
        classes: a file of class names, one per line; keep only images of these classes. Needs labels.
        long_tail: make a long-tailed subset with this ratio of the largest to the smallest class. Needs labels.
        label_noise: share of labels to make wrong. Needs labels.
        seed: seed of the subset, the noise and the drawn tags.
        range: (LOW, HIGH), the values that become 0 and 255 in images deeper than 8 bits; None measures them in a
            sample (see `ranges.py`).
        max_megapixels: maximum size of an image in millions of pixels; default 64.
        timeout: maximum seconds for one read of an image outside training.

    Returns:
        the images in bytewise order of their ids.

    Raises:
        DataError: no such data, no image in it, or a damaged tar.
        LabelsError: labels that do not exist; the message lists the classes found.

    >>> open_source(np.zeros((20, 8, 8), np.uint8)).ids[3]
    '03'
    """
    source, texts = _open(data, labels_from, ValueRange.of(range))
    source.timeout = timeout
    if max_megapixels is not None:
        source.max_pixels = int(max_megapixels * 1e6)
    if range is not None:
        source.set_range(ValueRange.of(range))
    if not len(source):
        raise DataError(_nothing_found(source))
    if labels_from is not None:
        # only the images that the run uses must have a label; classes and long tails choose by the labels of all
        chooses = limit is not None and classes is None and long_tail is None
        needed = subsets.limited(len(source), limit, seed) if chooses and limit is not None else None
        source.labels, source.class_names = _labels(source, labels_from, texts, seed, needed)
    requested = {"classes": classes, "long_tail": long_tail, "label_noise": label_noise}
    requested = {name: value for name, value in requested.items() if value is not None}
    if requested:
        _check_single(source, next(iter(requested)))
    if classes is not None:
        source = _only_classes(source, os.fspath(classes))
    if long_tail is not None:
        source = source.take(subsets.long_tailed(_known(source.labels), long_tail, seed))
    if limit is not None:
        source = source.take(subsets.limited(len(source), limit, seed))
    if label_noise is not None:
        names = source.class_names or []
        source.labels = subsets.noisy(_known(source.labels), len(names), label_noise, seed)
    if limit is not None or requested:
        chosen = {"limit": limit} if limit is not None else {}
        source.subset = {
            **chosen,
            **{k: str(v) if k == "classes" else v for k, v in requested.items()},
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


def _open(
    data: str | os.PathLike[str] | np.ndarray, labels_from: str | None, value_range: ValueRange | None
) -> tuple[Source, list[str] | None]:
    if isinstance(data, np.ndarray):
        return _source(open_array(data, value_range=value_range), "array")
    if isinstance(data, list | tuple):
        raise DataError(
            f"data is a {type(data).__name__}: write the paths into a .txt file, one per line, and pass that file"
        )
    text = os.fspath(data)
    if text == "array" and not os.path.exists(text):
        raise DataError(
            "the run was made from an array, and a run does not store arrays: pass the array again as `data`"
        )
    if text.startswith("builtin:"):
        if text != "builtin:digits":
            raise DataError(f"{text!r} is not a built-in set; the only one is 'builtin:digits'")
        return _source(open_digits(), text)
    kind, _, name = (labels_from or "").partition(":")
    column = name if kind in ("column", "columns") else None
    opener = find_opener(text)
    if opener is not None:
        return _source(opener.open(text, column), text)
    location = os.fsencode(text)
    try:
        info, is_folder, is_file = store.info(location)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"no data at {text!r}: {reason_of(error)}") from error
    if is_file:
        return _source(_open_file(text, info, column), text)
    if not is_folder:
        raise DataError(f"{text!r} is neither a file nor a folder")
    listing = scan(location, each_place=labels_from == "folders")
    if len(listing.names) or not listing.passed[".tar"]:
        return _source(Opened(Files(location, listing), listing, "folder"), text)
    listing, reader = index_tars(location, scan(location, (b".tar",)))
    return _source(Opened(reader, listing, "tar"), text)


def _open_file(text: str, info: Info, column: str | None) -> Opened:
    """A list of images, or a tar; anything else is refused with what to do about it."""
    location = os.fsencode(text)
    suffix = Path(text).suffix.lower()
    if is_split(text):
        return open_split(text)
    if suffix in LIST_SUFFIXES:
        listing, texts = read_list(text, column)
        root = store.parent(store.absolute(location))
        if all(listing.names.raw(i).lower().endswith(b".tar") for i in range(len(listing.names))):
            found, reader = index_tars(root, listing)
            return Opened(reader, found, "tar")
        return Opened(Files(root, listing), listing, "list", texts)
    if suffix == ".tar":
        name = location.rpartition(b"/")[2]
        shard = Listing(Names.of([name]), np.array([info.size]), np.array([info.mtime_ns]))
        found, reader = index_tars(store.parent(location), shard)
        return Opened(reader, found, "tar")
    with store.open_file(location) as file:
        kind = recognize(file.read(HEADER_BYTES))
    what = f" ({kind.name}: {kind.advice})" if kind.advice else ""
    raise DataError(
        f"{text!r} is neither a folder nor a .txt, .csv, .parquet or .tar file{what}; "
        "to use one image, give its folder or a list"
    )


def _source(opened: Opened, where: str) -> tuple[Source, list[str] | None]:
    return Source(opened.reader, opened.listing, opened.kind, where), opened.texts


def _labels(
    source: Source, labels_from: str, texts: list[str] | None, seed: int, needed: np.ndarray | None = None
) -> tuple[np.ndarray, list[str]]:
    if texts is not None and labels_from.startswith("columns:"):
        names = labels_from.removeprefix("columns:").split(",")
        return labeling.from_columns(texts, names), names
    if texts is not None and (labels_from.startswith("column:") or labels_from in ("labels", "folders")):
        labels, names = labeling.number(texts)
    elif labels_from == "voc" or (labels_from == "folders" and source.kind == "voc"):
        return labels_of(source.ids, source.root)
    elif labels_from == "folders" and source.kind != "array":
        labels, names = labeling.from_folders(source.ids, needed)
    elif labels_from.startswith("tags:"):
        return labeling.tags_from_table(source.ids, labels_from.removeprefix("tags:"))
    elif labels_from.lower().endswith(".csv"):
        labels, names = labeling.from_table(source.ids, labels_from, seed, needed)
    else:
        raise LabelsError(
            f"cannot read labels from {labels_from!r} for {source.where} ({source.kind}); choose folders, voc, "
            "column:NAME or columns:A,B of a .csv or .parquet list, tags:FILE.csv, or a .csv file with the columns id "
            "and label"
        )
    if not names:
        raise LabelsError(f"labels from {labels_from}: every label is missing (empty, none, null or nan)")
    return labels, names


def _check_single(source: Source, option: str) -> None:
    """Raise LabelsError unless every image has at most one label."""
    if source.labels is None:
        raise LabelsError(f"{option} needs labels; name their source with labels_from (--labels-from)")
    if source.labels.ndim != 1:
        raise LabelsError(f"{option} needs one label per image; these images have several")


def _only_classes(source: Source, path: str) -> Source:
    labels, names = _known(source.labels), source.class_names or []
    kept = subsets.read_classes(path, names)
    rows = np.flatnonzero(np.isin(labels, kept))
    smaller = source.take(rows, np.searchsorted(kept, labels[rows]))
    smaller.class_names = [names[k] for k in kept]
    return smaller


def _known(labels: np.ndarray | None) -> np.ndarray:
    if labels is None:
        raise LabelsError("the images have no labels")
    return labels


def _nothing_found(source: Source) -> str:
    passed: Counter[str] = source.passed
    others = ", ".join(f"{n} {what}" for what, n in passed.most_common(5)) or "no file"
    packed = [suffix for suffix in passed if suffix in _PACKED_SUFFIXES]
    hint = f"; unpack the {' and '.join(packed)} files into the folder first" if packed else ""
    return f"no images in {source.where!r}: looked for {', '.join(IMAGE_SUFFIXES)} and .tar, found {others}{hint}"


__all__ = ["DataError", "LabelsError", "Source", "open_source", "to_id"]
