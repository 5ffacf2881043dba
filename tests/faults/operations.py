"""A program: a small run that dies, or finds the disk full, at an operation on its folder; then the same call again.

Every kind of operation that the run makes has its turn: what differs in its digits alone is one kind. The first line of
the output is the number of kinds. Then a JSON object a line: operation, ended (how the first call ended: "killed",
"finished" or its error) and wrong (what is wrong after the second call, which is to end in the whole run's bytes).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute
import pyarrow.parquet  # noqa: F401
import sklearn.cluster  # noqa: F401
import timm  # noqa: F401
import torch

from selfcluster import api
from selfcluster.evaluation import judgement  # noqa: F401
from selfcluster.training import finish, loop, start  # noqa: F401
from tests.conftest import TINY, TINY_SETTINGS
from tests.methods.test_contract import assert_same_run

METHOD = "deepcluster_v2"
SETTINGS = TINY | TINY_SETTINGS[METHOD] | {"epochs": 2, "checkpoint_every": 2}
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
NEEDS_ROOM = ("open", "os.mkdir", "os.rename")


class Operations:
    """Hears of every change that this process makes below a folder, and acts at one of them."""

    def __init__(self, folder: Path, action: str, at: int) -> None:
        self.folder, self.action, self.at = os.path.join(folder, ""), action, at
        self.names: list[str] = []

    def hear(self, event: str, words: tuple[object, ...]) -> None:
        path = words[0] if words else None
        if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(self.folder):
            return
        writes = event == "open" and isinstance(words[2], int) and words[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes and event not in CHANGES:
            return
        self.names.append(f"{event} {os.fsdecode(path)[len(self.folder) :]}")
        if len(self.names) != self.at:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if event in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def call(folder: Path, pictures: np.ndarray, result: Path, action: str = "", at: int = 0) -> tuple[str, list[str]]:
    """Train in a process of its own; return how it ended, and its operations."""
    result.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        operations = Operations(folder, action, at)
        sys.addaudithook(operations.hear)
        ended = "finished"
        try:
            api.train(METHOD, pictures, out=folder, **SETTINGS)
        except (OSError, ValueError, RuntimeError) as error:
            ended = str(error)
        finally:
            result.write_text(json.dumps([ended, operations.names]))
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed", []
    ended, names = json.loads(result.read_text())
    return ended, names


def check(whole: Path, folder: Path) -> str:
    """What is wrong with a run that should equal the whole one."""
    left = [str(path) for path in folder.rglob("*") if path.name.startswith((".selfcluster-", ".step-"))]
    if left:
        return f"left behind: {left}"
    try:
        assert_same_run(whole, folder)
    except AssertionError as error:
        return f"differs: {error}"
    return ""


def main(action: str, place: str, pictures: str) -> None:
    torch.set_num_threads(1)
    data, base = np.load(pictures), Path(place)
    result, whole, folder = base / "result.json", base / "whole", base / "run"
    ended, names = call(whole, data, result)
    assert ended == "finished", ended
    kinds = {re.sub(r"\d+", "N", name): at for at, name in enumerate(names, start=1)}  # the last of each
    print(len(kinds), flush=True)
    for kind, at in kinds.items():
        ended, _ = call(folder, data, result, action, at)
        again, _ = call(folder, data, result)
        wrong = check(whole, folder) if again == "finished" else again
        print(json.dumps({"operation": kind, "ended": ended, "wrong": wrong}), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
