"""Clusters that metadata marks, on the page: which ones, which images, and strangers' words as text."""

import json

import numpy as np
import pytest
from PIL import Image

from selfcluster import api
from selfcluster.evaluation.protocol import Result, read_results
from selfcluster.reporting.metadata import MOST_COLUMNS, marked_columns
from selfcluster.reporting.page import write_report
from selfcluster.runs.contents import read_contents
from selfcluster.runs.tables import CLUSTERS, read_clusters
from tests.reporting.folders import Pictures, make_run, write_clusters

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path):
    """24 images in clusters of 12, 9, 2 and 1 images; the distance of an image is its number."""
    ids = [f"{i:02}.png" for i in range(24)]
    folder = make_run(tmp_path / "run", ids)
    write_clusters(folder / CLUSTERS, ids, [0] * 12 + [1] * 9 + [2] * 2 + [3], np.arange(24)[::-1])
    return folder


def row(column, what, cluster, share, label="x", images=12):
    return {"column": column, "what": what, "cluster": cluster, "images": images, "share": share, "label": label}


def keep(run, table, k=None, **subject):
    Result("metadata", {"images": 24}, table, {"k": k}, {"model": str(run), **subject}).write(run)


def marked(run):
    return marked_columns(read_results(run), read_contents(run).clusters)


def test_images_go_from_the_nearest_to_the_farthest(run):
    purest, mixed = row("camera", "purest", 0, 1.0, "Canon"), row("camera", "most mixed", 1, 0.4, "Nikon", 9)
    keep(run, ({"column": "camera", "what": "all", "nmi": 0.25}, purest, mixed))
    (column,) = marked(run)
    assert (column.name, column.nmi) == ("camera", 0.25)
    (best,), (worst,) = column.purest, column.mixed
    assert (best.number, best.label, best.share, best.count) == (0, "Canon", 1.0, 12)
    assert [m.row for m in best.images] == [11, 9, 7, 4, 2, 0]  # the last image is the nearest
    assert [m.row for m in worst.images] == [20, 18, 17, 15, 14, 12]
    assert [m.row for m in column.images] == [m.row for m in (*best.images, *worst.images)]


def test_small_and_vanished_clusters_show_what_there_is(run):
    keep(run, tuple(row("day", "purest", cluster, 0.5) for cluster in (2, 3, 9)))
    small, single, gone = marked(run)[0].purest
    assert [[m.row for m in cluster.images] for cluster in (small, single, gone)] == [[22, 21], [23], []]


def test_three_a_side_and_the_best_columns_first(run):
    table = [row("a", what, i % 3, 0.5) for i in range(5) for what in ("purest", "most mixed")]
    table += [{"column": f"c{i}", "what": "all", "nmi": i / 20} for i in range(MOST_COLUMNS + 3)]
    table += [row(f"c{i}", "purest", 0, 0.5) for i in range(MOST_COLUMNS + 3)]
    keep(run, tuple(table))
    columns = marked(run)
    assert [column.name for column in columns] == [f"c{i}" for i in range(MOST_COLUMNS + 2, 2, -1)]
    keep(run, tuple(table[:10]), images_too=1)
    assert [len(end) for column in marked(run) for end in (column.purest, column.mixed)] == [3, 3]


def test_only_the_newest_result_of_the_runs_own_clusters_counts(run):
    keep(run, (row("old", "purest", 0, 0.5),))
    for settings in ({"k": 4}, {"train": "elsewhere"}, {"role": "untrained"}):
        keep(run, (row("other", "purest", 0, 0.5),), **settings)
    assert [column.name for column in marked(run)] == ["old"]
    assert marked_columns(read_results(run), None) == []


@pytest.mark.parametrize(
    "table",
    [None, "text", [3, None], [row("a", "purest", "0", 0.5)], [row("a", "purest", 0, "1")], [row("a", "purest", 0, 7)]],
)
def test_a_result_that_was_edited_is_no_error(run, table):
    keep(run, ())
    (file,) = (run / "evaluations").glob("metadata-*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"table": table, "settings": table, "subject": 4}))
    assert marked(run) == []
    write_report(run, None)


def test_the_page_shows_pictures_and_keeps_strangers_words_as_text(run):
    pictures = np.random.default_rng(0).integers(0, 255, (24, 20, 20, 3)).astype(np.uint8)
    keep(run, (row(EVIL, "purest", 0, 1.0, '"><img src=x>'), row(EVIL, "most mixed", 9, 0.4)))
    text = write_report(run, Pictures([f"{i:02}.png" for i in range(24)], pictures)).read_text()
    section = text[text.index("Clusters and metadata") : text.index('id="bad"')]
    assert "&lt;script&gt;alert(1)" in section
    assert "<script" not in section
    assert "<img src=x" not in section
    assert section.count('src="data:image/png;base64,') == 6
    assert "100% of 12 are" in section
    assert "has no such cluster now" in section
    without = write_report(run, None).read_text()
    assert without.count('class="thumb gone"') >= 6


def test_evaluate_metadata_ends_on_the_page(tmp_path, pictures, tiny):
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i:02}.png")
    tiny("swav", tmp_path / "run", tmp_path / "photos", epochs=1)
    table = tmp_path / "table.csv"
    table.write_text("id,kind\n" + "".join(f"{i:02}.png,kind {i % 4}\n" for i in range(48)))
    result = api.evaluate("metadata", tmp_path / "run", table=str(table), colors=False, least=1)
    (column,) = marked(tmp_path / "run")
    clusters = read_clusters(tmp_path / "run" / CLUSTERS)
    rows = [row for row in result.table if row["what"] == "purest"]
    assert [(m.number, m.label) for m in column.purest] == [(row["cluster"], row["label"]) for row in rows]
    for cluster in column.purest:
        assert {int(clusters.clusters[m.row]) for m in cluster.images} == {cluster.number}
    assert "Clusters and metadata" in api.report(tmp_path / "run").read_text()
