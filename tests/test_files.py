"""A file is complete or absent, whatever happens while it is written."""

import os

import pytest

from selfcluster.files import write_atomically


@pytest.mark.parametrize("content", ["später", "später".encode(), lambda path: path.write_text("später", "utf-8")])
def test_text_bytes_and_functions_write_the_same(tmp_path, content):
    write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == "später".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch, where):
    write_atomically(tmp_path / "file", "old")

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(where, full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "file", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_a_function_wrote_before_it_failed_goes(tmp_path):
    def half(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", half)
    assert not list(tmp_path.iterdir())


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(list(tmp_path.iterdir())))
    write_atomically(tmp_path / "file", "new")
    ((before,),) = seen
    assert before.name != "file"
