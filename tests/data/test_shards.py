"""Tar files: where members lie, and every way in which an archive can be cut or hostile (faults 14 to 16)."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from selfcluster.data.decode import BadImage
from selfcluster.data.sources import DataError, open_source


def tar(path, members: dict[str, bytes], **options) -> bytes:
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.read_bytes()


MEMBERS = {f"train/cat/{i:02d}.png": bytes([i + 1]) * (300 + 300 * i) for i in range(4)}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_where_they_lie(tmp_path, format):
    tar(tmp_path / "b.tar", MEMBERS, format=format)
    long = "d/" * 60 + "é.jpg" if format != tarfile.USTAR_FORMAT else "e.jpg"
    tar(tmp_path / "a.tar", {"z.jpg": b"last", long: b"first", "notes.json": b"{}"}, format=format)
    source = open_source(tmp_path)
    assert source.ids[:] == [f"a.tar/{long}", "a.tar/z.jpg", *(f"b.tar/{name}" for name in MEMBERS)]
    assert [source.read(i) for i in range(len(source))] == [b"first", b"last", *MEMBERS.values()]
    assert [source.ids[i] for i in source.storage_order()][:2] == ["a.tar/z.jpg", f"a.tar/{long}"]
    assert source.describe()["passed_over"] == {".json": 1}


def test_one_tar_or_a_list_of_tars_is_data_too(tmp_path):
    tar(tmp_path / "a.tar", MEMBERS)
    tar(tmp_path / "b.tar", {"x.png": b"x"})
    (tmp_path / "some.txt").write_text("a.tar\n")
    assert open_source(tmp_path / "b.tar").ids[:] == ["b.tar/x.png"]
    assert open_source(tmp_path / "some.txt").ids[:] == [f"a.tar/{name}" for name in MEMBERS]


def test_row_14_a_cut_inside_a_member_names_shard_member_and_byte(tmp_path):
    whole = tar(tmp_path / "a.tar", MEMBERS)
    start = 2 * 512 + 2 * 512 + 512  # two members of up to two blocks of data: 300 -> 1 block, 600 -> 2
    (tmp_path / "a.tar").write_bytes(whole[: start + 512 + 100])
    with pytest.raises(DataError, match=rf"a\.tar: cut or damaged at member 2, byte {start:,}:.*900 bytes end beyond"):
        open_source(tmp_path)


def test_row_14_a_tar_cut_after_it_was_indexed_gives_a_bad_image(tmp_path):
    whole = tar(tmp_path / "a.tar", MEMBERS)
    source = open_source(tmp_path)
    (tmp_path / "a.tar").write_bytes(whole[:1100])
    assert source.read(0) == MEMBERS["train/cat/00.png"]
    with pytest.raises(BadImage, match="truncated"):
        source.read(1)
    assert source.log.changed == {0, 1}


def test_row_15_a_cut_at_a_members_edge_is_no_complete_archive(tmp_path):
    whole = tar(tmp_path / "a.tar", MEMBERS)
    edge = (512 + 512) + (512 + 1024)
    (tmp_path / "a.tar").write_bytes(whole[:edge])
    with pytest.raises(DataError, match=rf"member 2, byte {edge:,}: the end-of-archive mark is missing"):
        open_source(tmp_path)
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == list(MEMBERS)[:2]  # the standard library is content


@pytest.mark.parametrize("damage", ["flip", "zero"])
def test_row_15_a_damaged_header_does_not_end_the_archive_in_silence(tmp_path, damage):
    data = bytearray(tar(tmp_path / "a.tar", MEMBERS))
    edge = (512 + 512) + (512 + 1024)
    data[edge : edge + 512] = bytes(512) if damage == "zero" else bytes([data[edge] ^ 1]) + data[edge + 1 : edge + 512]
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=rf"member 2, byte {edge:,}"):
        open_source(tmp_path)


def test_row_15_bytes_after_the_end_are_an_error(tmp_path):
    whole = tar(tmp_path / "a.tar", MEMBERS)
    (tmp_path / "a.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match="end-of-archive"):
        open_source(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100])
def test_row_15_what_is_no_tar_says_so(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: cut or damaged at member 0, byte 0"):
        open_source(tmp_path)


def test_the_twins_that_macos_adds_are_passed_over(tmp_path):
    tar(tmp_path / "a.tar", {"._a.png": b"\0\5\26\7\0\2\0\0Mac OS X", "a.png": b"a", "sub/._b.png": b"\0\5\26\7"})
    source = open_source(tmp_path / "a.tar")
    assert source.ids[:] == ["a.tar/a.png"]
    assert source.passed == {"hidden": 2}


@pytest.mark.parametrize(("start", "kind"), [(b"\x1f\x8b\x08", "gzip"), (b"PK\3\4", "zip"), (b"BZh9", "bzip2")])
def test_a_packed_archive_under_the_name_of_a_tar_is_to_be_unpacked(tmp_path, start, kind):
    (tmp_path / "a.tar").write_bytes(start + bytes(2000))
    (tmp_path / "a.zip").write_bytes(start + bytes(2000))
    with pytest.raises(DataError, match=rf"a\.tar is packed \({kind}\): unpack it"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=rf"\({kind}: unpack it\)"):
        open_source(tmp_path / "a.zip")


def test_row_16_names_are_opaque_and_links_are_skipped(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../../escape.png", "/etc/absolute.png", b"\xff.png".decode("utf-8", "surrogateescape")):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        for kind, name in (
            (tarfile.SYMTYPE, "soft.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    before = sorted(os.listdir(tmp_path))
    source = open_source(tmp_path)
    assert source.ids[:] == ["a.tar/../../escape.png", "a.tar//etc/absolute.png", "a.tar/\\xff.png"]
    assert [source.read(i) for i in range(3)] == [b"abc"] * 3
    assert [reason for _, reason in source.skipped] == ["not_regular"] * 3
    assert sorted(os.listdir(tmp_path)) == before


def test_row_16_a_member_twice_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("same.png"), io.BytesIO())
    with pytest.raises(DataError, match=r"'a\.tar/same\.png' occurs twice"):
        open_source(tmp_path)


def test_row_16_no_address_is_ever_a_command():
    with pytest.raises(DataError, match="no data at 'pipe:echo hello'"):
        open_source("pipe:echo hello")


def test_labels_of_members_are_their_parents_names(tmp_path):
    tar(tmp_path / "a.tar", {"train/dog/1.png": b"1", "train/cat/1.png": b"2"})
    source = open_source(tmp_path, labels_from="folders")
    assert source.class_names == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1]
    tar(tmp_path / "b.tar", {"loose.png": b"3"})
    with pytest.raises(DataError, match=r"1 of 3 images lie in no folder.*classes found: cat, dog"):
        open_source(tmp_path, labels_from="folders")


def test_paths_lead_to_the_tar_however_it_was_named(tmp_path):
    from selfcluster.runs.tables import image_names

    tar(tmp_path / "a.tar", MEMBERS)
    (tmp_path / "list.txt").write_text("a.tar\n")
    for data in (tmp_path, tmp_path / "a.tar", tmp_path / "list.txt"):
        ids, paths = image_names(open_source(data), [0])
        assert (ids, paths) == (["a.tar/train/cat/00.png"], [f"{tmp_path}/a.tar/train/cat/00.png"])
