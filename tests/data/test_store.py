"""Remote storage behind the same functions as local files, and readers of other packages."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from selfcluster.data import store
from selfcluster.data.errors import BadImage, DataError
from selfcluster.data.listing import Listing
from selfcluster.data.names import Names
from selfcluster.data.readers import base
from selfcluster.data.readers.base import Opened, register_reader
from selfcluster.data.sources import open_source

fsspec = pytest.importorskip("fsspec", reason="remote storage needs fsspec")


@pytest.fixture
def remote():
    """put(name, bytes) writes into memory://box; the box is emptied afterwards."""
    memory = fsspec.filesystem("memory")

    def put(name: str, data: bytes) -> None:
        memory.pipe(f"/box/{name}", data)

    yield put
    memory.rm("/box", recursive=True)


def test_a_remote_folder_is_a_source_like_a_local_one(remote):
    for name in ("cat/1.jpg", "dog/2.jpg", "notes.txt", ".cache/3.jpg"):
        remote(name, name.encode())
    source = open_source("memory://box", labels_from="folders")
    assert source.ids[:] == ["cat/1.jpg", "dog/2.jpg"]
    assert [source.read(i) for i in (0, 1)] == [b"cat/1.jpg", b"dog/2.jpg"]
    assert source.class_names == ["cat", "dog"]
    assert source.passed == {"hidden": 1, ".txt": 1}
    assert source.location == source.root == "memory://box"
    assert source.difference(open_source("memory://box").summary()) == ""


def test_remote_lists_and_tars(remote):
    remote("a/x.jpg", b"x")
    remote("list.csv", b"path,kind\na/x.jpg,cat\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("dog/y.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"yyy"))
    remote("shard.tar", packed.getvalue())
    source = open_source("memory://box/list.csv", labels_from="column:kind")
    assert (source.ids[:], source.read(0), source.class_names) == (["a/x.jpg"], b"x", ["cat"])
    source = open_source("memory://box/shard.tar")
    assert (source.ids[:], source.read(0)) == (["shard.tar/dog/y.jpg"], b"yyy")


def test_a_remote_file_that_is_gone_has_a_reason(remote):
    remote("1.jpg", b"1")
    source = open_source("memory://box")
    fsspec.filesystem("memory").rm("/box/1.jpg")
    with pytest.raises(BadImage, match="vanished"):
        source.read(0)
    with pytest.raises(DataError, match="no data at 'memory://box/nothing'"):
        open_source("memory://box/nothing")
    remote("1.jpg", b"1")


@pytest.mark.parametrize("address", ["pipe://echo hello", "zip://a::memory://box/b.zip", "nosuch://box"])
def test_addresses_that_are_not_read_say_so(address):
    with pytest.raises(DataError, match=address.split(":")[0]):
        open_source(address)


def test_addresses_stay_whole():
    assert store.join(b"s3://bucket/a/", b"b.jpg") == b"s3://bucket/a/b.jpg"
    assert store.parent(b"s3://bucket/a/b.jpg") == b"s3://bucket/a"
    assert store.absolute(b"s3://bucket//a") == b"s3://bucket//a"
    assert store.join(b"/data", b"s3://bucket/b.jpg") == b"s3://bucket/b.jpg"


class Squares:
    """Images of one level each, from the address squares:N."""

    def matches(self, location):
        return location.startswith("squares:")

    def open(self, location, column):
        count = int(location.partition(":")[2])
        names = Names.of(b"%d" % i for i in range(count))
        listing = Listing(names, np.full(count, 64), np.zeros(count, dtype=np.int64))
        return Opened(self, listing, "squares", [str(i % 2) for i in range(count)] if column else None)

    def read(self, i, log):
        return np.full((8, 8, 1), i, np.uint8)

    def take(self, rows):
        return self

    def storage_order(self):
        return np.arange(3)


def test_a_reader_of_another_package_is_registered_by_one_call(monkeypatch):
    monkeypatch.setattr(base, "_openers", {})
    with pytest.raises(DataError, match="no data"):
        open_source("squares:3")
    register_reader("squares", Squares())
    source = open_source("squares:3", labels_from="column:parity")
    assert (source.kind, len(source), int(source.read(2)[0, 0, 0])) == ("squares", 3, 2)
    assert source.labels.tolist() == [0, 1, 0]


def test_a_reader_is_found_by_its_entry_point(monkeypatch):
    class Point:
        def load(self):
            return Squares()

    base._installed.cache_clear()
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point()] if group == base.GROUP else [])
    assert len(open_source("squares:2")) == 2
    base._installed.cache_clear()
