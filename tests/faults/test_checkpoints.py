"""Rows 38 to 42 in whole runs: a disk that is full, a signal through torchrun, a pickle that is given as weights."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
from contextlib import contextmanager

import pytest
import torch

from selfcluster import api
from selfcluster.runs import checkpoint
from selfcluster.runs.folder import read_status
from selfcluster.training import state
from tests.faults.programs import environment, run, status, train, wait_until
from tests.methods.test_contract import assert_same_run


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


@pytest.mark.parametrize("command", ["embed", "export", "report"])
def test_row_38_commands_name_the_file_and_the_bytes(tiny, tmp_path, pictures, command):
    tiny("swav", tmp_path / "run", epochs=1)
    calls = {
        "embed": lambda: api.embed(tmp_path / "run", pictures, out=tmp_path / "out.parquet"),
        "export": lambda: api.export(tmp_path / "run", out=tmp_path / "out"),
        "report": lambda: api.report(tmp_path / "run", out=tmp_path / "out.html"),
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
    assert f"goes on from step {step}" in again.stdout + again.stderr or f"step {step + 1}," in again.stderr


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("kind", ["torch", "torch in a dictionary", "pickle"])
def test_row_42_a_pickle_given_as_weights_is_refused_and_never_run(tiny, tmp_path, kind):
    mark, file = str(tmp_path / "executed"), tmp_path / "weights.pt"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Evil(mark)))
    else:
        torch.save(Evil(mark) if kind == "torch" else {"state_dict": {"conv1.weight": Evil(mark)}}, file)
    with pytest.raises(ValueError, match=r"weights\.pt"):
        tiny("swav", tmp_path / "run", init=str(file), backbone="resnet18")
    assert not os.path.exists(mark)
