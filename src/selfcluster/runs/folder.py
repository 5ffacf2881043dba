"""The run folder: its lock, its resolved configuration, its status and its metrics. Rank 0 alone writes."""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from selfcluster.files import (
    PatientLog,
    make_writable,
    reason_of,
    remove_temporaries,
    temporaries,
    unwritten,
    warn_unwritten,
    write_atomically,
)
from selfcluster.runs.formats import FormatError, modern_config

CONFIG, STATUS, METRICS, CHECKPOINTS = "config.yaml", "status.json", "metrics.jsonl", "checkpoints"
START, END = "start", "end"  # folders of the network before and after training
START_SAMPLE = f"{START}/sample.safetensors"  # features of a sample by the start network, for the comparison


class RunError(ValueError):
    """A run folder that cannot be used as asked: bad arguments, in words (exit 2)."""


class RunFolder:
    """A run's folder, opened for writing.

    Raises ValueError where the folder cannot be written to, RunError where another process holds it. The lock is the
    operating system's, so it goes with the process however that ends; the file only says whose it is.
    `settings`: those that decide the run's result. Its checkpoints hold them, so that a later edit is noticed.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.settings = dict(settings or {})
        self._rows = 0  # with those that could not be written yet
        self._metrics = PatientLog(path / METRICS, "training goes on, and rows are written when there is room")
        self._unwritten: set[str] = set()  # files whose failure was a warning already
        make_writable(path)
        self._lock = self._acquire()
        remove_temporaries(path)

    def _acquire(self) -> IO[str]:
        path, ours = self.path / ".lock", f"process {os.getpid()} on {socket.gethostname()}\n"
        try:
            file = path.open("a+")
        except OSError as error:
            raise unwritten(path, error, len(ours)) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RunError(f"{self.path} is in use by {holder}; stop it, or choose another --out") from error
        try:
            file.seek(0)
            file.truncate()
            file.write(ours)
            file.flush()
        except OSError as error:
            file.close()
            raise unwritten(path, error, len(ours)) from error
        return file

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written; raises RuntimeError once the folder is no longer the one that was locked."""
        self._still_ours()
        return self.path / CHECKPOINTS

    def _still_ours(self) -> None:
        try:
            ours = os.path.samestat(os.stat(self.path / ".lock"), os.fstat(self._lock.fileno()))
        except FileNotFoundError:
            ours = False
        if not ours:  # somebody removed it while the run went on, and may have begun another in its place
            raise RuntimeError(f"{self.path} was removed or replaced while this run was writing to it")

    def close(self) -> None:
        """Try once more to write the rows that wait, and let go of the folder."""
        self._metrics.flush()
        self._lock.close()

    def write_config(self, config: Mapping[str, object]) -> None:
        """Write `config.yaml`; itself a valid `--config`."""
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
        write_atomically(self.path / CONFIG, text)

    def status(self, state: str, **fields: object) -> None:
        """Write `status.json`: `state` is running, finished, preempted or failed. A full disk is a warning."""
        self._still_ours()
        try:
            write_atomically(self.path / STATUS, json.dumps({"state": state, **fields}, indent=2) + "\n")
        except OSError as error:
            self.warn_once(STATUS, error, f"the run is {state}")

    @property
    def rows(self) -> int:
        """How many rows of metrics are written, those that waited included if there is room now."""
        self._metrics.flush()
        return self._rows - self.lost_rows

    def cut_metrics(self, rows: int) -> None:
        """Keep the first `rows` rows: what a killed run wrote after its checkpoint is written again."""
        path = self.path / METRICS
        lines = path.read_bytes().splitlines(keepends=True)[:rows] if path.exists() else []
        write_atomically(path, b"".join(lines))
        self._rows = len(lines)

    def log(self, row: Mapping[str, object]) -> None:
        """Append a row. A full disk does not end the run: rows wait in memory, and are written when there is room."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._rows += 1
        self._metrics.add((json.dumps(finite) + "\n").encode())

    def warn_once(self, name: str, error: OSError, consequence: str) -> None:
        """Log a warning that a file of the run could not be written; once for each file."""
        if name not in self._unwritten:
            self._unwritten.add(name)
            warn_unwritten(self.path / name, error, consequence)

    @property
    def lost_rows(self) -> int:
        """Rows that could not be written yet."""
        return len(self._metrics.waiting)


def is_run(path: Path) -> bool:
    """A folder with a `config.yaml` is a run."""
    return (path / CONFIG).is_file()


def check_run(path: Path) -> None:
    """Raise RunError unless the folder holds a run."""
    if not path.exists():
        raise RunError(f"there is no {path}; give a run folder")
    if not is_run(path):
        raise RunError(f"{path} is not a run folder: it has no {CONFIG}. Give a run folder")


def is_unused(path: Path) -> bool:
    """Whether a folder is missing, is empty, or holds only what a run that was killed in its first moments left."""
    if not path.exists():
        return True
    return path.is_dir() and {p.name for p in path.iterdir()} <= {".lock"} | {p.name for p in temporaries(path)}


def has_begun(path: Path) -> bool:
    """Whether a run in the folder is to go on: one that failed before its first checkpoint is made anew instead."""
    if not is_run(path):
        return False
    # its own checkpoints, or an earlier round's
    return read_status(path).get("state") != "failed" or any(path.rglob("checkpoints/step-*"))


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a run in today's format, its settings unchecked (`settings.files.run_config` checks).

    Raises:
        RunError: there is none, it cannot be read, a newer version wrote it, or it is not the mapping that a run has.
    """
    file = path / CONFIG
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            check_run(path)
        raise RunError(f"{file} cannot be read: {reason_of(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunError(f"{file} cannot be read: {_one_line(error)}") from error
    if not isinstance(config, dict):
        raise RunError(f"{file} is not a mapping of settings")
    for name, kind in (("method", str), ("data", str), ("about", dict)):
        if name in config and not isinstance(config[name], kind):
            raise RunError(
                f"{file}: {name!r} is {_one_line(config.get(name))}, which a run never writes: the file was "
                "edited or damaged"
            )
    try:
        return modern_config(config)
    except FormatError as error:
        raise RunError(f"{file}: {error}") from error


def _one_line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."


def read_status(path: Path) -> dict[str, Any]:
    """A run's status; empty where there is none yet."""
    try:
        status = json.loads((path / STATUS).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return status if isinstance(status, dict) else {}


def check_finished(path: Path) -> None:
    """Raise RunError where there is nothing, or a run not at its end: with the command that goes on with it."""
    if not path.exists():
        raise RunError(f"there is no {path}; give a run folder or a file made from one")
    if path.is_dir() and not is_run(path) and not (path / "backbone.json").exists():
        raise RunError(f"{path} is a folder without a run; give a run folder or a file made from one")
    state = read_status(path).get("state", "not begun") if is_run(path) else "finished"
    if state != "finished":
        command = read_config(path).get("about", {}).get("command", "its train command")
        raise RunError(f"{path} is not finished ({state}). Resume it with: {command}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """A run's rows of metrics."""
    file = path / METRICS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
