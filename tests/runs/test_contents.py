"""A run folder is read without trust."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import yaml

from selfcluster.runs.contents import Vectors, read_contents
from tests.reporting.folders import make_run, write_vectors


def test_an_empty_folder_is_all_missing_and_every_file_has_a_command(tmp_path):
    contents = read_contents(tmp_path)
    names = [m.name for m in contents.missing]
    assert names == ["config.yaml", "status.json", "metrics.jsonl", "embeddings.parquet", "clusters.parquet"]
    assert [m.command.split()[0] for m in contents.missing] == ["train", "train", "train", "embed", "cluster"]
    assert {m.why for m in contents.missing} == {"not there"}


def test_no_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_contents(tmp_path / "nowhere")


def test_the_commands_name_the_method_and_the_data(tmp_path):
    run = make_run(tmp_path / "run", ["a", "b", "c"])
    (run / "clusters.parquet").unlink()
    (run / "embeddings.parquet").unlink()
    embed, cluster = read_contents(run).missing
    assert embed.command == f"embed {run} photos --out {run / 'embeddings.parquet'}"
    assert cluster.command == f"cluster {run}"


@pytest.mark.parametrize("state", ["running", "preempted", "failed"])
def test_what_an_unfinished_run_lacks_has_no_command(tmp_path, state):
    run = make_run(tmp_path / "run", ["a", "b", "c"])
    (run / "status.json").write_text(json.dumps({"state": state}))
    (run / "clusters.parquet").unlink()
    (run / "embeddings.parquet").unlink()
    assert [m.command for m in read_contents(run).missing] == ["", ""]  # `embed` and `cluster` would refuse


def test_commands_can_be_copied_into_a_shell(tmp_path):
    run = tmp_path / "my run; reboot"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"method": "swav", "data": {"data": "$(reboot)"}}))
    words = shlex.split({m.name: m.command for m in read_contents(run).missing}["embeddings.parquet"])
    assert words == ["embed", str(run), "$(reboot)", "--out", str(run / "embeddings.parquet")]


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "embeddings.parquet", "clusters.parquet"])
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe[1, {", b"[1, 2]"])
def test_a_damaged_file_is_reported_and_the_rest_is_read(tmp_path, name, damage):
    run = make_run(tmp_path / "run", ["a", "b", "c"])
    (run / name).write_bytes(damage)
    contents = read_contents(run)
    assert [m.name for m in contents.missing] == [name]
    assert contents.missing[0].why.startswith("cannot be read")
    assert contents.metrics["loss"][0].tolist() == list(range(40))


def test_metrics_keep_numbers_and_survive_a_torn_line(tmp_path):
    rows = [
        {"step": 0, "loss": 2.0, "note": "x", "flag": True},
        {"step": 5, "loss": None},
        {"step": 9, "loss": 1.0, "new": 4},
    ]
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"step": 12, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    contents = read_contents(tmp_path)
    assert set(contents.metrics) == {"loss", "new"}
    steps, values = contents.metrics["loss"]
    assert steps.tolist() == [0, 5, 9]
    np.testing.assert_array_equal(values, [2.0, np.nan, 1.0])
    assert contents.last("loss") == 1.0
    assert contents.last("note") is None


def test_vectors_are_taken_by_row_across_batches(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((20_000, 3)).astype(np.float32)
    write_vectors(tmp_path / "e.parquet", [f"{i:05}" for i in range(20_000)], vectors)
    read = Vectors(tmp_path / "e.parquet")
    rows = np.array([0, 8191, 8192, 16_384, 19_999])
    np.testing.assert_array_equal(read.take(rows), vectors[rows])
    assert (len(read), read.dim) == (20_000, 3)


def test_equal_vectors_are_copies_and_near_ones_are_not(tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 16)).astype(np.float32)
    vectors[[7, 30]] = vectors[2]
    vectors[40] = vectors[3] + 0.01
    vectors[45] = np.nan
    write_vectors(tmp_path / "e.parquet", [str(i) for i in range(50)], vectors)
    copies = Vectors(tmp_path / "e.parquet").copies
    assert copies[7] == copies[30] == copies[2]
    assert len(np.unique(copies)) == 48


def test_collapsed_vectors_are_not_called_copies(tmp_path):
    write_vectors(tmp_path / "e.parquet", [str(i) for i in range(30)], np.ones((30, 4), np.float32))
    assert len(np.unique(Vectors(tmp_path / "e.parquet").copies)) == 30


def test_ragged_vectors_are_refused(tmp_path):
    write_vectors(tmp_path / "embeddings.parquet", ["a", "b"], [[1.0, 2.0], [3.0]])
    missing = {m.name: m.why for m in read_contents(tmp_path).missing}
    assert "rows 0 to 1 differ in length" in missing["embeddings.parquet"]
