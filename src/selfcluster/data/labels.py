"""Labels, only ever on request: from the folders' names, a column of the list, or a table `id,label`."""

from __future__ import annotations

import csv
import os
from itertools import chain

import numpy as np

from selfcluster import randomness
from selfcluster.data.files import DataError
from selfcluster.data.names import Names, to_id, to_name


class LabelsError(DataError):
    """Labels that were asked for and cannot be had; the message names the classes that were found."""


def number(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """(N,) int64 numbers of the N texts, and the class names in sorted order that they index."""
    names = sorted(set(texts))
    numbers = {name: i for i, name in enumerate(names)}
    return np.array([numbers[text] for text in texts], dtype=np.int64), names


def from_folders(ids: Names) -> tuple[np.ndarray, list[str]]:
    """The name of the folder that directly holds each image."""
    # a class is repeated a thousand times: the name is looked up as bytes, and made text once
    numbers: dict[bytes, int] = {}
    labels = np.empty(len(ids), dtype=np.int64)
    loose: list[str] = []
    for i in range(len(ids)):
        parent = os.path.basename(os.path.dirname(ids.raw(i)))
        if not parent or parent.lower().endswith(b".tar"):  # the archive itself is no class
            loose.append(ids[i])
            continue
        labels[i] = numbers.setdefault(parent, len(numbers))
    if loose:
        found = sorted(to_id(name) for name in numbers)
        raise LabelsError(
            f"labels from folders: {len(loose)} of {len(ids)} images lie in no folder, e.g. {loose[0]!r}; "
            f"classes found: {_listed(found)}"
        )
    order = sorted(numbers)
    rank = np.empty(len(order), dtype=np.int64)
    rank[[numbers[name] for name in order]] = np.arange(len(order))
    return rank[labels], [to_id(name) for name in order]


def from_table(ids: Names, path: str, seed: int) -> tuple[np.ndarray, list[str]]:
    """A .csv with the columns `id` (or `path`) and `label`, or its first two columns; every image needs a row.

    Of an image that has several rows, and so several tags, one is drawn by `seed` (ClusterFit, Yan et al. 2020).
    """
    table: dict[bytes, str] = {}
    several: dict[bytes, list[str]] = {}

    def add(name: bytes, label: str) -> None:
        if table.setdefault(name, label) != label and label not in (tags := several.setdefault(name, [table[name]])):
            tags.append(label)

    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if len(header) < 2:
                raise LabelsError(f"{path} needs two columns, id and label; it has {header}")
            value = header.index("label") if "label" in header else 1
            key = next((header.index(name) for name in ("id", "path") if name in header), 0 if value else 1)
            headed = "label" in header or "id" in header or "path" in header
            for row in rows if headed else chain([header], rows):
                if len(row) > max(key, value):
                    add(to_name(row[key]), row[value])
    except OSError as error:
        raise LabelsError(f"labels from {path}: {error.strerror}") from error
    missing = [i for i in range(len(ids)) if ids.raw(i) not in table]
    if missing:
        raise LabelsError(
            f"{path} has no label for {len(missing)} of {len(ids)} images, e.g. {ids[missing[0]]!r}; "
            f"classes found: {_listed(sorted(set(table.values())))}"
        )
    labels = [table[ids.raw(i)] for i in range(len(ids))]
    if several:
        rows = np.array([i for i in range(len(ids)) if ids.raw(i) in several], dtype=np.int64)
        for i, u in zip(rows.tolist(), randomness.draw(seed, "tag", 0, rows, 0, 1)[:, 0].tolist(), strict=True):
            tags = several[ids.raw(i)]
            labels[i] = tags[int(u * len(tags))]
    return number(labels)


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
