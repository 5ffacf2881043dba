"""`selfcluster sort`, `sample`, `export --format` of clusters, `report --apply` and `search --out`, as typed."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfcluster import api
from selfcluster.cli import main
from selfcluster.runs.curation import CURATION, append_rows
from selfcluster.runs.groups import read_groups
from selfcluster.runs.tables import read_clusters
from tests.conftest import TINY, TINY_SETTINGS


def trained(root, pictures, pack=False):
    for i, picture in enumerate(pictures):
        folder = root / ("photos/left" if i % 2 else "photos/right")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i // 2:02d}.png")
    data = root / "photos"
    if pack:
        data = root / "photos.tar"
        with tarfile.open(data, "w") as tar:
            tar.add(root / "photos", "photos")
    api.train("swav", data, out=root / "run", **(TINY | TINY_SETTINGS["swav"]))
    return root


@pytest.fixture(scope="module")
def kept(tmp_path_factory, pictures):
    return trained(tmp_path_factory.mktemp("sort"), pictures)


@pytest.fixture
def root(kept, tmp_path):
    shutil.copytree(kept / "run", tmp_path / "run")
    config = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(config.replace(str(kept), str(tmp_path)))
    shutil.copytree(kept / "photos", tmp_path / "photos")
    return tmp_path


def files(folder):
    return {str(f.relative_to(folder)) for f in Path(folder).rglob("*") if not f.is_dir() and f.name != "sorted.csv"}


def test_every_image_is_in_the_folder_of_its_cluster(root):
    result = api.sort(root / "run", root / "out", how="copy")
    groups = read_groups(root / "run")
    names = groups.folder_names()
    rows = [line.split(",") for line in (root / "out/sorted.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == groups.ids
    assert result["images"] == len(groups) == result["done"]
    for (name, origin, target), number in zip(rows, groups.clusters, strict=True):
        assert target.startswith(names[int(number)] + "/")
        assert (
            (root / "out" / target).read_bytes() == (root / "photos" / name).read_bytes() == Path(origin).read_bytes()
        )
    assert files(root / "out") == {row[2] for row in rows}


@pytest.mark.parametrize("how", ["link", "copy", "move"])
def test_a_second_run_changes_nothing_and_an_interrupted_one_goes_on(root, how):
    first = api.sort(root / "run", root / "out", how=how)
    before = {name: os.lstat(root / "out" / name).st_mtime_ns for name in files(root / "out")}
    again = api.sort(root / "run", root / "out", how=how)
    assert (again["done"], again["kept"]) == (0, first["images"])
    assert before == {name: os.lstat(root / "out" / name).st_mtime_ns for name in files(root / "out")}
    if how != "move":
        some = sorted(before)[0]
        (root / "out" / some).unlink()
        assert api.sort(root / "run", root / "out", how=how)["done"] == 1
        assert files(root / "out") == set(before)
    assert len(files(root / "photos")) == (0 if how == "move" else first["images"])


def test_a_strange_file_is_not_overwritten(root):
    steps = api.sort(root / "run", root / "plan", how="copy")
    target = sorted(files(root / "plan"))[0]
    (root / "out" / target).parent.mkdir(parents=True)
    (root / "out" / target).write_text("mine")
    with pytest.raises(ValueError, match="exists and is not the image"):
        api.sort(root / "run", root / "out", how="copy")
    assert files(root / "out") == {target}
    assert (root / "out" / target).read_text() == "mine"
    assert steps["images"]


def test_no_link_leads_out_of_the_folder(root):
    name = next(iter(read_groups(root / "run").folder_names().values()))
    (root / "elsewhere").mkdir()
    (root / "out").mkdir()
    (root / "out" / name).symlink_to(root / "elsewhere")
    with pytest.raises(ValueError, match="leads out of"):
        api.sort(root / "run", root / "out", how="copy")
    assert not list((root / "elsewhere").iterdir())


def test_names_and_rubbish_decide_the_folders(root):
    table = read_clusters(root / "run/clusters.parquet")
    start = dict(zip(table.ids, table.clusters.tolist(), strict=True))
    first, *others = sorted({number for number in start.values() if number >= 0})
    rows = [{"action": "rename", "cluster": first, "name": "../cats"}]
    rows += [{"action": "rubbish", "cluster": number} for number in others]
    append_rows(root / "run", rows, start)
    assert list(api.sort(root / "run", root / "out")["folders"]) == ["_cats"]
    with pytest.raises(ValueError, match="holds images sorted by an earlier clustering"):
        api.sort(root / "run", root / "out", rubbish=True)


def test_moving_needs_a_yes(root, capsys):
    assert main(["sort", str(root / "run"), "--into", str(root / "out"), "--move"]) == 2
    assert "add --yes" in capsys.readouterr().err
    assert len(files(root / "photos")) == len(read_groups(root / "run"))
    assert not (root / "out").exists()
    assert main(["sort", str(root / "run"), "--into", str(root / "out"), "--dry-run"]) == 0
    assert not (root / "out").exists()


def test_images_in_a_tar_can_be_copied_only(tmp_path, pictures):
    root = trained(tmp_path, pictures, pack=True)
    with pytest.raises(ValueError, match="use --copy"):
        api.sort(root / "run", root / "out")
    count = api.sort(root / "run", root / "out", how="copy")["images"]
    contents = sorted((root / "out" / name).read_bytes() for name in files(root / "out"))
    assert contents == sorted(f.read_bytes() for f in (root / "photos").rglob("*.png"))
    assert len(contents) == count


def test_a_sample_takes_clusters_alike_and_can_be_read_back(root, capsys):
    groups = read_groups(root / "run")
    sizes = np.unique(groups.clusters[groups.clusters >= 0], return_counts=True)[1]
    n = min(8, int(sizes.sum()))
    rows = api.sample(root / "run", n, out=root / "some.csv")
    assert len({row["id"] for row in rows}) == n
    counts = np.unique([row["cluster"] for row in rows], return_counts=True)[1]
    assert counts.max() - min(counts.min(), sizes.min()) <= max(1, counts.max() - sizes.min())
    assert (root / "some.csv").read_text().splitlines()[0] == "id,path,cluster,name"
    assert rows == api.sample(root / "run", n)
    first = {row["cluster"]: row["id"] for row in reversed(rows)}
    for number, name in first.items():
        members = np.flatnonzero(groups.clusters == number)
        assert groups.ids[members[groups.distances[members].argmin()]] == name
    assert main(["sample", str(root / "run"), "--n", "100000"]) == 2
    assert "the number of images in clusters" in capsys.readouterr().err


def test_clusters_are_exported_in_every_form(root, capsys):
    count = len(read_groups(root / "run"))
    for format in ("csv", "parquet", "coco", "fiftyone", "label-studio", "contact-sheets"):
        result = api.export(root / "run", format=format)
        assert result["images"] == count
        assert Path(result["out"]).exists()
    content = json.loads((root / "run/export/coco.json").read_text())
    with Image.open(content["images"][0]["file_name"]) as image:
        assert image.size == (content["images"][0]["width"], content["images"][0]["height"])
    sheets = list((root / "run/export/contact-sheets").iterdir())
    assert len(sheets) == len(read_groups(root / "run").numbers) + 1
    assert (root / "run/export/contact-sheets/contact-sheets.pdf").read_bytes()[:5] == b"%PDF-"
    assert main(["export", str(root / "run"), "--format", "csv", "--out", str(root / "x.csv")]) == 0
    assert f"{count} images in" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"must end in \.json"):
        api.export(root / "run", root / "x.txt", format="coco")
    with pytest.raises(ValueError, match="choose one of safetensors"):
        api.export(root / "run", format="xml")


def test_downloaded_decisions_are_applied_once(root):
    number = int(read_clusters(root / "run/clusters.parquet").clusters.max())
    row = {"time": "2026-01-01T00:00:00+00:00", "action": "rename", "cluster": number, "name": "cats"}
    (root / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for _ in range(2):
        assert main(["report", str(root / "run"), "--apply", str(root / "rows.jsonl")]) == 0
        assert len((root / "run" / CURATION).read_text().splitlines()) == 1
    (root / "bad.jsonl").write_text(json.dumps(row | {"cluster": 999}) + "\n")
    assert main(["report", str(root / "run"), "--apply", str(root / "bad.jsonl")]) == 2
    assert len((root / "run" / CURATION).read_text().splitlines()) == 1


def test_new_clusters_set_old_decisions_aside(root):
    start = dict.fromkeys(read_clusters(root / "run/clusters.parquet").ids, 0)
    append_rows(root / "run", [{"action": "rename", "cluster": 0, "name": "cats"}], start)
    api.cluster(root / "run", k=2)
    assert not (root / "run" / CURATION).exists()
    assert (root / "run/curation-1.jsonl").exists()


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_search_writes_its_rows(root, ending):
    hits = api.search(root / "run", root / "photos/left/00.png", k=3, out=root / f"hits.{ending}")
    if ending == "json":
        assert json.loads((root / "hits.json").read_text()) == list(hits)
    else:
        import pyarrow.csv
        import pyarrow.parquet as pq

        read = pq.read_table if ending == "parquet" else pyarrow.csv.read_csv
        assert read(root / f"hits.{ending}")["id"].to_pylist() == [hit["id"] for hit in hits]
    with pytest.raises(ValueError, match="must end in"):
        api.search(root / "run", root / "photos/left/00.png", out=root / "x.txt")
