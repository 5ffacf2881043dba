"""Programs that the tests of faults start: the words of a small training, alone or under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import TINY, TINY_SETTINGS


def flags(method: str, **settings) -> list[str]:
    return as_words(TINY | TINY_SETTINGS[method] | {"epochs": 6, "checkpoint_every": 2} | settings)


def as_words(settings: dict) -> list[str]:
    """Settings as the words of a command line; switches take no value."""
    words = []
    for name, value in settings.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{dashed}"] if value else [f"--no-{dashed}"] * (name != "quiet")
        else:
            words += [f"--{dashed}", str(value)]
    return words


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **variables}


def torchrun(*program: str, restarts: int = 0) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*command, "--max-restarts", str(restarts), *program]


def train(photos: Path, out: Path, *words: str, method: str = "deepcluster_v2", restarts: int = 0, **settings):
    where = [str(photos), "--out", str(out), "--device", "cpu"]
    return [
        *torchrun("-m", "selfcluster", "train", method, restarts=restarts),
        *where,
        *flags(method, **settings),
        *words,
    ]


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(**variables))


def status(out: Path) -> dict:
    return json.loads((out / "status.json").read_text())


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened for {seconds} s"
        time.sleep(0.05)


def alone(*words: str) -> list[str]:
    """The command line of selfcluster in one process."""
    return [sys.executable, "-m", "selfcluster", *words]


def train_alone(photos: Path, out: Path, *words: str, method: str = "swav", **settings) -> list[str]:
    where = [str(photos), "--out", str(out), "--device", "cpu"]
    return [*alone("train", method), *where, *flags(method, **settings), *words]


def in_its_own_mounts(script: str, *command: str) -> list[str]:
    """The command after a shell script, in a mount namespace: what is mounted there is nobody else's."""
    return ["unshare", "-m", "sh", "-c", script + ' && exec "$@"', "sh", *command]


def may_mount() -> bool:
    try:
        tried = subprocess.run(in_its_own_mounts("mount -t tmpfs none /mnt", "true"), capture_output=True)
        return tried.returncode == 0
    except FileNotFoundError:
        return False
