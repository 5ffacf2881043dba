"""Vectors from a column of a table or a .npy file, whoever wrote it: checked, and every refusal names the row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfcluster.files import reason_of

_BLOCK = 1 << 20  # numbers that are looked at together; four times as many added a tenth to the peak of memory
_LARGEST = float(np.finfo(np.float32).max)


def read_matrix(file: pq.ParquetFile, name: str, ids: Sequence[str], where: str) -> np.ndarray:
    """Return (n, F) float32 of a column of lists, as `to_matrix` does.

    Lists of float32 of one size, which is what this package writes, are read in blocks into the result: the vectors
    are in memory once. Other columns are read as a whole.
    """
    kind = file.schema_arrow.field(name).type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32() or not kind.list_size:
        return to_matrix(file.read([name])[name], ids, where)
    matrix = np.empty((len(ids), kind.list_size), np.float32)
    start = 0
    for batch in file.iter_batches(max(1, _BLOCK // kind.list_size), columns=[name]):
        column: Any = batch.column(0)
        values = column.flatten()
        if column.null_count or values.null_count:  # the message is made from the whole column
            return to_matrix(file.read([name])[name], ids, where)
        matrix[start : start + len(column)] = np.asarray(values).reshape(len(column), kind.list_size)
        start += len(column)
    return check_matrix(matrix, ids, where)


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
        raise ValueError(f"{path}: not a NumPy array of numbers ({reason_of(error)})") from error
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not matrix.shape[1]:
        shape = getattr(matrix, "shape", None)
        raise ValueError(
            f"{path}: an array of shape {shape}; needed is one row of numbers per image, (images, features)"
        )
    ids = [str(row) for row in range(len(matrix))]
    return ids, check_matrix(matrix, ids, str(path))


def check_matrix(matrix: np.ndarray, ids: Sequence[str], where: str) -> np.ndarray:
    """Return (n, F) numbers as float32; raise ValueError naming the first row that float32 cannot hold."""
    values = matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64)
    size = max(1, _BLOCK // max(1, values.shape[1]))  # blocks bound the memory of what is compared
    blocks = [values[i : i + size] for i in range(0, len(values), size)]
    _refuse(_rows(~np.isfinite(block) for block in blocks), ids, where, "a value that is NaN or infinite")
    if values.dtype.itemsize > 4:
        _refuse(_rows(np.abs(block) > _LARGEST for block in blocks), ids, where, "a value too large for float32")
    return values if values.dtype == np.float32 and values.flags.writeable else np.array(values, dtype=np.float32)


def _rows(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Which rows of blocks (b, F) bool have a True, (n,)."""
    return np.concatenate([np.zeros(0, bool), *(block.any(axis=1) for block in blocks)])


def _refuse(bad: Any, ids: Sequence[str], where: str, what: str) -> None:
    if bad.any():
        row, count = int(bad.argmax()), int(bad.sum())
        more = f", and {count - 1} more such rows" if count > 1 else ""
        raise ValueError(
            f"{where}: row {row} (id {ids[row]!r}) has {what}{more}; remove such rows, or embed these images again"
        )
