"""Rows 27 to 36 with real groups of processes under torchrun: killed, frozen, orphaned, uneven, poisoned."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from selfcluster import heartbeat
from selfcluster.heartbeat import Heartbeat, RankFailed
from selfcluster.runs.checkpoint import load_newest
from tests.faults.programs import environment, flags, lives, rows, run, status, torchrun, train, wait_until
from tests.methods.test_contract import assert_same_run

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Path:
    """A run of two processes that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = run(train(photos, out))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@slow
def test_row_27_processes_that_see_other_data_are_refused_before_a_step(photos, tmp_path):
    """The number of steps follows from the images, so equal images make equal steps."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom selfcluster.cli import main\n"
        f"words = ['train', 'swav', {str(photos)!r} if os.environ['RANK'] == '0' else {str(tmp_path / 'less')!r}]\n"
        "sys.exit(main(words + sys.argv[1:]))\n"
    )
    (tmp_path / "less").mkdir()
    for file in sorted(photos.iterdir())[:40]:
        (tmp_path / "less" / file.name).write_bytes(file.read_bytes())
    done = run([*torchrun(str(script)), "--out", str(tmp_path / "run"), "--device", "cpu", *flags("swav")])
    assert done.returncode != 0
    assert done.stderr.count("there were 48 images, there are 40") == 1
    assert "process 1 reads other images in" in done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_row_28_the_first_error_is_printed_once_and_stored(photos, tmp_path, rank):
    done = run(train(photos, tmp_path / "run"), SELFCLUSTER_FAULT="loop.step:raise:6", SELFCLUSTER_FAULT_RANK=rank)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("selfcluster: ")]
    assert len(said) == 1
    where = rf"process {rank} of 2, step 5, images \d\d.png, .*: RuntimeError: fault injected at loop.step"
    assert re.fullmatch(f"selfcluster: {where}", said[0])
    assert status(tmp_path / "run")["state"] == "failed"
    assert re.fullmatch(where, status(tmp_path / "run")["message"])


@slow
def test_row_29_a_killed_process_is_named(photos, tmp_path):
    done = run(train(photos, tmp_path / "run"), SELFCLUSTER_FAULT="loop.step:kill:6", SELFCLUSTER_FAULT_RANK="1")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("selfcluster: ")]
    assert len(said) == 1
    assert "process 1 of 2" in said[0]
    assert "ended without a message (killed, or out of memory)" in said[0]
    assert status(tmp_path / "run")["message"] == said[0].removeprefix("selfcluster: ")


@slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_row_29_after_a_restart_the_run_ends_in_the_same_bytes(photos, whole, tmp_path, rank):
    command = train(photos, tmp_path / "run", restarts=1)
    fault = {"SELFCLUSTER_FAULT": "loop.step:kill:6", "SELFCLUSTER_FAULT_ATTEMPT": "0"}
    done = run(command, SELFCLUSTER_FAULT_RANK=rank, **fault)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(whole, tmp_path / "run")


@slow
def test_row_30_a_frozen_process_is_named_and_the_run_goes_on_when_it_is_back(photos, whole, tmp_path):
    fault = {"SELFCLUSTER_FAULT": "loop.step:stop:6", "SELFCLUSTER_FAULT_RANK": "1"}
    command = train(photos, tmp_path / "run", timeout=20)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**fault))
    assert process.stderr is not None
    named = next(line for line in process.stderr if "has not answered" in line)
    found = re.search(r"process 1 of 2 \(pid (\d+) on .*images .*\) has not answered for 1\d s", named)
    assert found
    assert "the others wait for it, and end after 20 s" in named
    os.kill(int(found[1]), signal.SIGCONT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "process 1 of 2 answers again" in rest
    assert_same_run(whole, tmp_path / "run")


@slow
def test_row_31_the_others_wait_for_long_work_of_one_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import time\nfrom selfcluster import distributed\ndistributed._COLLECTIVE_SECONDS = 2\ndistributed.start()\n"
        "value = None\nif distributed.rank() == 0:\n    time.sleep(5)\n    value = 7\n"
        "assert distributed.broadcast_object(value) == 7\ndistributed.stop()\n"
    )
    done = run(torchrun(str(script)))
    assert done.returncode == 0, done.stderr[-3000:]


@slow
def test_row_32_all_processes_skip_a_step_that_is_not_finite_on_one(photos, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom selfcluster.cli import main\nfrom selfcluster.data.loader import Loader\n"
        "batches = Loader.batches\n"
        "def poisoned(self, *words):\n"
        "    for number, batch in enumerate(batches(self, *words)):\n"
        "        if os.environ['RANK'] == '1' and words[2] == 1 and number == 1:\n"
        "            batch.views[0].fill_(float('nan'))\n"
        "        yield batch\n"
        "Loader.batches = poisoned\nsys.exit(main(sys.argv[1:]))\n"
    )
    where = ["train", "simclr", str(photos), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = run([*torchrun(str(script)), *where, *flags("simclr")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["skipped_steps"] for row in rows(tmp_path / "run")] == [0, 1, 1, 1, 1, 1]
    assert np.isfinite([row["loss"] for row in rows(tmp_path / "run")][2:]).all()
    found = load_newest(tmp_path / "run/checkpoints")[0]
    assert found is not None
    assert all(tensor.isfinite().all() for tensor in found.tensors.values())


@slow
def test_row_34_processes_whose_launcher_is_killed_save_and_end_and_free_the_folder(photos, tmp_path):
    out = tmp_path / "run"
    command = train(photos, out, epochs=3000, checkpoint_every=1000)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stderr=said, env=environment())
    wait_until(lambda: list(out.glob("checkpoints/step-*")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(lives(child) for child in children))
    assert status(out)["state"] == "preempted"
    step = status(out)["message"].split("after step ")[1].split()[0]
    assert (out / f"checkpoints/step-{int(step):09d}").is_dir()
    done = run(train(photos, out, epochs=3000, checkpoint_every=1000), SELFCLUSTER_FAULT="loop.step:raise:2")
    assert "fault injected" in done.stderr  # the lock was free, and the run went on


@slow
def test_row_36_a_run_goes_on_with_fewer_and_more_processes(photos, tmp_path, tiny):
    """Two processes, then one, then two: the images and batches of a run of one; values to float32's rounding."""
    tiny("swav", tmp_path / "one", data=photos, learning_rate=1e-4, epochs=6)
    words = {"method": "swav", "learning_rate": 1e-4}
    out = tmp_path / "run"
    stopping = {"SELFCLUSTER_FAULT": "loop.step:raise:7"}
    assert run(train(photos, out, **words), **stopping).returncode != 0
    alone = [sys.executable, "-m", "selfcluster", "train", "swav", str(photos), "--out", str(out), "--device", "cpu"]
    first = run([*alone, *flags("swav", learning_rate=1e-4)], **stopping)
    assert "processes was 2 and is 1" in first.stderr
    done = run(train(photos, out, **words))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes was 1 and is 2" in done.stderr + done.stdout
    one, changed = rows(tmp_path / "one"), rows(out)
    assert [row["step"] for row in changed] == [row["step"] for row in one] == [3, 6, 9, 12, 15, 18]
    for a, b in zip(one, changed, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)


# ---- the watch itself, in one process: a store in memory, and the end of the process as an exception


@pytest.fixture
def pair(monkeypatch):
    """Two heartbeats with one store, of which the second can be frozen."""
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)
    monkeypatch.setattr(heartbeat, "_SILENT", 0.2)
    ended: list[int] = []
    monkeypatch.setattr(heartbeat.os, "_exit", ended.append)
    store = dist.HashStore()
    beats = [Heartbeat(store, lambda: store, rank, 2, timeout=3.0) for rank in range(2)]
    yield (*beats, ended)
    for beat in beats:
        beat.stop()


def test_row_30_a_silent_process_ends_the_others_with_its_name(pair, capsys):
    first, second, ended = pair
    told: list[str] = []
    first.on_end = told.append
    second.at(lambda: "step 12, images a.png")
    wait_until(lambda: "step 12" in first._sign(first._store, 1)["where"])
    second._stopping.set()  # frozen: it sends no sign, and does not say that it is gone
    wait_until(lambda: ended, 10)
    assert re.match(r"process 1 of 2 \(pid \d+ on .*, step 12, images a.png\) has not answered for 3 s", told[0])
    assert told[0] in capsys.readouterr().err


def test_row_30_a_process_that_is_done_is_not_waited_for(pair):
    first, second, ended = pair
    second.stop()
    time.sleep(3.5)
    assert not ended
    assert not first._warned


def test_row_28_what_follows_from_another_process_error_is_not_told(pair):
    first, second, _ = pair
    first.at(lambda: "step 3")
    second.at(lambda: "step 3")
    own = second.cause(ValueError("a bad value"))
    assert (str(own), own.told, own.kind) == ("process 1 of 2, step 3: a bad value", False, "ValueError")
    caused = first.cause(RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"))
    assert (str(caused), caused.told, caused.kind) == (str(own), True, "ValueError")
    with pytest.raises(RankFailed, match="a bad value"):
        first.share(None, source=1)  # who waits for an object of the failed process hears it as well


def test_row_29_a_process_that_died_in_silence_is_found_by_its_missing_signs(pair):
    first, second, _ = pair
    second.at(lambda: "step 3")
    wait_until(lambda: "step 3" in first._sign(first._store, 1)["where"])
    second._stopping.set()
    caused = first.cause(RuntimeError("gloo: Connection closed by peer"))
    assert re.match(r"process 1 of 2 \(pid \d+ on .*, step 3\): ended without a message", str(caused))
    assert not caused.told
