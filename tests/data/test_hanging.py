"""Row 19: a read that hangs, with real processes: the timeout names the image, and SIGTERM still saves the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

# image 07.png never comes once the first epoch is over
HANGING = """
import sys, threading, time
from selfcluster.data import store
from selfcluster.cli import main
real, reads = store.read, {}

def read(location, *rest):
    reads[location] = reads.get(location, 0) + 1
    if location.endswith(b"07.png") and reads[location] > 6:
        print("hanging", file=sys.stderr, flush=True)
        time.sleep(1000)
    return real(location, *rest)

store.read = read
sys.exit(main(sys.argv[1:]))
"""


def start(tmp_path, encode, *words: str) -> subprocess.Popen[str]:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        (folder / f"{i:02d}.png").write_bytes(encode(rng.integers(0, 255, (24 + i % 2, 24, 3), np.uint8)))
    command = ["train", "simclr", str(folder), "--out", str(tmp_path / "run"), "--epochs", "400", "--batch-size", "8"]
    command += ["--image-size", "16", "--backbone", "resnet18_small", "--workers", "2", *words]
    return subprocess.Popen(
        [sys.executable, "-c", HANGING, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    raise AssertionError(f"the process ended without {word!r}")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["2", "0"])
def test_row_19_a_hung_read_ends_the_run_with_the_name_of_the_image(tmp_path, encode, workers):
    process = start(tmp_path, encode, "--timeout", "1", "--workers", workers)
    wait_for(process, "hanging")
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "reading did not end within 1 s: 07.png" in errors
    assert time.monotonic() - started < 20  # about 4 s alone; the machine that tests may be busy
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_row_19_the_first_sigterm_saves_a_run_whose_read_hangs(tmp_path, encode):
    process = start(tmp_path, encode)
    wait_for(process, "hanging")
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped while waiting for images to be read; resume with the same command" in errors
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "preempted"
    assert list((tmp_path / "run/checkpoints").glob("step-*"))
