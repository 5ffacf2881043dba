"""Finding and reading files: links, loops, pipes, odd names, vanished files, errors that pass (faults 8 to 12)."""

from __future__ import annotations

import csv
import errno
import json
import os
import tarfile

import numpy as np
import pytest

from selfcluster.data import store
from selfcluster.data.decode import BadImage
from selfcluster.data.errors import DataError
from selfcluster.data.names import to_name
from selfcluster.data.readers.files import scan
from selfcluster.data.readers.rows import read_list
from selfcluster.data.sources import open_source
from selfcluster.data.store import ReadLog, with_retries


def scanned(folder) -> list[str]:
    return scan(os.fsencode(folder)).names[:]


def put(folder, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_a_folder_is_searched_to_any_depth_and_sorted_by_bytes(tmp_path):
    names = ["a.jpg", "a/z.png", "a/b/c/d/e.TIFF", "a.b/x.webp", "a-/y.bmp", "Z.gif", "é.jpeg"]
    put(tmp_path, *names, "a/notes.txt", "README", ".hidden.jpg", ".git/x.png")
    found = scan(os.fsencode(tmp_path))
    assert found.names[:] == sorted(names, key=str.encode)
    assert found.sizes.tolist() == [len(name.encode()) for name in found.names]
    assert found.passed == {".txt": 1, "no suffix": 1, "hidden": 2}


# row 8


def test_row_8_loops_end_and_each_real_file_comes_once(tmp_path):
    put(tmp_path, "real/one.jpg", "real/two.jpg", "other/three.jpg")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "a_link_that_sorts_first").symlink_to(tmp_path / "real")
    (tmp_path / "alias.jpg").symlink_to(tmp_path / "real/one.jpg")
    os.link(tmp_path / "real/two.jpg", tmp_path / "real/zzz.jpg")
    found = scan(os.fsencode(tmp_path))
    assert found.names[:] == ["other/three.jpg", "real/one.jpg", "real/two.jpg"]
    assert sorted(found.skipped) == [("alias.jpg", "same_file"), ("real/zzz.jpg", "same_file")]


def test_row_8_folders_behind_links_are_searched(tmp_path):
    put(tmp_path, "data/a.jpg", "elsewhere/b.jpg", "elsewhere/deep/c.jpg", "single.jpg")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/one.jpg").symlink_to(tmp_path / "single.jpg")
    assert scanned(tmp_path / "data") == ["a.jpg", "link/b.jpg", "link/deep/c.jpg", "one.jpg"]


def test_row_8_pipes_devices_and_broken_links_are_named_and_never_opened(tmp_path):
    put(tmp_path, "good.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    source = open_source(tmp_path)
    assert source.ids[:] == ["good.jpg"]
    assert {"broken.jpg", "device.jpg", "itself.jpg", "pipe.jpg"} <= {name for name, _ in source.skipped}
    assert dict(source.skipped)["pipe.jpg"] == dict(source.skipped)["device.jpg"] == "not_regular"
    assert dict(source.skipped)["broken.jpg"] == "broken_link"


def test_row_8_reading_a_pipe_that_took_a_files_place_does_not_block(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg")
    source = open_source(tmp_path)
    for name, make in (("a.jpg", os.mkfifo), ("b.jpg", os.mkdir)):
        (tmp_path / name).unlink()
        make(tmp_path / name)
    for i in (0, 1):
        with pytest.raises(BadImage, match="not_regular"):
            source.read(i)


# row 9


def test_row_9_any_name_goes_there_and_back(tmp_path):
    raw = [
        b"\xff\xfe.jpg",
        "\N{CAT FACE}.jpg".encode(),
        b"line\nbreak.jpg",
        b"x" * 251 + b".jpg",
        b"back\\slash\\x41.jpg",
    ]
    for name in raw:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    source = open_source(tmp_path)
    assert [to_name(json.loads(json.dumps(id))) for id in source.ids] == sorted(raw)
    assert [source.read(i) for i in range(len(source))] == sorted(raw)
    assert print(*source.ids) is None  # and standard output takes them


# row 10


def test_row_10_a_file_that_vanished_says_so(tmp_path):
    put(tmp_path, "a.jpg", "sub/b.jpg")
    source = open_source(tmp_path)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "sub/b.jpg").unlink()
    (tmp_path / "sub").rmdir()
    (tmp_path / "sub").write_text("a file where a folder was")
    for i in (0, 1):
        with pytest.raises(BadImage, match="vanished"):
            source.read(i)


def test_row_10_a_file_replaced_since_the_scan_is_read_and_noted(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg")
    source = open_source(tmp_path)
    (tmp_path / "b.jpg").write_bytes(b"longer than before")
    assert source.read(0) == b"a.jpg"
    assert source.read(1) == b"longer than before"
    assert source.log.changed == {1}


# row 11


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_row_11_an_error_that_passes_is_tried_again_and_counted(tmp_path, monkeypatch, code):
    put(tmp_path, "a.jpg")
    monkeypatch.setattr(store, "_WAITS", (0.0, 0.0, 0.0))
    source, calls = open_source(tmp_path), []
    real = os.open

    def flaky(path, *rest, **options):
        if os.fsencode(path).endswith(b"a.jpg") and len(calls) < 3:
            calls.append(path)
            raise OSError(code, os.strerror(code))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", flaky)
    assert source.read(0) == b"a.jpg"
    assert source.log.retries == 3


def test_row_11_an_error_that_stays_ends_in_a_reason_after_a_bounded_wait(monkeypatch):
    waits = []
    monkeypatch.setattr(store.time, "sleep", waits.append)
    log = ReadLog()

    def broken():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(BadImage, match="read_error: Input/output error"):
        with_retries(broken, log)
    assert log.retries == 3
    assert waits == sorted(waits)
    assert 0 < sum(waits) < 3


def test_row_11_errors_that_do_not_pass_are_not_tried_again(monkeypatch):
    monkeypatch.setattr(store.time, "sleep", lambda s: pytest.fail("waited"))
    for code, reason in ((errno.EACCES, "no_permission"), (errno.ENOENT, "vanished"), (errno.EFBIG, "read_error")):

        def broken(code: int = code):
            raise OSError(code, os.strerror(code))

        with pytest.raises(BadImage) as caught:
            with_retries(broken)
        assert caught.value.reason == reason


def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path):
    put(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_bytes(b"a.jpg\nzero\0byte.jpg\n")
    with pytest.raises(BadImage, match="vanished"):
        open_source(tmp_path / "list.txt").read(1)


def test_row_23_no_memory_for_one_image_is_that_images_fault():
    def hungry():
        raise MemoryError

    with pytest.raises(BadImage, match="no_memory: not enough memory"):
        with_retries(hungry)


def test_a_file_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "huge.jpg"
    with open(path, "wb") as file:
        file.truncate(store.MAX_FILE_BYTES + 1)  # sparse: no disk is used
    with pytest.raises(BadImage, match="too_large"):
        store.read(os.fsencode(path))


# row 12


def test_row_12_copies_are_images_of_their_own(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02d}.jpg").write_bytes(b"the same")
    assert len(scanned(tmp_path)) == 30


# lists


def test_a_text_list_takes_a_path_a_line(tmp_path):
    put(tmp_path, "sub/b.jpg", "a.jpg")
    (tmp_path / "list.txt").write_bytes(b"sub/b.jpg\r\n\n" + os.fsencode(tmp_path / "a.jpg") + b"\nmissing.jpg\n")
    listing, _ = read_list(str(tmp_path / "list.txt"))
    assert listing.names[:] == [str(tmp_path / "a.jpg"), "missing.jpg", "sub/b.jpg"]
    assert listing.sizes.tolist() == [5, -1, 9]
    source = open_source(tmp_path / "list.txt")
    assert source.read(2) == b"sub/b.jpg"
    with pytest.raises(BadImage, match="vanished"):
        source.read(1)


def test_tables_have_a_column_path_or_their_first(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "named.csv").write_text("kind,path\ncat,b.jpg\ndog,a.jpg\n")
    (tmp_path / "first.csv").write_text("file,kind\nb.jpg,cat\na.jpg,dog\n")
    (tmp_path / "bare.csv").write_text("b.jpg\na.jpg\n")
    parquet.write_table(pa.table({"kind": ["cat", "dog"], "path": ["b.jpg", "a.jpg"]}), tmp_path / "t.parquet")
    for name in ("named.csv", "first.csv", "t.parquet"):
        source = open_source(tmp_path / name, labels_from="column:kind")
        assert source.ids[:] == ["a.jpg", "b.jpg"]
        assert [source.class_names[k] for k in source.labels] == ["dog", "cat"]
    assert open_source(tmp_path / "bare.csv").ids[:] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lists_may_begin_with_a_byte_order_mark_or_be_utf_16(tmp_path, encoding):
    put(tmp_path, "a.jpg", "ö.jpg")
    (tmp_path / "list.txt").write_bytes("a.jpg\r\nö.jpg\r\n".encode(encoding))
    (tmp_path / "list.csv").write_bytes("path,kind\na.jpg,cat\nö.jpg,dog\n".encode(encoding))
    assert open_source(tmp_path / "list.txt").ids[:] == ["a.jpg", "ö.jpg"]
    assert open_source(tmp_path / "list.csv", labels_from="column:kind").class_names == ["cat", "dog"]


def test_one_file_by_a_relative_and_an_absolute_path_is_named_twice(tmp_path):
    put(tmp_path, "sub/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    for other in (str(tmp_path / "sub/a.jpg"), "./sub/a.jpg", "sub/../sub/a.jpg", "link/a.jpg"):
        (tmp_path / "list.txt").write_text(f"sub/a.jpg\n{other}\n")
        with pytest.raises(DataError, match="which are one file"):
            open_source(tmp_path / "list.txt")


def test_a_csv_field_may_be_long(tmp_path):
    put(tmp_path, "a.jpg")
    (tmp_path / "list.csv").write_text(f"path,caption\na.jpg,{'x' * 200_000}\n")
    limit = csv.field_size_limit()
    assert open_source(tmp_path / "list.csv").ids[:] == ["a.jpg"]
    assert csv.field_size_limit() == limit


def test_an_image_without_a_suffix_is_found_by_its_content(tmp_path, encode):
    (tmp_path / "0001").write_bytes(encode(np.zeros((9, 9), np.uint8)))
    (tmp_path / "NOTES").write_text("no image")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "0001", "0001")
        tar.add(tmp_path / "NOTES", "NOTES")
    source = open_source(tmp_path)
    assert source.ids[:] == ["0001"]
    assert source.passed == {"no suffix": 1, ".tar": 1}
    source = open_source(tmp_path / "a.tar")
    assert source.ids[:] == ["a.tar/0001"]
    assert source.read(0) == (tmp_path / "0001").read_bytes()


def test_a_list_that_cannot_be_used_says_why(tmp_path):
    put(tmp_path, "a.jpg")
    cases = {
        "empty.txt": ("\n", "names no images"),
        "twice.txt": ("a.jpg\na.jpg\n", "'a.jpg' twice"),
        "gone.txt": ("x.jpg\ny.jpg\n", "none of the 2 files .* exists"),
        "short.csv": ("kind,path\ncat,a.jpg\ndog\n", "line 3: 1 columns, 2 are needed"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            open_source(tmp_path / name)
    (tmp_path / "good.csv").write_text("path,kind\na.jpg,cat\n")
    with pytest.raises(DataError, match="no column 'label'; its columns are path, kind"):
        open_source(tmp_path / "good.csv", labels_from="column:label")
