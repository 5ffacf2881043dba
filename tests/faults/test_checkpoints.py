"""Rows 38 to 42 in whole runs: a disk that is full, a signal through torchrun, a pickle that is given as weights."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from selfcluster import api
from selfcluster.runs import checkpoint
from selfcluster.runs.folder import read_status
from selfcluster.training import state
from tests.faults.programs import environment, in_its_own_mounts, may_mount, run, status, train, wait_until
from tests.methods.test_contract import assert_same_run

ROOT = Path(__file__).parents[2]
needs_mounts = pytest.mark.skipif(not may_mount(), reason="mounting is for root, on Linux")


def operations(action, tmp_path, pictures):
    """What `operations.py` prints: for each kind of operation, how the run ended and what was wrong in the end."""
    np.save(tmp_path / "pictures.npy", pictures)
    words = ["-m", "tests.faults.operations", action, str(tmp_path), str(tmp_path / "pictures.npy")]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, *lines = done.stdout.splitlines()
    assert len(lines) == int(count) > 20
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_row_37_killed_at_any_operation_on_its_folder_a_run_ends_in_the_same_bytes(tmp_path, pictures):
    found = operations("kill", tmp_path, pictures)
    assert [each for each in found if each["wrong"] or each["ended"] != "killed"] == []
    touched = " ".join(each["operation"] for each in found)
    for name in ("config.yaml", "metrics.jsonl", "manifest.json", "labels", "sample.safetensors", "clusters.csv"):
        assert name in touched


@pytest.mark.slow
def test_row_38_a_disk_that_is_full_at_any_operation_is_said_and_the_run_can_go_on(tmp_path, pictures):
    found = operations("full", tmp_path, pictures)
    assert [each for each in found if each["wrong"]] == []
    said = re.compile(r"(needed and [\d,]+ (are )?free)|(cannot be written to \(.*choose another --out)")
    assert [each for each in found if each["ended"] != "finished" and not said.search(each["ended"])] == []
    ended = [each["operation"] for each in found if each["ended"] != "finished"]
    for name in ("config.yaml", "manifest.json", "embeddings.parquet"):
        assert any(name in operation for operation in ended), name
    for name in ("metrics.jsonl", "labels", "status.json"):
        assert not any(name in op for op in ended if "selfcluster-N-metrics" not in op), name


SAVES = """
import sys
from pathlib import Path
import torch
from selfcluster.runs import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, 1, {"a": torch.ones(100_000)}, {})
try:
    checkpoint.save(folder, 2, {"a": torch.ones(700_000)}, {})
except OSError as error:
    print(error)
print([path.name for path in folder.iterdir()], checkpoint.is_whole(folder / "step-000000001"))
"""


@needs_mounts
@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=2m", "size=20m,nr_inodes=6"], ids=["no bytes", "no names"])
def test_row_38_a_small_disk_keeps_the_checkpoint_before(tmp_path, options):
    mount = f"mount -t tmpfs -o {options} none {tmp_path}"
    done = run(in_its_own_mounts(mount, sys.executable, "-c", SAVES, str(tmp_path)))
    assert done.returncode == 0, done.stderr[-2000:]
    said, left = done.stdout.splitlines()
    assert re.search(r"step-000000002: not saved, 2,800,000 bytes needed and [\d,]+ free", said)
    assert left == "['step-000000001'] True"


@contextmanager
def files_of_at_most(size: int):
    """Writing more fails as on a full disk (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_row_38_a_run_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(tiny, tmp_path, monkeypatch):
    tiny("swav", tmp_path / "whole", checkpoint_every=2)
    save, saved = state.checkpoint.save, []

    def full(*words, **more):
        if len(saved) == 2:
            with files_of_at_most(1000):
                return save(*words, **more)
        saved.append(save(*words, **more))
        return saved[-1]

    with monkeypatch.context() as patch:
        patch.setattr(state.checkpoint, "save", full)
        with pytest.raises(OSError, match=r"step-000000004: not saved, [\d,]+ bytes needed and [\d,]+ free"):
            tiny("swav", tmp_path / "run", checkpoint_every=2)
    assert [path.name for path in saved] == ["step-000000002", "step-000000003"]
    assert all(checkpoint.is_whole(path) for path in saved)
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    assert "bytes needed" in read_status(tmp_path / "run")["message"]
    tiny("swav", tmp_path / "run", checkpoint_every=2)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("command", ["embed", "export", "report", "figures", "contact sheets"])
def test_row_38_commands_name_the_file_and_the_bytes(tiny, tmp_path, pictures, command):
    tiny("swav", tmp_path / "run", epochs=1)
    calls = {
        "embed": lambda: api.embed(tmp_path / "run", pictures, out=tmp_path / "out.parquet"),
        "export": lambda: api.export(tmp_path / "run", out=tmp_path / "out"),
        "report": lambda: api.report(tmp_path / "run", out=tmp_path / "out.html"),
        "figures": lambda: api.figures(tmp_path / "run", train=pictures, filters=2, steps=2, out=tmp_path / "out"),
        "contact sheets": lambda: api.export(
            tmp_path / "run", format="contact-sheets", data=pictures, out=tmp_path / "out"
        ),
    }
    said = r"cannot be written, the disk is full: about [\d,]+ bytes are needed and [\d,]+ are free"
    with files_of_at_most(1000), pytest.raises(OSError, match=said):
        calls[command]()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".selfcluster-")]
    calls[command]()


@pytest.mark.slow
def test_row_41_sigterm_through_torchrun_saves_and_says_preempted(photos, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        train(photos, out, method="swav", epochs=3000, checkpoint_every=1000),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    wait_until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)  # then torchrun kills
    assert status(out)["state"] == "preempted"
    message = status(out)["message"]
    assert message.startswith("stopped by SIGTERM after step ")
    step = int(message.split("after step ")[1].split()[0])
    assert checkpoint.is_whole(out / f"checkpoints/step-{step:09d}")
    again = run(train(photos, out, method="swav", epochs=3000), SELFCLUSTER_FAULT="loop.step:raise:2")
    assert f"resuming at step {step}" in again.stdout + again.stderr or f"step {step + 1}," in again.stderr


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("kind", ["torch", "torch in a dictionary", "torch before 1.6", "pickle"])
def test_row_42_a_pickle_given_as_weights_is_refused_and_never_run(tiny, tmp_path, kind):
    mark, file = str(tmp_path / "executed"), tmp_path / "weights.pt"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Evil(mark)))
    elif kind == "torch before 1.6":
        torch.save(Evil(mark), file, _use_new_zipfile_serialization=False)
    else:
        torch.save(Evil(mark) if kind == "torch" else {"state_dict": {"conv1.weight": Evil(mark)}}, file)
    with pytest.raises(ValueError, match=r"weights\.pt"):
        tiny("swav", tmp_path / "run", init=str(file), backbone="resnet18")
    assert not os.path.exists(mark)


def test_row_42_an_array_of_objects_is_refused_and_never_run(tmp_path):
    mark = str(tmp_path / "executed")
    np.save(tmp_path / "vectors.npy", np.array([Evil(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"vectors\.npy: not a NumPy array of numbers"):
        api.cluster(tmp_path / "vectors.npy", out=tmp_path / "clusters.csv")
    assert not os.path.exists(mark)
