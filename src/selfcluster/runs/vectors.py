"""Vectors from a column of a table or a .npy file, whoever wrote it: checked, and every refusal names the row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

_LARGEST = float(np.finfo(np.float32).max)


def to_matrix(column: pa.ChunkedArray, ids: Sequence[str], where: str) -> np.ndarray:
    """Return (n, F) float32 of a column of lists, of fixed size or not, of any numbers.

    Args:
        column: n lists.
        ids: of the rows, for the messages.
        where: the file, for the messages.

    Raises:
        ValueError: a row without a vector, of another length, or with a value that is missing, NaN, infinite or beyond
            float32; a column of anything else. The message names the first such row and counts them.
    """
    kind = column.type
    lists: Any = pa.types
    if not (lists.is_list(kind) or lists.is_large_list(kind) or lists.is_fixed_size_list(kind)):
        raise ValueError(f"{where}: the column of vectors holds {kind}; lists of numbers are needed")
    if not (lists.is_floating(kind.value_type) or lists.is_integer(kind.value_type)):
        raise ValueError(f"{where}: the vectors hold {kind.value_type}; numbers are needed")
    rows = column.combine_chunks()
    _refuse(np.asarray(rows.is_null()), ids, where, "no vector")
    if lists.is_fixed_size_list(kind):
        widths = np.full(len(rows), kind.list_size)
    else:
        widths = np.asarray(rows.value_lengths(), dtype=np.int64)
    if not len(rows):
        return np.zeros((0, 0), np.float32)
    width = int(np.bincount(widths).argmax())  # most rows have it
    _refuse(widths != width, ids, where, f"a vector of another length than {width}, which most have")
    if not width:
        raise ValueError(f"{where}: the vectors have no values")
    values = rows.flatten()
    missing = np.any(np.asarray(values.is_null()).reshape(len(rows), width), axis=1)
    _refuse(missing, ids, where, "a vector with a missing value")
    return check_matrix(np.asarray(values).reshape(len(rows), width), ids, where)


def read_npy(path: Path) -> tuple[list[str], np.ndarray]:
    """Return ids ("0", "1", ...) and (n, F) float32 of a .npy file; raise ValueError where it holds anything else."""
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a NumPy array of numbers ({error})") from error
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not matrix.shape[1]:
        shape = getattr(matrix, "shape", None)
        raise ValueError(f"{path}: an array of shape {shape}; vectors are an array of numbers (images, features)")
    ids = [str(row) for row in range(len(matrix))]
    return ids, check_matrix(matrix, ids, str(path))


def check_matrix(matrix: np.ndarray, ids: Sequence[str], where: str) -> np.ndarray:
    """Return (n, F) numbers as float32; raise ValueError naming the first row that float32 cannot hold."""
    values = matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64)
    _refuse(np.any(~np.isfinite(values), axis=1), ids, where, "a value that is NaN or infinite")
    if values.dtype.itemsize > 4:
        _refuse(np.any(np.abs(values) > _LARGEST, axis=1), ids, where, "a value too large for float32")
    return np.array(values, dtype=np.float32)


def _refuse(bad: Any, ids: Sequence[str], where: str, what: str) -> None:
    if bad.any():
        row, count = int(bad.argmax()), int(bad.sum())
        more = f", and {count - 1} more such rows" if count > 1 else ""
        raise ValueError(
            f"{where}: row {row} (id {ids[row]!r}) has {what}{more}; remove such rows, or embed these images again"
        )
