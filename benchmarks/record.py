"""A dated line of JSON for each measurement: the command, the commit, the machine, and the rows of figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from selfcluster.clustering import native

RESULTS = Path(__file__).parent / "results"


def append(file: Path, section: str, rows: list[dict[str, Any]], threads: int) -> None:
    """Append a line to `file`: these rows, what was measured, and on what."""
    line = {
        "section": section,
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "hardware": {
            "processor": processor(),
            "threads": threads,
            "kernel": native.instructions() or "none",
            "torch": str(torch.__version__),
        },
        "rows": rows,
    }
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def commit() -> str:
    """The commit that is checked out, abbreviated; "" outside a repository."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
