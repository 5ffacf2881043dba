"""The metadata protocol on a run: columns that follow the clusters, over the epochs that have labels."""

from pathlib import Path

import numpy as np
import pytest

from selfcluster import api
from selfcluster.clustering.scores import nmi
from selfcluster.runs.labels import label_files, read_labels
from selfcluster.runs.tables import read_clusters

PHOTOGRAPHS = Path(__file__).parents[4] / "shared/data/exif"


@pytest.fixture(scope="module")
def run(tmp_path_factory, folders):
    from tests.conftest import TINY, TINY_SETTINGS

    out = tmp_path_factory.mktemp("metadata") / "run"
    api.train("deepcluster_v2", folders, out=out, **TINY | TINY_SETTINGS["deepcluster_v2"])
    return out


def test_a_column_that_is_the_clusters_has_an_nmi_of_one(run, tmp_path):
    table = read_clusters(run / "clusters.parquet")
    path = tmp_path / "about.csv"
    rows = [f"{name},group {cluster},{i},same" for i, (name, cluster) in enumerate(zip(table.ids, table.clusters))]
    path.write_text("id,own,each,constant\n" + "\n".join(rows[:40]) + "\n")
    result = api.evaluate("metadata", run, table=str(path), least=2)
    assert result["own_nmi"] == pytest.approx(1)
    assert result["images"] == 48
    assert "each, constant" in result.notes[0]
    first = result.table[0]
    assert (first["column"], first["images"], first["values"]) == ("own", 40, len(np.unique(table.clusters[:40])))
    assert all(row["share"] == 1 for row in result.table if row["what"] == "purest")
    # the epochs' rows are of the labels that were kept
    own = {name: f"group {cluster}" for name, cluster in zip(table.ids[:40], table.clusters)}
    for epoch, file in label_files(run).items():
        row = next(row for row in result.table if row["what"] == f"epoch {epoch}")
        ids, labels = read_labels(file)
        truth = np.unique([own.get(name, "") for name in ids], return_inverse=True)[1] - 1  # "" sorts first
        assert row["nmi"] == pytest.approx(nmi(truth, labels))
    assert list((run / "evaluations").glob("metadata-*.json"))


def test_bad_input_is_refused_in_a_sentence(run, tmp_path):
    path = tmp_path / "about.csv"
    path.write_text("id,each\n" + "".join(f"kind{i % 4}/{i},{i}\n" for i in range(48)))
    with pytest.raises(ValueError, match="no column groups the images: in the columns each, all images have"):
        api.evaluate("metadata", run, table=str(path))
    with pytest.raises(ValueError, match="there is no 'camera'; there are each"):
        api.evaluate("metadata", run, table=str(path), columns="camera")
    with pytest.raises(ValueError, match="give a CSV with --table"):
        api.evaluate("metadata", run)  # no camera made these


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs with EXIF are not on this machine")
def test_photographs_in_one_folder_need_no_labels():
    result = api.evaluate("metadata", "tiny_layout", train=PHOTOGRAPHS, k=5, image_size=16, colors=False)
    assert {"camera_nmi", "day_nmi", "place_nmi"} <= set(result)
    assert result.table[0]["images"] == 47
