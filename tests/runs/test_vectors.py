"""Embeddings of other tools: every layout of lists is read, and a row that cannot be used is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfcluster.cli import main
from selfcluster.runs import vectors
from selfcluster.runs.tables import read_embeddings

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = ["a", "b", "c", "d"]


def table(path, column, ids=IDS):
    pq.write_table(pa.table({"id": ids, "vector": column}), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float16()), pa.large_list(pa.float32()),
        pa.list_(pa.float32(), 3), pa.list_(pa.int64()),
    ],
)  # fmt: skip
def test_lists_of_any_kind_are_read(tmp_path, kind):
    values = ROWS.astype(np.float16) if kind.value_type == pa.float16() else ROWS
    lists = [list(row) for row in values] if kind.value_type == pa.float16() else values.tolist()
    lists = [[int(x) for x in row] for row in lists] if kind.value_type == pa.int64() else lists
    found = read_embeddings(table(tmp_path / "t.parquet", pa.array(lists, kind)))
    np.testing.assert_array_equal(found.vectors, ROWS)
    assert found.vectors.dtype == np.float32
    assert found.ids == IDS


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, "no vector"),
        ([1.0, 2.0], "a vector of another length than 3"),
        ([1.0, 2.0, 3.0, 4.0], "a vector of another length than 3"),
        ([1.0, None, 3.0], "a vector with a missing value"),
        ([1.0, float("nan"), 3.0], "a value that is NaN or infinite"),
        ([1.0, float("inf"), 3.0], "a value that is NaN or infinite"),
        ([1.0, 1e300, 3.0], "a value too large for float32"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, words):
    lists = ROWS.tolist()
    lists[2] = row
    path = table(tmp_path / "t.parquet", pa.array(lists, pa.list_(pa.float64())))
    with pytest.raises(ValueError, match=rf"t\.parquet: row 2 \(id 'c'\) has {words}"):
        read_embeddings(path)
    lists[3] = row
    with pytest.raises(ValueError, match="row 2 .*and 1 more such rows" if row is None else "row [02] "):
        read_embeddings(table(tmp_path / "t.parquet", pa.array(lists, pa.list_(pa.float64()))))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, "no vector"),
        ([1.0, None, 3.0], "a vector with a missing value"),
        ([1.0, float("nan"), 3.0], "a value that is NaN or infinite"),
    ],
)
def test_a_row_of_our_own_layout_is_named_too(tmp_path, monkeypatch, row, words):
    """Lists of one size are read in blocks, here of two rows: the number of the row counts over all of them."""
    monkeypatch.setattr(vectors, "_BLOCK", 6)
    lists = ROWS.tolist()
    path = table(tmp_path / "t.parquet", pa.array(lists, pa.list_(pa.float32(), 3)))
    np.testing.assert_array_equal(read_embeddings(path).vectors, ROWS)
    lists[2] = row
    with pytest.raises(ValueError, match=rf"t\.parquet: row 2 \(id 'c'\) has {words}"):
        read_embeddings(table(tmp_path / "t.parquet", pa.array(lists, pa.list_(pa.float32(), 3))))


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from selfcluster.runs.tables import read_embeddings, write_embeddings

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

path, ids = Path(sys.argv[1]), [str(i) for i in range(100_000)]
if len(sys.argv) > 2:
    rows = np.ones((100_000, 800), np.float32)
    before = peak()
    write_embeddings(path, ids, ids, rows)
else:
    before = peak()
    read_embeddings(path)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
def test_vectors_are_in_memory_once(tmp_path):
    """320 MB of vectors: writing holds a fraction of them in addition, reading holds them and a fraction more."""
    size, path = 100_000 * 800 * 4, str(tmp_path / "t.parquet")
    written, read = (
        int(subprocess.run([sys.executable, "-c", MEMORY, path, *more], capture_output=True, check=True).stdout)
        for more in (["write"], [])
    )
    assert written < 0.4 * size
    assert size <= read < 1.5 * size


def test_other_columns_are_refused_with_their_type(tmp_path):
    for column, words in ((IDS, "holds string"), ([["x"]] * 4, "vectors hold string"), ([1.0] * 4, "holds double")):
        with pytest.raises(ValueError, match=words):
            read_embeddings(table(tmp_path / "t.parquet", column))


def test_a_file_with_damaged_values_is_named(tmp_path):
    """Its end, which describes the columns, is whole; the values are not."""
    path = table(tmp_path / "t.parquet", pa.array(ROWS.tolist(), pa.list_(pa.float32(), 3)))
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 300 + content[304:])
    with pytest.raises(ValueError, match=r"t\.parquet: not a Parquet table"):
        read_embeddings(path)


def test_numpy_files_are_read(tmp_path):
    np.save(tmp_path / "v.npy", ROWS.astype(np.float64))
    found = read_embeddings(tmp_path / "v.npy")
    np.testing.assert_array_equal(found.vectors, ROWS)
    assert found.ids == ["0", "1", "2", "3"]
    for wrong in (np.zeros(3), np.array([["a"]]), np.zeros((2, 2), complex), np.array([None])):
        np.save(tmp_path / "w.npy", wrong, allow_pickle=True)
        with pytest.raises(ValueError, match=r"w\.npy: "):
            read_embeddings(tmp_path / "w.npy")


def test_the_command_clusters_them(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", np.concatenate([rng.normal(c, 0.1, (20, 8)) for c in (0, 5, 9)]))
    assert main(["cluster", str(tmp_path / "v.npy"), "--k", "3"]) == 0
    assert "60 images in 3 clusters of " in capsys.readouterr().out
    path = table(tmp_path / "null.parquet", pa.array([[1.0], None, [2.0], [3.0]]))
    assert main(["cluster", str(path), "--k", "2"]) == 2
    assert "row 1 (id 'b') has no vector" in capsys.readouterr().err


def test_a_warning_of_every_restart_is_printed_once(tmp_path, capfd):
    path = table(tmp_path / "dup.parquet", np.repeat(np.eye(2), 2, axis=0).tolist())
    assert main(["cluster", str(path), "--k", "3"]) == 0
    printed = capfd.readouterr().err
    assert printed.count("fewer than n_clusters=3") == 1
    assert "UserWarning" not in printed
