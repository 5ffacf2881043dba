import json
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from selfcluster.runs import exchange
from selfcluster.runs.curation import append_rows
from selfcluster.runs.folder import RunError
from selfcluster.runs.groups import Groups, read_groups, safe_name
from selfcluster.runs.tables import CLUSTERS, ClusterTable, write_clusters

IDS = ["a.jpg", "b.jpg", "sub/c.jpg", "d.jpg"]


@pytest.fixture
def run(tmp_path):
    paths = [f"/data/{name}" for name in IDS]
    write_clusters(tmp_path / CLUSTERS, ClusterTable(IDS, paths, np.array([0, 1, 2, -1]), np.zeros(4, np.float32)))
    return tmp_path


def curate(run, *rows):
    append_rows(run, rows, dict(zip(IDS, [0, 1, 2, -1], strict=True)))
    return read_groups(run)


def test_without_decisions_the_groups_are_the_table(run):
    groups = read_groups(run)
    assert groups.clusters.tolist() == [0, 1, 2, -1]
    assert groups.ids == IDS
    assert [groups.name_of(number) for number in groups.numbers] == [
        "no cluster",
        "cluster 0",
        "cluster 1",
        "cluster 2",
    ]


def test_names_merges_splits_and_rubbish_count(run):
    groups = curate(
        run,
        {"action": "rename", "cluster": 0, "name": "cats"},
        {"action": "merge", "cluster": 1, "into": 0},
        {"action": "split", "cluster": 0, "images": ["b.jpg"], "name": "black cats"},
        {"action": "rubbish", "cluster": 2},
        {"action": "select", "images": ["d.jpg"]},
    )
    assert groups.clusters.tolist() == [0, 3, 2, -1]
    assert (groups.name_of(0), groups.name_of(3)) == ("cats", "black cats")
    assert groups.without_rubbish().ids == ["a.jpg", "b.jpg", "d.jpg"]
    assert groups.selected == ("d.jpg",)


def test_a_run_without_clusters_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"there is no .*nowhere; give a run folder"):
        read_groups(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is not a run folder"):
        read_groups(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunError, match=r"has no clusters\.parquet; make it with: selfcluster cluster"):
        read_groups(tmp_path)


@pytest.mark.parametrize("text", ["../../etc", "a/b\\c", "nul.txt", "x" * 500, "é" * 300, "..", "a\x00b", " . "])
def test_a_folder_name_is_one_part_of_a_path(text):
    name = safe_name(text)
    assert not set(name) & set('/\\:*?"<>|\x00')
    assert name not in (".", "..")
    assert len(name.encode()) <= 101
    assert name == name.strip()
    assert not name.endswith(".")


def test_folders_are_told_apart_without_case():
    groups = Groups(list("abc"), list("abc"), np.array([0, 1, 12]), np.zeros(3), {0: "Cats", 1: "cats"})
    assert groups.folder_names() == {0: "Cats", 1: "cats (1)", 12: "cluster-12"}


def test_tables_hold_every_image(run, tmp_path):
    groups = curate(run, {"action": "rename", "cluster": 1, "name": 'say "hi", all'})
    exchange.write_groups(tmp_path / "x.csv", groups)
    exchange.write_groups(tmp_path / "x.parquet", groups)
    columns = pq.read_table(tmp_path / "x.parquet").to_pydict()
    assert columns["id"] == IDS
    assert columns["name"] == ["cluster 0", 'say "hi", all', "cluster 2", "no cluster"]
    assert pyarrow.csv.read_csv(tmp_path / "x.csv").to_pydict() == columns


def test_coco_boxes_cover_the_images(run):
    result = json.loads(json.dumps(exchange.coco(read_groups(run), [(4, 3), (5, 6), (7, 8), (9, 9)])))
    assert [image["selfcluster_id"] for image in result["images"]] == IDS
    assert result["images"][2] | {"file_name": "/data/sub/c.jpg", "width": 7, "height": 8} == result["images"][2]
    names = {category["id"]: category["name"] for category in result["categories"]}
    assert [(a["image_id"], names[a["category_id"]], a["bbox"], a["area"]) for a in result["annotations"]] == [
        (1, "cluster 0", [0, 0, 4, 3], 12),
        (2, "cluster 1", [0, 0, 5, 6], 30),
        (3, "cluster 2", [0, 0, 7, 8], 56),
    ]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools 2.0.11
def test_pycocotools_loads_the_export_and_finds_every_box_and_mask(run, tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    groups = curate(run, {"action": "rename", "cluster": 1, "name": 'a <b> "c" é'})
    (tmp_path / "coco.json").write_text(json.dumps(exchange.coco(groups, [(4, 3), (5, 6), (7, 8), (9, 9)])))
    read = COCO(str(tmp_path / "coco.json"))
    images = read.loadImgs(read.getImgIds())
    assert [image["selfcluster_id"] for image in images] == IDS
    (number,) = read.getCatIds(catNms=['a <b> "c" é'])
    assert read.getImgIds(catIds=[number]) == [2]
    masks = [read.annToMask(a) for image in images for a in read.loadAnns(read.getAnnIds(imgIds=image["id"]))]
    assert [(mask.shape, int(mask.sum())) for mask in masks] == [((3, 4), 12), ((6, 5), 30), ((8, 7), 56)]
    answers = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        for a in read.loadAnns(read.getAnnIds())
    ]
    for kind in ("bbox", "segm"):
        scored = COCOeval(read, read.loadRes([dict(answer) for answer in answers]), kind)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        assert scored.stats[0] == pytest.approx(1)  # average precision of the right answers
    capsys.readouterr()


def test_fiftyone_numbers_the_classes(run):
    result = exchange.fiftyone(read_groups(run))
    assert result["classes"] == ["cluster 0", "cluster 1", "cluster 2"]
    assert result["labels"] == {"/data/a.jpg": 0, "/data/b.jpg": 1, "/data/sub/c.jpg": 2, "/data/d.jpg": None}


def test_label_studio_choices_are_those_of_its_interface(run):
    groups = curate(run, {"action": "rename", "cluster": 1, "name": 'a <b> & "c"'})
    tasks = exchange.label_studio(groups)
    choices = {choice.get("value") for choice in ET.fromstring(exchange.label_studio_interface(groups)).iter("Choice")}
    used = [p["result"][0]["value"]["choices"][0] for task in tasks for p in task["predictions"]]
    assert used == ["cluster 0", 'a <b> & "c"', "cluster 2"]
    assert set(used) == choices
    assert tasks[0]["data"] == {"image": "/data/local-files/?d=data/a.jpg", "id": "a.jpg"}
    assert tasks[3]["predictions"] == []
