"""PASCAL VOC's layout: labels by hand, difficult objects, splits, and what is refused; and tags joined in one cell."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcluster.data.errors import DataError, LabelsError
from selfcluster.data.sources import open_source

CELLS = Path(os.environ.get("SELFCLUSTER_DATA", "data")) / "cells-voc"


def labeled(data, labels_from="voc") -> Any:
    return open_source(data, labels_from=labels_from)


def objects(*pairs):
    """An annotation: each pair is a class and what stands in `difficult`, None for no such element."""
    marks = [(name, "" if mark is None else f"<difficult>{mark}</difficult>") for name, mark in pairs]
    parts = "".join(f"<object><name>{name}</name>{mark}</object>" for name, mark in marks)
    return f"<annotation><filename>x.jpg</filename>{parts}</annotation>"


@pytest.fixture
def voc(tmp_path):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    annotations = {
        "1": objects(("dog", 0), ("cat", 1)),  # the only cat is difficult
        "2": objects(("cat", 1), ("cat", 0), ("cat", 1)),  # one easy cat is enough
        "3": objects(),
        "4": objects(("sheep", None)),
    }
    for name, text in annotations.items():
        (tmp_path / f"JPEGImages/{name}.jpg").write_bytes(b"\xff\xd8\xff" + name.encode())
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
    (tmp_path / "ImageSets/Main/train.txt").write_text("3\n1\n2\n")
    (tmp_path / "ImageSets/Main/cat_train.txt").write_text("1  0\n2  1\n3 -1\n")
    return tmp_path


def test_labels_of_a_split_by_hand(voc):
    source = labeled(voc / "ImageSets/Main/train.txt")
    assert source.ids[:] == ["JPEGImages/1.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg"]
    assert source.class_names == ["cat", "dog"]  # the sheep is in no image of this split
    assert source.labels.tolist() == [[-1, 1], [1, 0], [0, 0]]
    assert source.read(1) == b"\xff\xd8\xff2"
    assert source.take(np.array([0, 2])).labels.tolist() == [[-1, 1], [0, 0]]
    # JPEGImages is no class: the usual labels of a split are its objects
    assert labeled(voc / "ImageSets/Main/train.txt", "folders").labels.tolist() == source.labels.tolist()
    # the second column of a class's split is no part of a name
    assert open_source(voc / "ImageSets/Main/cat_train.txt").ids[:] == source.ids[:]


@pytest.mark.parametrize("folder", ["", "JPEGImages"])
def test_labels_of_the_whole_folder(voc, folder):
    source = labeled(voc / folder)
    assert source.class_names == ["cat", "dog", "sheep"]
    assert source.labels.tolist() == [[-1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_what_is_refused(voc):
    split = voc / "ImageSets/Main/train.txt"
    split.write_text("1\n7\n")
    with pytest.raises(DataError, match=r"1 of 2 images are not in JPEGImages/, e.g. '7'"):
        open_source(split)
    split.write_text("1\n1\n")
    with pytest.raises(DataError, match="names 2 images, but only 1 different"):
        open_source(split)
    split.write_text("\n")
    with pytest.raises(DataError, match="no images"):
        open_source(split)
    split.write_text("1\n3\n")
    (voc / "Annotations/1.xml").write_text("<annotation><object>")
    with pytest.raises(LabelsError, match=r"1\.xml cannot be read"):
        open_source(split, labels_from="voc")
    (voc / "Annotations/1.xml").write_text(objects(("", 0)))
    with pytest.raises(LabelsError, match="an object without a name"):
        open_source(split, labels_from="voc")
    (voc / "Annotations/1.xml").unlink()
    with pytest.raises(LabelsError, match=r"JPEGImages/1\.jpg has no annotation"):
        open_source(split, labels_from="voc")
    split.write_text("3\n")
    with pytest.raises(LabelsError, match="none of the 1 images has an object"):
        open_source(split, labels_from="voc")
    with pytest.raises(LabelsError, match="no folder Annotations"):
        open_source(np.zeros((3, 8, 8), np.uint8), labels_from="voc")


def test_a_cell_may_hold_several_tags(voc):
    (voc / "tags.csv").write_text("id,label\n1.jpg,sea; sun\n2.jpg,sun\n2.jpg,snow;sun\n3.jpg,\n")
    source = labeled(voc / "JPEGImages", f"tags:{voc}/tags.csv")
    assert source.class_names == ["sea", "snow", "sun"]
    assert source.labels.tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.skipif(not CELLS.is_dir(), reason="SELFCLUSTER_DATA names no folder with cells-voc")
def test_real_cells():
    source = labeled(CELLS / "ImageSets/Main/trainval.txt")
    assert (len(source), source.class_names) == (292, ["Platelets", "RBC", "WBC"])
    whole = labeled(CELLS)
    texts = [(CELLS / f"Annotations/{Path(name).stem}.xml").read_text() for name in whole.ids]
    counts = [sum(f"<name>{name}</name>" in text for text in texts) for name in whole.class_names]
    assert (len(whole), whole.labels.sum(axis=0).tolist()) == (364, counts)
