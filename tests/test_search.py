"""`selfcluster search RUN IMAGE` and `selfcluster export --format onnx`, as typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfcluster import api
from selfcluster.cli import main
from selfcluster.runs.tables import read_clusters, read_embeddings
from tests.conftest import TINY, TINY_SETTINGS


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures):
    root = tmp_path_factory.mktemp("search")
    (root / "photos").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(root / f"photos/{i:02d}.png")
    settings = TINY | TINY_SETTINGS["swav"]
    api.train("swav", root / "photos", out=root / "run", **settings)
    return root / "run"


def test_rows_are_the_nearest_by_cosine(run, tmp_path, pictures):
    picture = pictures[5][::-1]  # none of the run's
    Image.fromarray(picture).save(tmp_path / "query.png")
    rows = api.search(run, tmp_path / "query.png", k=7)
    table, clusters = read_embeddings(run / "embeddings.parquet"), read_clusters(run / "clusters.parquet")
    query = api.embed(run, picture[None])["vectors"][0].astype(float)
    cosines = table.vectors @ query / np.linalg.norm(table.vectors, axis=1) / np.linalg.norm(query)
    best = np.argsort(-cosines)[:7]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["id"] for row in rows] == [table.ids[i] for i in best]
    assert [row["cluster"] for row in rows] == [clusters.clusters[i] for i in best]
    assert [row["cosine"] for row in rows] == pytest.approx(cosines[best], abs=1e-5)


def test_an_image_of_the_run_finds_itself(run, capsys):
    path = run.parent / "photos/11.png"
    assert main(["search", str(run), str(path), "--k", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["result"]
    assert len(rows) == 3
    assert (rows[0]["rank"], rows[0]["id"]) == (1, "11.png")
    assert rows[0]["cosine"] == pytest.approx(1, abs=1e-3)
    assert Path(rows[0]["path"]).samefile(path)


def test_the_table_has_a_line_an_image(run, capsys):
    assert main(["search", str(run), str(run.parent / "photos/11.png")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["rank", "cosine", "cluster", "path"]
    assert len(lines) == 10
    assert lines[0].endswith("photos/11.png")


def test_searching_leaves_the_run_as_it_was(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    api.search(run, run.parent / "photos/00.png")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_gray_and_other_sizes_are_taken(run, tmp_path):
    Image.fromarray(np.full((90, 40), 130, np.uint8)).save(tmp_path / "gray.jpg")
    assert len(api.search(run, tmp_path / "gray.jpg", k=48)) == 48


def test_what_cannot_be_searched_is_refused(run, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    picture = str(run.parent / "photos/00.png")
    for words, said in [
        ([str(run), str(tmp_path / "broken.jpg")], "broken.jpg cannot be used"),
        ([str(run), str(tmp_path / "nowhere.png")], "nowhere.png: No such file"),
        ([str(tmp_path / "no-run"), picture], "there is no run folder"),
        (["starter", picture], "there is no run folder starter; give a run folder, or images"),
        ([str(run), picture, "--k", "49"], "--k 49: "),
        ([str(run), picture, "--k", "0"], "must be from 1 to 48, the number of embedded images"),
    ]:
        assert main(["search", *words]) == 2
        assert said in capsys.readouterr().err


def test_export_as_onnx(run, tmp_path, capsys):
    pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    assert main(["export", str(run), "--format", "onnx", "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["result"]
    assert said["weights"] == str(tmp_path / "backbone.onnx")
    table = read_embeddings(run / "embeddings.parquet")
    images = np.stack(
        [np.asarray(Image.open(run.parent / "photos" / name)) for name in table.ids[:4]]
    )  # (4, 16, 16, 3)
    normalized = (images / 255 - json.loads(said["mean"])) / json.loads(said["std"])
    given = normalized.transpose(0, 3, 1, 2).astype(np.float32)
    (features,) = ReferenceEvaluator(said["weights"]).run(None, {"images": given})
    np.testing.assert_allclose(features, table.vectors[:4], atol=1e-4 * np.abs(features).max())
    assert main(["export", str(run), "--format", "onyx"]) == 2
    assert "--format onyx: choose one of safetensors, onnx, csv" in capsys.readouterr().err
