"""Sources: refusals within a second, arrays, digits, labels, and whether the data has changed (faults 13 and 17)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from selfcluster.data.images import describe_images
from selfcluster.data.sources import DataError, LabelsError, check_enough, open_source

# row 13


def test_row_13_an_empty_folder_is_refused_in_a_second_without_torch(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    program = (
        "import sys\n"
        "from selfcluster.data.sources import open_source, DataError\n"
        "import selfcluster.data.images, selfcluster.data.subsets\n"
        "try:\n    open_source(sys.argv[1])\nexcept DataError as error:\n    print(error)\n"
        "print('torch' in sys.modules)\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    taken = time.perf_counter() - start
    message, torch_came = done.stdout.splitlines()
    assert f"no images in {str(tmp_path)!r}" in message
    assert ".jpg" in message
    assert "1 .txt" in message
    assert torch_came == "False"
    assert taken < 3  # under 0.5 s alone; the machine that tests may be busy


def test_row_13_too_few_images_for_a_batch_are_named_with_both_numbers():
    with pytest.raises(DataError, match="5 images are fewer than one batch of 256; use --batch-size 5 or less"):
        check_enough(5, 256)
    check_enough(256, 256)


def test_row_13_one_image_is_data(tmp_path, encode):
    (tmp_path / "only.png").write_bytes(encode(np.zeros((9, 9), np.uint8)))
    assert len(open_source(tmp_path)) == 1
    assert describe_images(open_source(tmp_path))["side"] == [9, 9, 9]


@pytest.mark.parametrize("data", ["/nowhere/at/all", "/dev/zero", "builtin:letters"])
def test_row_13_data_that_is_none_is_named(data):
    with pytest.raises(DataError, match=data):
        open_source(data)


# arrays


def test_an_array_of_bytes_is_its_own_pixels_in_order():
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 9, 3), dtype=np.uint8)
    source = open_source(images)
    assert source.ids[:] == [f"{i:02d}" for i in range(11)]
    for i in range(11):
        np.testing.assert_array_equal(source.read(i), images[i])
    assert open_source(images[..., 0]).read(0).shape == (8, 9, 1)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 0.5, 1], np.float32, [0, 128, 255]),
        ([0, 127.5, 255], np.float64, [0, 128, 255]),
        ([0, 32_768, 65_535], np.uint16, [0, 128, 255]),
        ([0, 1, 255], np.int64, [0, 1, 255]),
        ([0, 0, 1], np.bool_, [0, 0, 255]),
    ],
)
def test_other_numbers_become_bytes_by_one_rule_for_the_whole_array(values, dtype, expected):
    images = np.array(values, dtype).reshape(3, 1, 1) * np.ones((1, 2, 2), dtype)
    assert [int(open_source(images).read(i)[0, 0, 0]) for i in range(3)] == expected


def test_an_array_may_be_given_with_the_range_of_its_values():
    images = (250 + 80 * np.linspace(0, 1, 3 * 64)).reshape(3, 8, 8)
    source = open_source(images, range=(250, 330))
    assert source.read(0)[0, 0, 0] == 0
    assert source.read(2)[7, 7, 0] == 255
    with pytest.raises(DataError, match="1 values are NaN"):
        open_source(np.where(images == 250, np.nan, images), range=(250, 330))
    assert open_source(images.astype(np.int16)[..., None], range=(0, 1000)).read(2).max() == round(330 * 0.255)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 4, 4), 300.0), "values from 300 to 300; scale it"),
        (np.full((2, 4, 4), -0.1), "values from -0.1"),
        (np.full((2, 4, 4), np.nan), "values from nan"),
        (np.zeros((2, 3, 8, 8), np.uint8), "move the channels last"),
        (np.zeros((4, 4), np.uint8), "is not"),
        (np.zeros((0, 4, 4), np.uint8), "no images"),
    ],
)
def test_an_array_without_a_rule_is_refused(images, message):
    with pytest.raises(DataError, match=message):
        open_source(images)


def test_the_digits_use_the_whole_range_and_keep_their_labels_to_themselves():
    source = open_source("builtin:digits")
    assert len(source) == 1797
    assert source.labels is None
    pixels = np.stack([source.read(i) for i in range(1797)])
    assert pixels.shape == (1797, 8, 8, 1)
    assert (pixels.min(), pixels.max()) == (0, 255)
    labeled = open_source("builtin:digits", labels_from="labels")
    assert labeled.class_names == list("0123456789")
    assert np.bincount(labeled.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


# labels


def folder(tmp_path, *names):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_labels_from_folders_are_the_direct_parents_names(tmp_path):
    folder(tmp_path, "train/dog/1.jpg", "train/cat/1.jpg", "test/cat/2.jpg")
    source = open_source(tmp_path, labels_from="folders")
    assert source.ids[:] == ["test/cat/2.jpg", "train/cat/1.jpg", "train/dog/1.jpg"]
    assert source.labels.tolist() == [0, 0, 1]
    assert source.class_names == ["cat", "dog"]


def test_labels_from_a_table_are_matched_by_id(tmp_path):
    folder(tmp_path, "b.jpg", "a.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("label,id\nx,a.jpg\ny,b.jpg\nz,absent.jpg\n")
    source = open_source(tmp_path, labels_from=str(table))
    assert [source.class_names[k] for k in source.labels] == ["x", "y"]
    table.write_text("label,image\nx,a.jpg\ny,b.jpg\n")
    source = open_source(tmp_path, labels_from=str(table))
    assert [source.class_names[k] for k in source.labels] == ["x", "y"]
    table.write_text("a.jpg,x\nc.jpg,y\n")  # no header
    with pytest.raises(LabelsError, match=r"no label for 1 of 2 images, e\.g\. 'b\.jpg'; classes found: x, y"):
        open_source(tmp_path, labels_from=str(table))


def test_of_several_tags_one_is_drawn_by_the_seed_each_as_likely(tmp_path):
    names = [f"{i:03}.jpg" for i in range(300)]
    folder(tmp_path, *names)
    table = tmp_path / "labels.csv"
    tags = "".join(f"{name},sea\n{name},sand\n{name},sun\n{name},sea\n" for name in names[1:])
    table.write_text(f"id,label\n000.jpg,snow\n{tags}")

    def drawn(seed: int) -> list[str]:
        source = open_source(tmp_path, labels_from=str(table), seed=seed)
        return [source.class_names[k] for k in source.labels]

    first, counts = drawn(0), Counter(drawn(0)[1:])
    assert first[0] == "snow"
    assert first == drawn(0) != drawn(1)
    assert set(counts) == {"sea", "sand", "sun"}  # a tag given twice counts once
    assert sum((n - 299 / 3) ** 2 / (299 / 3) for n in counts.values()) < 13.8  # chi-square, 2 degrees, p = 0.001


def test_labels_that_are_not_there_are_an_error_that_names_what_is(tmp_path):
    folder(tmp_path, "loose.jpg", "dog/1.jpg")
    with pytest.raises(LabelsError, match=r"1 of 2 images lie in no folder, e\.g\. 'loose\.jpg'; classes found: dog"):
        open_source(tmp_path, labels_from="folders")
    with pytest.raises(LabelsError, match="cannot read labels from 'nonsense'"):
        open_source(tmp_path, labels_from="nonsense")
    with pytest.raises(LabelsError, match=r"gone\.csv: No such file"):
        open_source(tmp_path, labels_from="gone.csv")


def test_links_to_one_file_and_packed_files_are_named(tmp_path):
    from selfcluster.data.listing import left_out

    folder(tmp_path, "a.jpg", "notes.txt")
    for i in range(9):
        os.link(tmp_path / "a.jpg", tmp_path / f"copy-{i}.jpg")
    words = "; passed over: 1 .txt; left out: 9 links to images that are used already (same_file)"
    assert left_out(open_source(tmp_path).passed) == words
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/photos.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"found 1 \.zip; unpack the \.zip files"):
        open_source(tmp_path / "packed")


def labels_of(source):
    return [None if k < 0 else source.class_names[k] for k in source.labels]


def test_a_missing_label_is_no_class(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"]
    folder(tmp_path, *names)
    texts = ["cat", "", "None", "NaN", "null", "dog"]
    (tmp_path / "list.csv").write_text("path,kind\n" + "".join(f"{n},{t}\n" for n, t in zip(names, texts)))
    expected = ["cat", None, None, None, None, "dog"]
    assert labels_of(open_source(tmp_path / "list.csv", labels_from="column:kind")) == expected
    assert labels_of(open_source(tmp_path, labels_from=str(tmp_path / "list.csv"))) == expected
    for values in (["cat", None, "None", "nan", "null", "dog"], [3.0, float("nan"), None, float("nan"), None, 5.0]):
        parquet.write_table(pa.table({"path": names, "kind": values}), tmp_path / "list.parquet")
        source = open_source(tmp_path / "list.parquet", labels_from="column:kind")
        assert [name is None for name in labels_of(source)] == [False, True, True, True, True, False]
    (tmp_path / "list.csv").write_text("path,kind\na.jpg,\nb.jpg,null\n")
    with pytest.raises(LabelsError, match="every label is missing"):
        open_source(tmp_path / "list.csv", labels_from="column:kind")


def test_subsets_leave_images_without_a_label_alone(tmp_path):
    names = [f"{i:02d}.jpg" for i in range(30)]
    folder(tmp_path, *names)
    rows = [f"{name},{'' if i % 3 == 0 else 'ab'[i % 2]}\n" for i, name in enumerate(names)]
    (tmp_path / "l.csv").write_text("id,label\n" + "".join(rows))
    tail = open_source(tmp_path, labels_from=str(tmp_path / "l.csv"), long_tail=2)
    assert np.bincount(tail.labels).tolist() == [10, 5]
    plain = open_source(tmp_path, labels_from=str(tmp_path / "l.csv"))
    noisy = open_source(tmp_path, labels_from=str(tmp_path / "l.csv"), label_noise=1.0)
    known = plain.labels >= 0
    assert (noisy.labels[~known] == -1).all()
    assert (noisy.labels[known] == 1 - plain.labels[known]).all()


def test_ids_of_a_table_match_without_suffix_and_without_folder(tmp_path):
    folder(tmp_path, "train/0001.jpg", "train/0002.jpg")
    table = tmp_path / "labels.csv"
    for ids in (("0001", "0002"), ("0001.jpg", "0002.jpg"), ("train/0001", "train/0002")):
        table.write_text(f"id,label\n{ids[0]},x\n{ids[1]},y\n")
        assert labels_of(open_source(tmp_path, labels_from=str(table))) == ["x", "y"]
    table.write_text("id,label\nimg-0001,x\nimg-0002,y\n")
    with pytest.raises(
        LabelsError, match=r"ids in the table look like 'img-0001', but ids of the images look like 'train/0001\.jpg'"
    ):
        open_source(tmp_path, labels_from=str(table))
    folder(tmp_path, "other/0001.jpg")  # now 0001 may mean two images
    table.write_text("id,label\n0001,x\n0002,y\n")
    with pytest.raises(LabelsError, match="no label for 3 of 3"):
        open_source(tmp_path, labels_from=str(table))


def test_a_table_that_omits_an_image_says_what_to_do(tmp_path):
    folder(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l.csv").write_text("id,label\na.jpg,x\n")
    with pytest.raises(LabelsError, match="row with an empty label, or leave them out"):
        open_source(tmp_path, labels_from=str(tmp_path / "l.csv"))


def test_an_image_may_have_several_labels(tmp_path):
    folder(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "list.csv").write_text("path,car,dog,sky\nc.jpg,0,1,1\na.jpg,1,,0\nb.jpg,0,0,-1\n")
    source = open_source(tmp_path / "list.csv", labels_from="columns:dog,car")
    assert source.class_names == ["dog", "car"]
    assert source.labels.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert source.take(np.array([0, 2])).labels.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(LabelsError, match="long_tail needs one label per image"):
        open_source(tmp_path / "list.csv", labels_from="columns:dog,car", long_tail=2)
    (tmp_path / "tags.csv").write_text("id,label\na.jpg,sea\na.jpg,sun\nc.jpg,sun\nb.jpg,none\n")
    source = open_source(tmp_path, labels_from=f"tags:{tmp_path}/tags.csv")
    assert source.class_names == ["sea", "sun"]
    assert source.labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    (tmp_path / "list.csv").write_text("path,car\na.jpg,maybe\n")
    with pytest.raises(LabelsError, match="column 'car' holds 'maybe'"):
        open_source(tmp_path / "list.csv", labels_from="columns:car")


def test_a_picture_linked_into_two_class_folders_is_a_sample_of_both(tmp_path):
    folder(tmp_path, "cat/1.jpg", "dog/2.jpg")
    os.link(tmp_path / "cat/1.jpg", tmp_path / "dog/1.jpg")
    (tmp_path / "dog/3.jpg").symlink_to(tmp_path / "cat/1.jpg")
    source = open_source(tmp_path, labels_from="folders")
    assert source.ids[:] == ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg", "dog/3.jpg"]
    assert source.labels.tolist() == [0, 1, 1, 1]
    assert open_source(tmp_path).ids[:] == ["cat/1.jpg", "dog/2.jpg"]
    assert open_source(tmp_path).passed == {"same_file": 2}


# row 17


def test_row_17_every_change_of_the_files_changes_the_fingerprint_and_has_words(tmp_path):
    folder(tmp_path, "a.jpg", "b.jpg")
    first = open_source(tmp_path)
    assert open_source(tmp_path).fingerprint == first.fingerprint
    assert open_source(tmp_path).difference(first.summary()) == ""
    (tmp_path / "a.jpg").write_bytes(b"y")
    assert "other contents, e.g. of 'a.jpg'" in open_source(tmp_path).difference(first.summary())
    (tmp_path / "a.jpg").write_bytes(b"longer")
    assert "2 bytes then, 7 now" in open_source(tmp_path).difference(first.summary())
    (tmp_path / "a.jpg").rename(tmp_path / "c.jpg")
    assert "other names" in open_source(tmp_path).difference(first.summary())
    folder(tmp_path, "d.jpg")
    assert "there were 2 images, there are 3" in open_source(tmp_path).difference(first.summary())


def test_row_17_data_that_was_copied_with_new_times_is_the_same_data(tmp_path):
    folder(tmp_path, *(f"{i}.jpg" for i in range(40)))
    first = open_source(tmp_path)
    for path in tmp_path.iterdir():
        os.utime(path, ns=(1, 1))
    again = open_source(tmp_path)
    assert again.fingerprint != first.fingerprint
    assert again.difference(first.summary()) == ""
    stored = {name: value for name, value in first.summary().items() if name != "sample"}  # as older runs have it
    assert again.difference(stored) == ""


def test_row_17_an_arrays_fingerprint_is_its_pixels():
    images = np.zeros((5, 4, 4), np.uint8)
    other = images.copy()
    other[3, 1, 1] = 1
    assert open_source(images).fingerprint == open_source(images.copy()).fingerprint
    assert open_source(images).fingerprint != open_source(other).fingerprint


# what a sample looks like


def test_images_are_described_by_size_color_and_share_of_bad_ones(tmp_path, encode):
    ramp = np.arange(16 * 20, dtype=np.uint8).reshape(16, 20)
    (tmp_path / "a.png").write_bytes(encode(ramp))
    (tmp_path / "b.jpg").write_bytes(encode(np.stack([ramp.T] * 3, axis=2), "JPEG"))
    (tmp_path / "c.jpg").write_bytes(b"<html>")
    found = describe_images(open_source(tmp_path))
    assert found["channels"] == 1  # gray stored as color is gray
    assert found["height"] == [16, 18, 20]
    assert found["side"] == [16, 16, 16]
    assert found["bad"] == pytest.approx(1 / 3)
    (tmp_path / "d.png").write_bytes(encode(np.stack([ramp, ramp, 255 - ramp], axis=2)))
    assert describe_images(open_source(tmp_path))["channels"] == 3
    assert open_source(tmp_path).describe()["images"] == 4


def test_paths_of_a_list_begin_at_the_root(tmp_path):
    from selfcluster.runs.tables import image_names

    folder(tmp_path, "a.jpg", "sub/b.jpg")
    (tmp_path / "sub/list.txt").write_text(f"b.jpg\n{tmp_path}/a.jpg\n")
    paths = image_names(open_source(tmp_path / "sub/list.txt"), [0, 1])[1]
    assert sorted(paths) == [f"{tmp_path}/a.jpg", f"{tmp_path}/sub/b.jpg"]
