"""Rows 18 to 26: readers that fail, and a machine that is short of memory, files or disk, with real processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from PIL import Image

from selfcluster.data import store
from selfcluster.data.quarantine import TooManyBadImages
from selfcluster.runs import checkpoint
from selfcluster.runs.folder import read_status
from tests.faults.programs import environment, in_its_own_mounts, may_mount, rows, run, status, train_alone
from tests.methods.test_contract import assert_same_run

needs_mounts = pytest.mark.skipif(not may_mount(), reason="mounting is for root, on Linux")


def test_row_18_an_error_in_a_reader_ends_the_run_and_the_same_command_goes_on(tiny, photos, tmp_path, monkeypatch):
    """Readers are threads; what kills one for good kills the process, which rows 37 and 40 do."""
    real, count, dies = store.read, 0, -1

    def failing(*words):
        nonlocal count
        count += 1
        if count == dies:
            raise RuntimeError("the driver is gone")
        return real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(store, "read", failing)
        tiny("swav", tmp_path / "whole", data=photos, checkpoint_every=2)
        count, dies = 0, count - 250  # in the last epoch: passes of 240 reads come after it
        with pytest.raises(RuntimeError, match="the driver is gone"):
            tiny("swav", tmp_path / "run", data=photos, checkpoint_every=2)
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert list((tmp_path / "run/checkpoints").glob("step-*"))
    tiny("swav", tmp_path / "run", data=photos, checkpoint_every=2)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@needs_mounts
@pytest.mark.slow
def test_row_20_training_needs_no_shared_memory(photos, tmp_path):
    small = "mount -t tmpfs -o size=64k none /dev/shm"
    done = run(in_its_own_mounts(small, *train_alone(photos, tmp_path / "run", workers=2)))
    assert done.returncode == 0, done.stderr[-2000:]
    assert status(tmp_path / "run")["state"] == "finished"


COUNT_FILES = """
import os, resource, sys
from selfcluster.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
counts = []
for number in range(3):
    words = [word.replace("NUMBER", str(number)) for word in sys.argv[1:]]
    assert main(words) == 0
    run = words[words.index("--out") + 1]
    assert main(["embed", run, words[2], "--out", run + ".parquet"]) == 0
    counts.append(len(os.listdir("/proc/self/fd")))
assert counts[1] == counts[2], counts
"""


@pytest.mark.slow
def test_row_21_64_open_files_are_enough_and_none_stays_open(photos, tmp_path):
    words = train_alone(photos, tmp_path / "run-NUMBER", epochs=2, workers=2)[3:]
    done = run([sys.executable, "-c", COUNT_FILES, *words])
    assert done.returncode == 0, done.stderr[-2000:]


MANY_PATHS = """
import numpy as np, torch
from selfcluster.data.listing import Listing
from selfcluster.data.loader import Loader
from selfcluster.data.names import Names
from selfcluster.data.sources import Source
from selfcluster.views.plans import ViewGroup, ViewPlan
from pathlib import Path
N = 2_000_000
listing = Listing(Names.of(b"folder/%09d.jpg" % i for i in range(N)), np.full(N, 300), np.zeros(N, np.int64))

class Reader:
    def read(self, i, log):
        return np.full((8, 8, 3), i % 251, np.uint8)

    def storage_order(self):
        return np.arange(N)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

source = Source(Reader(), listing, "folder", "folder")
loader = Loader(
    source, batch_size=512, image_size=8, mean=[0.5] * 3, std=[0.2] * 3, device="cpu", workers=2, in_memory=False
)
plan = ViewPlan(groups=(ViewGroup(count=1, size=8, scale=None, flip_p=0.0),))
for batches in (loader.batches(plan, epoch=1), loader.iterate_all()):
    sizes = []
    for number, batch in enumerate(batches):
        assert int(batch.index.max()) < N
        if number in (20, 220):
            sizes.append(resident())
        if number == 220:
            break
    growth = (sizes[1] - sizes[0]) / 200 * N / 512  # over all batches of the epoch
    assert growth < 0.05 * sizes[0], (growth, sizes)
"""


@pytest.mark.slow
def test_row_22_two_million_paths_take_one_buffer_and_memory_stays(tmp_path):
    done = run([sys.executable, "-c", MANY_PATHS])
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout


@needs_mounts
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("mount -t tmpfs none {place} && mount -o remount,ro none {place}", "cannot be written to"),
        ("mount -t tmpfs -o size=40k none {place}", "bytes are needed"),
    ],
    ids=["read-only", "full"],
)
def test_row_24_an_output_folder_without_room_is_refused_before_training(photos, tmp_path, mount, said):
    (tmp_path / "place").mkdir()
    command = train_alone(photos, tmp_path / "place/run")
    done = run(in_its_own_mounts(mount.format(place=tmp_path / "place"), *command))
    assert done.returncode != 0
    assert said in done.stderr
    assert "choose another --out" in done.stderr
    assert "Traceback" not in done.stderr


def test_row_26_a_window_that_changes_and_a_clock_that_jumps_change_nothing(tiny, photos, tmp_path, monkeypatch):
    tiny("swav", tmp_path / "whole", data=photos)
    stop = threading.Event()

    def disturb():
        while not stop.wait(0.02):
            os.kill(os.getpid(), signal.SIGWINCH)

    real, jumps = time.time, iter(range(1, 10**9))
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 1e7)
        tiny("swav", tmp_path / "run", data=photos)
    finally:
        stop.set()
        thread.join()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@needs_mounts
@pytest.mark.slow
def test_row_25_a_run_goes_on_where_labels_and_tensorboard_cannot_be_written(photos, tmp_path):
    """Both have disks of their own: one holds a single file of labels, the other takes nothing."""
    out = tmp_path / "run"
    command = train_alone(photos, out, "--tensorboard")
    assert run(command, SELFCLUSTER_FAULT="loop.step:raise:2").returncode == 1
    (out / "labels").mkdir(exist_ok=True)
    small = f"mount -t tmpfs -o size=4k none {out}/labels && mount -t tmpfs -o ro none {out}/tensorboard"
    done = run(in_its_own_mounts(small, *command))
    assert done.returncode == 0, done.stderr[-2000:]
    assert status(out)["state"] == "finished"
    assert len(rows(out)) == 6
    warnings = [line for line in done.stderr.splitlines() if "cannot be written" in line]
    assert len(warnings) == 2, warnings
    assert all("bytes are free); training goes on" in line for line in warnings)
    assert {"labels" in line for line in warnings} == {True, False}


def with_terminal(command: list[str], session: bool) -> tuple[subprocess.Popen[bytes], int]:
    """A command on a terminal of its own, which is `session`'s: closing it then sends SIGHUP. Returns our end."""
    ours, theirs = os.openpty()

    def take() -> None:
        if session:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="xterm"), preexec_fn=take
    )
    os.close(theirs)
    return process, ours


@pytest.mark.slow
@pytest.mark.parametrize("session", [True, False], ids=["with SIGHUP", "after nohup"])
def test_row_26_a_terminal_that_is_closed_saves_the_run_or_changes_nothing(photos, tmp_path, session):
    out = tmp_path / "run"
    epochs = 3000 if session else 100
    command = [word for word in train_alone(photos, out, epochs=epochs) if word != "--quiet"]
    process, terminal = with_terminal(command, session)
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:  # from its first step on the run handles the signal
        os.read(terminal, 4096)
    os.close(terminal)
    try:
        assert process.wait(timeout=60) == (1 if session else 0)
    finally:
        process.kill()
    if not session:
        assert status(out)["state"] == "finished"
        return
    assert status(out)["state"] == "preempted"
    message = status(out)["message"]
    assert message.startswith("stopped by SIGHUP after step ")
    assert checkpoint.is_whole(out / f"checkpoints/step-{int(message.split()[5]):09d}")


@pytest.mark.slow
def test_row_26_an_output_that_is_closed_ends_nothing(photos, tmp_path):
    command = [word for word in train_alone(photos, tmp_path / "run") if word != "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert status(tmp_path / "run")["state"] == "finished"


def test_row_23_a_memory_that_stays_short_ends_the_run_and_the_same_command_goes_on(
    tiny, photos, tmp_path, monkeypatch
):
    real, count, short = store.read, 0, -1

    def hungry(*words):
        nonlocal count
        count += 1
        if 0 <= short <= count:
            raise MemoryError
        return real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(store, "read", hungry)
        tiny("swav", tmp_path / "whole", data=photos, checkpoint_every=2)
        count, short = 0, count - 250  # in the last epoch
        words = "48 of 48 images are bad (100.0%: 48 no_memory), and --max-bad 0.01 allows 1"
        with pytest.raises(TooManyBadImages, match=re.escape(words)) as told:
            tiny("swav", tmp_path / "run", data=photos, checkpoint_every=2)
    assert "48 of these errors may be temporary: the next start reads those images again" in str(told.value)
    assert status(tmp_path / "run")["state"] == "failed"
    assert list((tmp_path / "run/checkpoints").glob("step-*"))
    tiny("swav", tmp_path / "run", data=photos, checkpoint_every=2)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("before_the_end", [255, 215, 170, 100, 30])
def test_row_10_an_image_that_vanishes_in_any_pass_ends_no_run(tiny, photos, tmp_path, monkeypatch, before_the_end):
    """In the last epoch, in each of the judgement's three passes, and in the pass that writes the embeddings."""
    real, count, gone = store.read, 0, -1

    def vanishing(location, *words):
        nonlocal count
        count += 1
        if 0 <= gone <= count and location.endswith(b"47.png"):  # the last one of a pass in order
            raise FileNotFoundError(errno.ENOENT, "gone")
        return real(location, *words)

    monkeypatch.setattr(store, "read", vanishing)
    tiny("swav", tmp_path / "whole", data=photos)
    count, gone = 0, count - before_the_end
    summary = tiny("swav", tmp_path / "run", data=photos)
    assert summary["bad_images"] == 1
    assert (tmp_path / "run/quarantine.jsonl").read_text().count("vanished") == 1
    assert summary["judgement"]["images"] == (48 if before_the_end < 48 else 47)


SHORT_OF_MEMORY = """
import ctypes, resource, sys
import torch, pyarrow.compute, sklearn.cluster
from selfcluster.cli import main
from selfcluster.training.state import RunState
save, calls = RunState.save, 0

def limited(*words, **more):
    global calls
    calls += 1
    if calls == 1:  # the run is under way: its libraries are loaded and its threads are made
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the command keeps would be enough for an image
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
    return save(*words, **more)

RunState.save = limited
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_row_23_an_image_that_does_not_fit_into_memory_is_left_out(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for name in ("big-1.png", "big-2.png"):  # 144 MB each, once decoded
        Image.fromarray(np.zeros((6000, 8000, 3), np.uint8)).save(folder / name, compress_level=1)
    words = train_alone(folder, tmp_path / "run", "--max-bad", "0.1", checkpoint_every=1)[3:]
    done = run([sys.executable, "-c", SHORT_OF_MEMORY, *words])
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "run/quarantine.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} == {"big-1.png", "big-2.png"}
    assert {line["detail"] for line in lines} == {"PNG: not enough memory to decode it"}


def test_row_23_a_tiny_memory_for_one_image_is_its_own_reason_in_a_run(tiny, photos, tmp_path, monkeypatch):
    real = store.read

    def short(location, *words):
        if location.endswith(b"07.png"):
            raise MemoryError
        return real(location, *words)

    monkeypatch.setattr(store, "read", short)
    summary = tiny("swav", tmp_path / "run", data=photos, max_bad=0.1)
    assert summary["bad_images"] == 1
    assert '"path": "07.png"' in (tmp_path / "run/quarantine.jsonl").read_text()
