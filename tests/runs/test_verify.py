"""Every kind of damage to a run's files is found, and a whole run is whole."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from selfcluster.cli import main
from selfcluster.runs import checkpoint
from selfcluster.runs.folder import RunError
from selfcluster.runs.tables import ClusterTable, write_clusters
from selfcluster.runs.verify import verify_run


@pytest.fixture
def run(tmp_path, tiny):
    folder = tmp_path / "run"
    tiny("swav", folder, epochs=1)
    ids = [f"{n}" for n in range(6)]
    write_clusters(folder / "clusters.parquet", ClusterTable(ids, ids, np.arange(6) % 2, np.zeros(6, np.float32)))
    (folder / "curation.jsonl").write_text(
        json.dumps({"time": "2026-01-01T00:00:00", "action": "rename", "cluster": 0, "name": "a"}) + "\n"
    )
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "knn-1.json").write_text("{}")
    return folder


def damaged(run):
    return {each.name: each.why for each in verify_run(run) if each.state == "damaged"}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_end(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # in the tensors, which read as well as before
    path.write_bytes(data)


def test_what_a_finished_run_lacks_is_damage_and_json_lists_all(run, capsys):
    (run / "backbone.safetensors").unlink()
    assert damaged(run) == {"backbone.safetensors": "missing, though the run is finished"}
    capsys.readouterr()
    assert main(["verify", str(run), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["exit"]) == (False, 1)
    states = {row["name"]: row["state"] for row in told["result"]}
    assert [name for name, state in states.items() if state == "damaged"] == ["backbone.safetensors"]
    assert states["config.yaml"] == "read"
    (run / "backbone.json").unlink()
    (run / "clusters.parquet").unlink()
    assert set(damaged(run)) == {"backbone.safetensors", "backbone.json", "clusters.parquet"}


def test_the_networks_of_start_and_end_are_checked_too(run, tmp_path):
    for folder in ("start", "end"):
        (run / folder).mkdir(exist_ok=True)
        for name in ("backbone.json", "backbone.safetensors"):
            (run / folder / name).write_bytes((run / name).read_bytes())
        flip_end(run / folder / "backbone.safetensors")
    assert damaged(run) == {
        f"{folder}/backbone.safetensors": "its tensors are not those that were written" for folder in ("start", "end")
    }
    (run / "end" / "backbone.json").write_text("{")
    assert "end/backbone.json" in damaged(run)


def test_weights_that_are_none_cannot_be_read(run):
    (run / "backbone.safetensors").write_bytes(b"x" * 20)
    assert "cannot be read" in damaged(run)["backbone.safetensors"]


def test_each_kind_of_damage_is_found_and_nothing_is_changed(run, capsys):
    states = {each.name: each.state for each in verify_run(run)}
    assert not damaged(run)
    step = next(name for name in states if name.startswith("checkpoints/step-"))
    assert states[step] == states["embeddings.parquet"] == states["clusters.parquet"] == "whole"
    assert {"config.yaml", "status.json", "metrics.jsonl", "backbone.json", "backbone.safetensors"} <= set(states)
    assert main(["verify", str(run)]) == 0
    assert "none damaged" in capsys.readouterr().out
    original = run.with_name("original")
    shutil.copytree(run, original)
    kinds = {
        step: lambda: flip(run / step / "tensors.safetensors"),
        "embeddings.parquet": lambda: (run / "embeddings.parquet").write_bytes(b"PAR1"),
        "clusters.parquet": lambda: (run / "clusters.csv").write_text("id,path,cluster,distance\n"),
        "backbone.json": lambda: (run / "backbone.json").write_text("[]"),
        "backbone.safetensors": lambda: flip_end(run / "backbone.safetensors"),
        "metrics.jsonl": lambda: (run / "metrics.jsonl").write_text('{"step": 1}\n{"st'),
        "status.json": lambda: (run / "status.json").write_text(""),
        "evaluations/knn-1.json": lambda: (run / "evaluations" / "knn-1.json").write_text("{"),
        "curation.jsonl": lambda: (run / "curation.jsonl").write_text('{"action": "fly"}\n'),
        "config.yaml": lambda: (run / "config.yaml").write_text("[]"),
    }
    for name, damage in kinds.items():
        damage()
        assert set(damaged(run)) == {name}, name
        assert damaged(run)[name]
        shutil.rmtree(run)
        shutil.copytree(original, run)
    flip(run / step / "meta.json")
    assert main(["verify", str(run)]) == 1
    said = capsys.readouterr().err.replace("   ", "  ")
    assert f"{step}  DAMAGED: meta.json was altered: it has the size that the manifest names" in said


def test_row_39_verify_names_the_damaged_file_of_a_checkpoint_and_what_is_wrong(run):
    (step,) = (run / "checkpoints").glob("step-*")
    name, original = f"checkpoints/{step.name}", run.with_name("original")
    shutil.copytree(run, original)
    size = (step / "tensors.safetensors").stat().st_size
    kinds = {
        f"tensors.safetensors has {size - 1} bytes, and the manifest names {size}": lambda: os.truncate(
            step / "tensors.safetensors", size - 1
        ),
        "meta.json is missing": lambda: (step / "meta.json").unlink(),
        "manifest.json is missing": lambda: (step / "manifest.json").unlink(),
        "manifest.json cannot be read (Expecting value: line 1 column 1 (char 0))": lambda: (
            step / "manifest.json"
        ).write_text("x"),
        "manifest.json does not list tensors.safetensors and meta.json": lambda: (step / "manifest.json").write_text(
            "{}"
        ),
    }
    for why, damage in kinds.items():
        damage()
        assert damaged(run) == {name: why}
        assert checkpoint.load_newest(run / "checkpoints") == (None, [f"{step}: {why}"])
        shutil.rmtree(run)
        shutil.copytree(original, run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        verify_run(tmp_path)


@pytest.mark.parametrize("kind", ["file", "link", "empty folder"])
def test_what_stands_in_a_checkpoints_place_is_replaced(tmp_path, kind):
    older = checkpoint.save(tmp_path, 1, {"x": torch.ones(2)}, {})
    place = tmp_path / "step-000000002"
    if kind == "file":
        place.write_text("not a checkpoint")
    elif kind == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
    assert not checkpoint.is_whole(place)
    found, _ = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found.path == older
    assert checkpoint.save(tmp_path, 2, {"x": torch.zeros(2)}, {}) == place
    found, complaints = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert (found.path, complaints) == (place, [])
