"""Checkpoints that are whole or absent: safetensors and JSON under a hash manifest, never a pickle.

A checkpoint is a folder `step-000000123/` with `tensors.safetensors`, `meta.json` and `manifest.json` (sha256 and size
of both). It is written under a temporary name, flushed to disk, renamed, and only then are older ones pruned: at every
instant the newest complete folder is valid. Loading checks the manifest and falls back to the one before. What only
some processes hold lies beside it, in `shard-000/step-000000123/` and so on, as many as `meta.json` says.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfcluster.files import reason_of
from selfcluster.runs.formats import FORMAT, FormatError, modern_meta, modern_tensors

_TENSORS, _META, _MANIFEST = "tensors.safetensors", "meta.json", "manifest.json"


class BrokenCheckpoint(RuntimeError):
    """A checkpoint folder that is not what its manifest says; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded: tensors by name, the JSON beside them, and from which folder."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


def save(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    meta: Mapping[str, object],
    keep: int = 2,
    replace: bool = False,
) -> Path:
    """Write `folder/step-*` and return its path. Later ones are removed, since the run has gone back behind them.

    Args:
        folder: of all checkpoints.
        step: how many steps are done.
        tensors: by name.
        meta: what JSON can hold.
        keep: how many of the newest stay.
        replace: write it anew where there is a whole one of this step.

    Raises:
        OSError: the disk is full; gives the bytes needed and free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:09d}"
    if final.is_symlink() or final.is_file():
        final.unlink()  # no checkpoint is a file or a link
    if final.exists() and not replace and is_whole(final):
        return final  # a run that went back to an earlier one has come here again
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    # copies: two names may share memory and views may be strided, which the format does not store
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        temporary.mkdir()
        save_file(stored, temporary / _TENSORS)
        (temporary / _META).write_text(json.dumps({"format": FORMAT, **meta}))
        manifest = {name: _fingerprint(temporary / name) for name in (_TENSORS, _META)}
        (temporary / _MANIFEST).write_text(json.dumps(manifest))
        for name in (_TENSORS, _META, _MANIFEST):
            _flush(temporary / name)
        _flush(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for t in stored.values())
        free = shutil.disk_usage(folder).free
        raise OSError(f"{final}: not saved, {needed:,} bytes needed and {free:,} free ({reason_of(error)})") from error
    _flush(folder)
    complete = _complete(folder)
    at = complete.index(final)
    # later ones were broken, or the run would have gone on from them
    for useless in complete[: max(0, at + 1 - keep)] + complete[at + 1 :]:
        shutil.rmtree(useless)
    return final


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, or None, and what is wrong with any newer one, in words."""
    complaints = []
    for path in reversed(_complete(folder)):
        try:
            found = load(path)
            for number in range(found.meta.get("shards", 0)):
                _verify(shard(folder, number) / path.name)
            return found, complaints
        except BrokenCheckpoint as error:
            complaints.append(str(error))
    return None, complaints


def load(path: Path) -> Checkpoint:
    """One checkpoint without its shards, verified against its manifest; raises BrokenCheckpoint."""
    _verify(path)
    written = _meta(path)
    try:
        tensors = modern_tensors(load_file(path / _TENSORS), written.get("format", 0))
        return Checkpoint(tensors, modern_meta(written), path)
    except (FileNotFoundError, SafetensorError, FormatError) as error:
        raise BrokenCheckpoint(f"{path}: cannot be read ({reason_of(error)})") from error


def newest_settings(folder: Path) -> dict[str, object]:
    """Return the settings that the newest whole checkpoint was made with; empty where there is none or it has none."""
    for path in reversed(_complete(folder)):
        if is_whole(path):
            return _meta(path).get("settings", {})
    return {}


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / _META).read_text())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{path}: cannot be read ({reason_of(error)})") from error
    if not isinstance(meta, dict):
        raise BrokenCheckpoint(f"{path / _META}: not an object")
    return meta


def shard(folder: Path, number: int) -> Path:
    """Where the checkpoints of a shard lie."""
    return folder / f"shard-{number:03d}"


def clean(folder: Path, step: int) -> None:
    """Remove what a killed process left half-written, and what shards hold of steps after the one that goes on."""
    for path in (*folder.glob(".step-*"), *folder.glob("shard-*/.step-*")):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("shard-*/step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path, ignore_errors=True)


def damage(path: Path) -> str:
    """Return what is wrong with a checkpoint, with the file's name within its folder; empty if nothing is.

    Raises:
        OSError: the disk cannot be read, which says nothing about the file.
    """
    name = _MANIFEST
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if not isinstance(manifest, dict) or not {_TENSORS, _META} <= manifest.keys():
            return f"{_MANIFEST} does not list {_TENSORS} and {_META}"
        for name, expected in manifest.items():
            actual = _fingerprint(path / name)
            if actual != expected:
                return f"{name} {_difference(actual, expected)}"
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing" if path.is_dir() else "there is no such folder"
    except (ValueError, RecursionError) as error:
        return f"{name} cannot be read ({reason_of(error)})"
    return ""


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is what its manifest says."""
    return not damage(path)


def _verify(path: Path) -> None:
    why = damage(path)
    if why:
        raise BrokenCheckpoint(f"{path}: {why}")


def _difference(actual: Mapping[str, object], expected: object) -> str:
    size = expected.get("bytes") if isinstance(expected, dict) else None
    if size == actual["bytes"]:
        return "was altered: it has the size that the manifest names, but another SHA-256"
    return f"has {actual['bytes']} bytes, and the manifest names {size}"


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit())


def _fingerprint(path: Path) -> dict[str, str | int]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
