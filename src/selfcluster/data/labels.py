"""Labels, only on request: from the folders' names, a column of the list, or a table `id,label`.

L classes. A label is a number 0..L-1, or -1 where an image has none: a cell that is empty or says none, null, nan, na
or n/a means "no label", it is never a class.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain

import numpy as np

from selfcluster import randomness
from selfcluster.data.errors import LabelsError
from selfcluster.data.names import Names, to_id, to_name
from selfcluster.data.readers.rows import read_csv
from selfcluster.files import reason_of

_MISSING = frozenset({"", "none", "null", "nan", "na", "n/a", "<na>"})
_TRUE, _FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "-1", "-1.0", "false", "no"})


def is_missing(text: str) -> bool:
    """Whether a cell of a table means that the image has no label.

    >>> is_missing("NaN"), is_missing("nanny")
    (True, False)
    """
    return text.strip().lower() in _MISSING


def number(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return (N,) int64 numbers of the N texts, -1 for missing ones, and the sorted class names that they index."""
    names = sorted({text for text in texts if not is_missing(text)})
    numbers = {name: i for i, name in enumerate(names)}
    return np.array([numbers.get(text, -1) for text in texts], dtype=np.int64), names


def from_columns(texts: list[str], names: list[str]) -> np.ndarray:
    """Return (N, L) int64 of 0 and 1 from L columns of a list, whose cells are joined by tabs in each text."""
    labels = np.zeros((len(texts), len(names)), dtype=np.int64)
    for i, text in enumerate(texts):
        for k, cell in enumerate(text.split("\t")):
            word = cell.strip().lower()
            if word in _TRUE:
                labels[i, k] = 1
            elif word not in _FALSE and not is_missing(word):
                raise LabelsError(f"column {names[k]!r} holds {cell!r}; labels of several columns are 1 or 0")
    return labels


def from_folders(ids: Names, needed: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """Return the name of the folder that directly holds each image, as numbers and class names.

    `needed`: the images that must have a label, by number; None: all. Others may lie in no folder, and have none (-1).
    """
    # a class is repeated a thousand times: the name is looked up as bytes, and made text once
    numbers: dict[bytes, int] = {}
    labels = np.empty(len(ids), dtype=np.int64)
    loose: list[str] = []
    must = None if needed is None else set(needed.tolist())
    for i in range(len(ids)):
        parent = os.path.basename(os.path.dirname(ids.raw(i)))
        if not parent or parent.lower().endswith(b".tar"):  # the archive itself is no class
            labels[i] = -1
            if must is None or i in must:
                loose.append(ids[i])
            continue
        labels[i] = numbers.setdefault(parent, len(numbers))
    if loose:
        classes = sorted(to_id(name) for name in numbers)
        count = len(ids if must is None else must)
        raise LabelsError(
            f"labels from folders: {len(loose)} of {count} images lie in no folder, e.g. {loose[0]!r}; "
            f"classes found: {_listed(classes)}. Put each class into its own sub-folder, or name a table with "
            "--labels-from FILE.csv"
        )
    order = sorted(numbers)
    rank = np.full(len(order) + 1, -1)  # the last place, which -1 reads, is for images without a label
    rank[[numbers[name] for name in order]] = np.arange(len(order))
    return rank[labels], [to_id(name) for name in order]


def from_table(ids: Names, path: str, seed: int, needed: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """Return the labels of a .csv with the columns `id` (or `path`) and `label`, or with these as first two columns.

    Every image needs a row, or each of the `needed` numbers where these are given; an empty label there leaves it
    without one. Ids match as they are, without the image's suffix, and, where the table names no folders and no two
    images share a name, without the image's folder. Of an image that has several rows, and so several tags, one is
    drawn by `seed` (ClusterFit, Yan et al. 2020).
    """
    table = _Table(path, ids)
    tags = [table.of(i) for i in range(len(ids))]
    must = range(len(ids)) if needed is None else needed.tolist()
    if without := [i for i in must if tags[i] is None]:
        raise table.unmatched(without, len(must))
    labels = [found[0] if found else "" for found in tags]
    several = np.array([i for i, found in enumerate(tags) if found and len(found) > 1], dtype=np.int64)
    for i, u in zip(several.tolist(), randomness.draw(seed, "tag", 0, several, 0, 1)[:, 0].tolist(), strict=True):
        found = tags[i] or [""]
        labels[i] = found[int(u * len(found))]
    return number(labels)


def tags_from_table(ids: Names, path: str) -> tuple[np.ndarray, list[str]]:
    """Return (N, L) int64 of 0 and 1 and the L tags of a table `id,label`: each row gives its image one more tag.

    A cell may hold several tags, as `sea;sun`. An image without a row has no tag.
    """
    table = _Table(path, ids)
    for key, cells in table.tags.items():
        table.tags[key] = [tag.strip() for cell in cells for tag in cell.split(";")]
    names = sorted({tag for found in table.tags.values() for tag in found if not is_missing(tag)})
    numbers = {name: k for k, name in enumerate(names)}
    labels = np.zeros((len(ids), len(names)), dtype=np.int64)
    without: list[int] = []
    for i in range(len(ids)):
        found = table.of(i)
        if found is None:
            without.append(i)
        labels[i, [numbers[tag] for tag in found or () if tag in numbers]] = 1
    if len(without) == len(ids):
        raise table.unmatched(without)
    return labels, names


class _Table:
    """A table `id,label` beside the ids of a set of images."""

    def __init__(self, path: str, ids: Names) -> None:
        self.path, self.ids = path, ids
        self.tags = _read_table(path)
        # an id without a folder may mean an image in any folder, if only one has that name
        names = {os.path.basename(ids.raw(i)) for i in range(len(ids))}
        self._bare = len(names) == len(ids) and not any(b"/" in key for key in self.tags)

    def of(self, i: int) -> list[str] | None:
        """The different tags of image i, in the order of the table's rows; None where it has no row."""
        name = self.ids.raw(i)
        names = (name, os.path.basename(name)) if self._bare else (name,)
        for key in (*names, *(os.path.splitext(name)[0] for name in names)):
            if key in self.tags:
                return self.tags[key]
        return None

    def unmatched(self, without: list[int], of: int | None = None) -> LabelsError:
        """The error for images without a row, among `of` images; None: all."""
        classes = sorted({tag for found in self.tags.values() for tag in found})
        hint = "give these images a row with an empty label, or leave them out of the data"
        if len(without) == len(self.ids):
            example = next((to_id(name) for name in self.tags), "none")
            hint = (
                f"ids in the table look like {example!r}, but ids of the images look like {self.ids[without[0]]!r}; "
                "use the path inside the data folder, with or without the suffix"
            )
        return LabelsError(
            f"{self.path} has no label for {len(without)} of {of or len(self.ids)} images, "
            f"e.g. {self.ids[without[0]]!r}; classes found: {_listed(classes)}; {hint}"
        )


def _read_table(path: str) -> dict[bytes, list[str]]:
    """The different tags of each id of the table, in the order of its rows."""
    tags: dict[bytes, list[str]] = {}
    try:
        rows = read_csv(path)
        header = next(rows, [])
        if len(header) < 2:
            raise LabelsError(f"{path} needs two columns, id and label; it has {header}")
        value = header.index("label") if "label" in header else 1
        key = next((header.index(name) for name in ("id", "path") if name in header), 0 if value else 1)
        headed = "label" in header or "id" in header or "path" in header
        for row in rows if headed else chain([header], rows):
            if len(row) > max(key, value):
                of_image = tags.setdefault(to_name(row[key]), [])
                if row[value] not in of_image:
                    of_image.append(row[value])
    except OSError as error:
        raise LabelsError(f"labels from {path}: {reason_of(error)}") from error
    return tags


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return "none"
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
