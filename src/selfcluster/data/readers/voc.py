"""Data sets in the layout of PASCAL VOC: JPEGImages/, Annotations/ID.xml, and ImageSets/Main/SPLIT.txt.

Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", sections 2 and 4. A split file names an
image a line, without suffix. A class's own split file (`cat_train.txt`) has the class's flag in a second column, which
is not read: the labels come from the objects in Annotations/. The layout is recognized in local folders.

N images, L classes.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from selfcluster.data import store
from selfcluster.data.errors import DataError, LabelsError
from selfcluster.data.listing import IMAGE_SUFFIXES, Listing
from selfcluster.data.names import Names, to_name
from selfcluster.data.readers.base import Opened
from selfcluster.data.readers.files import Files
from selfcluster.data.readers.rows import read_text
from selfcluster.files import reason_of

ABSENT, PRESENT, DIFFICULT = 0, 1, -1
_IMAGES, _ANNOTATIONS, _SPLITS = "JPEGImages", "Annotations", "ImageSets"


def is_split(path: str) -> bool:
    """Return whether a .txt file is a split of a data set in VOC's layout.

    >>> is_split("ImageSets/Main/nowhere.txt")
    False
    """
    if not path.lower().endswith(".txt") or store.is_remote(os.fsencode(path)):
        return False
    file = Path(path).absolute()
    root = file.parent.parent.parent
    return file.parent.parent.name == _SPLITS and (root / _IMAGES).is_dir() and (root / _ANNOTATIONS).is_dir()


def open_split(path: str) -> Opened:
    """Return the images that a split file names; their ids are `JPEGImages/NAME.jpg`.

    Raises:
        DataError: the file names an image twice, or one that is not in JPEGImages/.
    """
    root = Path(path).absolute().parent.parent.parent
    files = {Path(name).stem: name for name in sorted(os.listdir(root / _IMAGES)) if _is_image(name)}
    rows = [line.split() for line in read_text(path).splitlines()]
    names = [row[0] for row in rows if row]
    missing = [name for name in names if name not in files]
    if missing:
        raise DataError(f"{path}: {len(missing)} of {len(names)} images are not in {_IMAGES}/, e.g. {missing[0]!r}")
    if len(set(names)) < len(names):
        raise DataError(f"{path} names {len(names)} images, but only {len(set(names))} different ones; list each once")
    ids = sorted(to_name(f"{_IMAGES}/{files[name]}") for name in names)
    folder = os.fsencode(root)
    found = [store.info(store.join(folder, name))[0] for name in ids]
    sizes, times = (np.array([part[k] for part in found], dtype=np.int64) for k in (0, 1))
    listing = Listing(Names.of(ids), sizes, times)
    return Opened(Files(folder, listing), listing, "voc")


def labels_of(ids: Names, root: str | None) -> tuple[np.ndarray, list[str]]:
    """Return (N, L) int64 labels of the images, and the class names in the order of the alphabet.

    1: the image shows an object of the class. 0: it shows none. -1: all its objects of the class are marked
    `difficult`; VOC does not count such an image when it scores the class.

    Args:
        ids: paths of the images below `root`.
        root: the folder that holds Annotations/, or its JPEGImages/.

    Raises:
        LabelsError: no Annotations/, an image without its file there, or a file that cannot be read.
    """
    places = [] if root is None else [Path(root), Path(root).parent]
    folder = next((place / _ANNOTATIONS for place in places if (place / _ANNOTATIONS).is_dir()), None)
    if folder is None:
        raise LabelsError(f"labels from voc: there is no folder {_ANNOTATIONS} in {root} or beside it")
    objects = [_objects(folder / f"{Path(name).stem}.xml", name) for name in ids]
    names = sorted({name for found in objects for name in found})
    if not names:
        raise LabelsError(f"labels from voc: none of the {len(ids)} images has an object in {folder}")
    labels = np.array([[found.get(name, ABSENT) for name in names] for found in objects], dtype=np.int64)
    return labels, names


def _objects(file: Path, image: str) -> dict[str, int]:
    """The classes of the objects in an annotation, each PRESENT or DIFFICULT."""
    try:
        tree = ElementTree.parse(file)
    except FileNotFoundError as error:
        raise LabelsError(f"labels from voc: {image} has no annotation; expected the file {file}") from error
    except (OSError, ElementTree.ParseError) as error:
        raise LabelsError(f"labels from voc: {file} cannot be read ({reason_of(error)})") from error
    found: dict[str, int] = {}
    for item in tree.iter("object"):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise LabelsError(f"labels from voc: {file} has an object without a name")
        is_difficult = (item.findtext("difficult") or "0").strip() == "1"
        if not is_difficult or name not in found:
            found[name] = DIFFICULT if is_difficult else PRESENT
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
