"""Rows 18 to 26: readers that fail, and a machine that is short of memory, files or disk, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from selfcluster.data import store
from selfcluster.runs.folder import read_status
from tests.faults.programs import environment, in_its_own_mounts, may_mount, run, status, train_alone
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
        count, dies = 0, count - 150  # in the last epoch: the pass over all images and the judgement come after it
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
sizes = []
for number, batch in enumerate(loader.iterate_all()):
    assert int(batch.index.max()) < N
    if number in (50, 400):
        sizes.append(resident())
    if number == 400:
        break
print(sizes, sizes[1] / sizes[0])
assert sizes[1] < 1.05 * sizes[0], sizes
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
