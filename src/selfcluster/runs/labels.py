"""The pseudo-labels that a run trained on: `labels/epoch-000012.parquet`, id and label, -1 = none.

A run keeps at most `MOST` files, and the first: of several assignments between two kept epochs the last one stays.
Each file carries the step of its assignment. A run that resumes removes what was written after its
checkpoint, and then writes the same bytes again. N images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfcluster.files import reason_of, write_atomically

FOLDER = "labels"
MOST = 32  # files of a run beside the first; a million images need about 5 MB each
_STEP = b"selfcluster.step"
_NAME = re.compile(r"epoch-(\d{6,})\.parquet")


def write_labels(run: Path, epoch: int, step: int, ids: Sequence[str], labels: np.ndarray, stride: int = 1) -> Path:
    """Write the labels (N,) of an epoch; return the file.

    Args:
        run: the run folder.
        epoch: in which the network learns these labels.
        step: before which they were assigned, or in which, where every step assigns.
        ids: (N,) of the images.
        labels: (N,) whole numbers, -1 = none.
        stride: epochs from one kept file to the next; earlier files since the last multiple are removed.
    """
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    table = pa.table({"id": ids[:], "label": np.asarray(labels, np.int32)})
    table = table.replace_schema_metadata({_STEP: str(step).encode()})
    path = folder / f"epoch-{epoch:06d}.parquet"
    write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"), size=table.nbytes)
    for other, file in label_files(run).items():
        if other < epoch and -(-other // stride) == -(-epoch // stride):
            file.unlink()
    return path


def label_files(run: Path) -> dict[int, Path]:
    """Return the files of a run by epoch, rising; empty where it keeps none."""
    folder = run / FOLDER
    names = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return dict(sorted((int(name[1]), path) for name, path in names if name))


def read_labels(path: Path) -> tuple[list[str], np.ndarray]:
    """Return ids (N,) and labels (N,) int64 of one file.

    Raises:
        ValueError: the file is no such table.
    """
    try:
        table: Any = pq.read_table(path, columns=["id", "label"])
        return table["id"].to_pylist(), table["label"].to_numpy().astype(np.int64)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path}: no table of labels ({reason_of(error)})") from error


def last_labels(run: Path) -> tuple[int, dict[str, int]] | None:
    """Return the last epoch that has labels, and each image's label by id; None where the run keeps none."""
    files = label_files(run)
    if not files:
        return None
    epoch, path = list(files.items())[-1]
    ids, labels = read_labels(path)
    return epoch, dict(zip(ids, labels.tolist(), strict=True))


def cut_labels(run: Path, step: int) -> None:
    """Remove the files of assignments from this step on: a run that resumes there writes them again."""
    for path in label_files(run).values():
        try:
            written = int((pq.read_schema(path).metadata or {})[_STEP])
        except (OSError, pa.ArrowException, KeyError, ValueError):
            written = step
        if written >= step:
            path.unlink()
