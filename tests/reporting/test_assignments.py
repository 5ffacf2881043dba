"""The page says which clusters it shows: those of the exported network, and how many are the pseudo-labels' own."""

import json

import numpy as np

from selfcluster.reporting.assignments import which_clusters
from selfcluster.reporting.page import write_report
from selfcluster.runs.contents import read_contents
from selfcluster.runs.labels import write_labels
from tests.reporting.folders import make_run

IDS = [f"{i}.png" for i in range(12)]


def test_a_run_without_labels_says_nothing(tmp_path):
    assert which_clusters(read_contents(make_run(tmp_path, IDS))) is None


def test_the_share_is_counted_over_images_that_have_a_label(tmp_path):
    run = make_run(tmp_path / "run", IDS)  # clusters 0 1 2 0 1 2 ...
    labels = np.arange(12) % 3
    labels[:3], labels[11] = 9, -1  # 8 of 11 agree
    write_labels(run, 4, 40, IDS, labels)
    (run / "status.json").write_text(json.dumps({"state": "finished", "summary": {"same_as_trained": 0.7273}}))
    text = which_clusters(read_contents(run)) or ""
    assert "73% of the 11 images that training put into a cluster are in the same one here" in text
    assert "labels/epoch-000004.parquet" in text
    assert (
        "73% of the 11 images that training put into a cluster are in the same one here"
        in write_report(run, None).read_text()
    )


def test_clusters_made_later_are_recognized(tmp_path):
    run = make_run(tmp_path, IDS)
    write_labels(run, 0, 0, IDS, np.zeros(12))
    (run / "status.json").write_text(json.dumps({"state": "finished", "summary": {"same_as_trained": 0.9}}))
    text = which_clusters(read_contents(run)) or ""
    assert "made by a later command" in text
    assert "90%" in text


def test_a_broken_file_does_not_stop_the_page(tmp_path):
    run = make_run(tmp_path, IDS)
    (run / "labels").mkdir()
    (run / "labels/epoch-000001.parquet").write_text("no table")
    assert "cannot be read" in (which_clusters(read_contents(run)) or "")
