"""A file is complete or absent, whatever happens while it is written."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from selfcluster.files import PatientLog, remove_temporaries, write_atomically, write_together


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


def test_files_that_belong_together_are_all_on_the_disk_before_one_has_its_name(tmp_path):
    def fail(path):
        raise OSError("broken")

    write_together({tmp_path / "a": "old", tmp_path / "b": "old"})
    with pytest.raises(OSError, match="broken"):
        write_together({tmp_path / "a": "new", tmp_path / "b": fail})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}


def test_a_full_disk_is_reported_with_the_file_and_the_bytes(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"table cannot be written, the disk is full: about 1,234 bytes .* [\d,]+ are free"
    ):
        write_atomically(tmp_path / "table", full, size=1234)
    assert not list(tmp_path.iterdir())


def test_only_the_temporaries_of_dead_processes_are_removed(tmp_path):
    (tmp_path / "sub").mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stays = {".selfcluster-1-status.json", ".hidden", ".config.yaml.123", "sub"}
    for name in (f".selfcluster-{dead.pid}-a", f"sub/.selfcluster-{dead.pid}-b", *stays - {"sub"}):
        (tmp_path / name).write_text("")
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == stays
    assert not list((tmp_path / "sub").iterdir())


def test_row_25_a_log_keeps_what_a_full_disk_does_not_take_and_what_was_there(tmp_path, caplog):
    path = tmp_path / "new" / "log"
    log = PatientLog(path, "work goes on")
    log.add(b"one\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, hard))
    try:
        log.add(b"two\n")
        log.add(b"three\n", b"four\n")
        assert path.read_bytes() == b"one\n"  # no half of the second
        assert log.waiting == [b"two\n", b"three\n", b"four\n"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.flush()
    assert path.read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert not log.waiting
    assert [record.getMessage().partition(" free); ")[2] for record in caplog.records] == ["work goes on"]


def test_row_25_a_log_that_cannot_be_opened_is_not_emptied(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    log = PatientLog(path, "work goes on")

    def refused(*words, **more):
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", refused)
        log.add(b"two\n")
    assert path.read_bytes() == b"one\n"
    log.flush()
    assert path.read_bytes() == b"one\ntwo\n"
