"""A checkpoint is whole or absent, whatever happens while it is written (faults 37 to 39, 42)."""

import json
import os
import subprocess
import sys

import pytest
import torch

from selfcluster.runs import checkpoint
from selfcluster.runs.formats import FORMAT

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}


def test_round_trip_keeps_bits_of_strided_and_shared_tensors(tmp_path):
    shared = TENSORS | {
        "same": TENSORS["a"],
        "last": torch.rand(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    }
    path = checkpoint.save(tmp_path, 5, shared, {"step": 5, "pi": 0.1 + 0.2})
    loaded = checkpoint.load(path)
    assert loaded.meta == {"format": FORMAT, "step": 5, "pi": 0.1 + 0.2}
    for name, tensor in shared.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_older_ones_are_pruned_after_the_new_one_is_there(tmp_path):
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, TENSORS, {"step": step}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000003", "step-000000010"]
    assert checkpoint.load_newest(tmp_path)[0].meta["step"] == 10


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "missing", "manifest", "meta"])
def test_row_39_a_damaged_newest_one_is_named_and_the_one_before_is_used(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, TENSORS, {"step": step})
    newest = tmp_path / "step-000000002"
    tensors = newest / "tensors.safetensors"
    content = tensors.read_bytes()
    if damage == "truncated":
        tensors.write_bytes(content[:-5])
    elif damage == "empty":
        tensors.write_bytes(b"")
    elif damage == "flipped":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        tensors.unlink()
    elif damage == "manifest":
        (newest / "manifest.json").write_text("{")
    else:
        (newest / "meta.json").write_text(json.dumps({"step": 3}))
    loaded, complaints = checkpoint.load_newest(tmp_path)
    assert loaded.meta["step"] == 1
    assert len(complaints) == 1
    assert str(newest) in complaints[0]


def test_nothing_there(tmp_path):
    assert checkpoint.load_newest(tmp_path / "none") == (None, [])


KILLED = """
import os, sys, torch
from pathlib import Path
from selfcluster.runs import checkpoint
from selfcluster.runs.formats import FORMAT
folder, at = Path(sys.argv[1]), int(sys.argv[2])
checkpoint.save(folder, 1, {"a": torch.ones(4)}, {"step": 1}, keep=1)
calls = 0
def dying(event, args):
    global calls
    watched = ("open", "os.rename", "os.mkdir", "shutil.rmtree", "os.rmdir", "os.remove")
    if event in watched and any(str(folder) in str(a) for a in args):
        calls += 1
        if calls == at:
            os._exit(9)
sys.addaudithook(dying)
checkpoint.save(folder, 2, {"a": torch.zeros(4)}, {"step": 2}, keep=1)
print("finished after", calls)
"""


@pytest.mark.faults
def test_row_37_killed_at_every_file_operation_there_is_always_a_whole_one(tmp_path):
    """The process dies at its nth touch of the folder, for each n: before the temporary one, between its files,
    before and after the rename, while pruning."""
    seen = set()
    for at in range(1, 40):
        folder = tmp_path / str(at)
        process = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(at)], capture_output=True, text=True, timeout=120
        )
        loaded, complaints = checkpoint.load_newest(folder)
        assert complaints == []
        assert loaded is not None
        expected = 1.0 if loaded.meta["step"] == 1 else 0.0
        assert loaded.tensors["a"].eq(expected).all()
        seen.add(loaded.meta["step"])
        checkpoint.clean(folder, step=9)
        assert not list(folder.glob(".*"))
        if process.returncode == 0:
            break
        assert process.returncode == 9, process.stderr
    assert seen == {1, 2}
    assert process.returncode == 0, "the loop must reach the end of a save"


def test_row_38_a_full_disk_is_said_with_the_bytes_and_the_old_one_stays(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"not saved, [\d,]+ bytes needed and [\d,]+ free"):
        checkpoint.save(tmp_path, 2, TENSORS, {"step": 2})
    assert sorted(os.listdir(tmp_path)) == ["step-000000001"]


def test_row_42_loading_never_unpickles(tmp_path):
    """A pickle under a checkpoint's name is refused, not run."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/owned",))

    path = checkpoint.save(tmp_path, 1, TENSORS, {})
    (path / "tensors.safetensors").write_bytes(pickle.dumps(Evil()))
    (path / "manifest.json").write_text("{}")
    with pytest.raises(checkpoint.BrokenCheckpoint):
        checkpoint.load(path)
    assert not (tmp_path / "owned").exists()


def test_a_run_that_went_back_behind_broken_checkpoints_keeps_what_it_saves(tmp_path):
    for step in (300, 400):
        path = checkpoint.save(tmp_path, step, {"w": torch.ones(2)}, {"step": step})
        (path / "tensors.safetensors").write_bytes(b"")
    assert checkpoint.load_newest(tmp_path)[0] is None
    for step in (100, 200):
        assert checkpoint.save(tmp_path, step, {"w": torch.ones(2)}, {"step": step}).exists()
        assert checkpoint.load_newest(tmp_path)[0].meta["step"] == step
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000000100", "step-000000200"]
