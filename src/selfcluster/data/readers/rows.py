"""Lists of images: a .txt with one path a line, or a .csv or .parquet table with one row per image."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import os
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from selfcluster.data import store
from selfcluster.data.errors import DataError
from selfcluster.data.listing import Listing
from selfcluster.data.names import Names, NameTable, to_id
from selfcluster.data.store import Info

LIST_SUFFIXES = (".txt", ".csv", ".parquet")
_MAX_FIELD = 1 << 27  # characters of one CSV field; Python's own limit of 131,072 refuses tables with long captions
_UNKNOWN = Info(0, 0)  # of a remote file: asking for each would be one request an image


def read_list(path: str, column: str | None = None) -> tuple[Listing, list[str] | None]:
    """Return the images that a list names, and the text of `column` for each.

    A .txt has one path a line. A .csv or .parquet has a column `path`, or its first column is taken; a .csv's first row
    is its header unless its first cell names an existing file. Paths are relative to the list's folder, or absolute.
    Text is UTF-8, or UTF-16 with a byte order mark. `column` may name several columns, separated by commas; their texts
    are joined by a tab.

    Raises:
        DataError: no path in the list, a file twice, no such column.
    """
    location = os.fsencode(path)
    folder = store.parent(store.absolute(location))
    rows = {".txt": _text_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[os.path.splitext(path)[1].lower()]
    columns = column.split(",") if column else []
    table, numbers, labels = NameTable(), array("q"), [] if columns else None
    for name, label in rows(path, folder, columns):
        table.append(name)
        if labels is not None:
            labels.append(label)
        numbers.extend(_info(store.join(folder, name)))
    names = table.finish()
    if not len(names):
        raise DataError(f"{path} names no images")
    order = names.order()
    names = names.take(order)
    _check_unique(path, folder, names)
    sizes, mtimes = np.array(numbers, dtype=np.int64).reshape(-1, 2)[order].T
    if (sizes < 0).all():
        raise DataError(
            f"none of the {len(names):,} files of {path} exists, e.g. {names[0]!r}; "
            f"paths are relative to {to_id(folder)}"
        )
    return Listing(names, sizes, mtimes), None if labels is None else [labels[i] for i in order]


def read_csv(path: str) -> Iterator[list[str]]:
    """Yield the rows of a .csv in UTF-8 or UTF-16; fields may be long. Raises DataError for a table that is broken."""
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        yield from csv.reader(io.StringIO(read_text(path), newline=""))
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from error
    finally:
        csv.field_size_limit(before)


def _info(location: bytes) -> Info:
    if store.is_remote(location):
        return _UNKNOWN
    with contextlib.suppress(OSError, ValueError):
        return store.info(location)[0]
    return Info(-1, -1)  # missing now; reading it says why


def _check_unique(path: str, folder: bytes, names: Names) -> None:
    """Raise DataError where two rows name one file, be it by a relative and an absolute path."""
    real: dict[bytes, bytes] = {}  # folders are resolved once each: a million paths share a thousand of them

    def whole(name: bytes) -> bytes:
        location = store.join(folder, name)
        if store.is_remote(location) or b"\0" in location:
            return location
        above, base = os.path.split(os.path.normpath(location))
        if above not in real:
            real[above] = os.path.realpath(above)
        return os.path.join(real[above], base)

    files = Names.of(whole(names.raw(i)) for i in range(len(names)))
    order = files.order()
    for first, second in zip(order[:-1].tolist(), order[1:].tolist()):
        if files.raw(first) == files.raw(second):
            other = "twice" if names.raw(first) == names.raw(second) else f"and {names[second]!r}, which are one file"
            raise DataError(
                f"{path} names {names[first]!r} {other}; "
                "each image must have exactly one row, with its file in the column `path`"
            )


def _text_rows(path: str, folder: bytes, columns: list[str]) -> Iterator[tuple[bytes, str]]:
    if columns:
        raise DataError(f"{path} is a plain list of paths and has no column {columns[0]!r}; use a .csv or .parquet")
    with store.open_file(os.fsencode(path)) as file:
        data = file.read()
    if _encoding(data) != "utf-8":
        data = data.decode(_encoding(data), "replace").encode()
    for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n"):
        if name := line.rstrip(b"\r"):
            yield name, ""


def _csv_rows(path: str, folder: bytes, columns: list[str]) -> Iterator[tuple[bytes, str]]:
    rows = read_csv(path)
    first = next(rows, [])
    headed = "path" in first or not (first and os.path.isfile(store.join(folder, os.fsencode(first[0]))))
    where, labels = _columns(path, first if headed else [], columns)
    most = max(where, *labels, 0)
    all_rows: Iterable[list[str]] = rows if headed else (first, *rows)
    for number, row in enumerate(all_rows, start=2 if headed else 1):
        if len(row) > most:
            yield row[where].encode("utf-8", "surrogateescape"), "\t".join(row[k] for k in labels)
        elif row:
            raise DataError(f"{path} line {number}: {len(row)} columns, {most + 1} are needed")


def _parquet_rows(path: str, folder: bytes, columns: list[str]) -> Iterator[tuple[bytes, str]]:
    import pyarrow.parquet as parquet

    with store.open_file(os.fsencode(path)) as opened, parquet.ParquetFile(opened) as file:
        header = file.schema_arrow.names
        where, labels = _columns(path, header, columns)
        requested = [header[k] for k in dict.fromkeys((where, *labels))]
        for batch in file.iter_batches(columns=requested):
            names = batch.column(header[where]).to_pylist()
            texts = [batch.column(header[k]).to_pylist() for k in labels]
            for name, *values in zip(names, *texts):
                text = "\t".join("" if value is None else str(value) for value in values)
                yield name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape"), text


def _columns(path: str, header: list[str], columns: list[str]) -> tuple[int, list[int]]:
    where = header.index("path") if "path" in header else 0
    for column in columns:
        if column not in header:
            raise DataError(f"{path} has no column {column!r}; its columns are {', '.join(header) or 'unnamed'}")
    return where, [header.index(column) for column in columns]


def read_text(path: str) -> str:
    """Return the text of a file in UTF-8 or UTF-16; bytes that are neither become lone surrogates."""
    with store.open_file(os.fsencode(path)) as file:
        data = file.read()
    return data.decode(_encoding(data), "surrogateescape").removeprefix("\ufeff")


def _encoding(data: bytes) -> str:
    """UTF-16 by its byte order mark, or by a first letter of which one byte is zero; else UTF-8."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if len(data) >= 4 and data[1] == data[3] == 0 != data[0]:
        return "utf-16-le"
    if len(data) >= 4 and data[0] == data[2] == 0 != data[1]:
        return "utf-16-be"
    return "utf-8"
