"""The labels that a run trained on: kept an epoch at a time, scored, and the same bytes after a kill."""

import json

import numpy as np
import pytest
import torch

from selfcluster.clustering.scores import nmi
from selfcluster.methods import METHODS
from selfcluster.runs.checkpoint import load_newest
from selfcluster.runs.folder import read_metrics, read_status
from selfcluster.runs.labels import cut_labels, label_files, last_labels, read_labels, write_labels
from selfcluster.runs.tables import read_clusters
from selfcluster.training.pseudo_labels import PseudoLabels
from selfcluster.types import Output
from tests.training.test_loop import poisoned

EPOCHS = {
    "deepcluster": [0, 1, 2],
    "deepcluster_v2": [0, 1, 2],
    "deepercluster": [0, 2],  # it clusters every second epoch here
    "sela": [0, 1, 2],
    "sela_v2": [0, 1, 2],
    "odc": [0, 1, 2],
    "swav": [0, 1, 2],
    "clusterfit": [0],  # targets are made once
    "simclr": [],
}


@pytest.mark.parametrize("name", EPOCHS)
def test_an_epochs_labels_are_those_that_were_trained(name, tiny, tmp_path, kinds):
    summary = tiny(name, tmp_path, labels_from=kinds)
    files = label_files(tmp_path)
    assert list(files) == EPOCHS[name]
    if not files:
        return
    found = {epoch: read_labels(path) for epoch, path in files.items()}
    ids = [f"{i:02d}" for i in range(48)]
    assert all(names == ids for names, _ in found.values())
    last = found[EPOCHS[name][-1]][1]
    loaded = load_newest(tmp_path / "checkpoints")[0]
    assert loaded is not None
    tensors = loaded.tensors
    memory = next((tensors[key] for key in ("method.labels", "method.pseudo.labels") if key in tensors), None)
    if memory is not None:
        np.testing.assert_array_equal(last, memory[0] if memory.ndim == 2 else memory)
    # the metrics hold the scores of these files, and the summary the agreement with the run's clusters
    rows = {row["epoch"]: row for row in read_metrics(tmp_path)}
    truth = np.arange(48) % 4
    for before, (epoch, (_, labels)) in zip([None, *files], found.items(), strict=False):
        seen = labels >= 0
        assert rows[epoch]["nmi_labels"] == pytest.approx(nmi(truth[seen], labels[seen]), abs=1e-12)
        if before is not None:
            assert rows[epoch]["nmi_previous"] == pytest.approx(nmi(found[before][1], labels), abs=1e-12)
    clusters = read_clusters(tmp_path / "clusters.parquet").clusters
    share = (clusters == last)[last >= 0].mean()
    assert summary["same_as_trained"] == pytest.approx(share, abs=1e-4)
    assert read_status(tmp_path)["summary"]["same_as_trained"] == summary["same_as_trained"]


def test_a_codes_label_is_the_last_one_of_the_epoch():
    """SwAV has no memory of labels: the codes of the steps are put together, and an epoch begins with none."""

    class Codes:
        online = True

        def pseudo_labels(self):
            return None

    kept = PseudoLabels(Codes(), ["a", "b", "c"], None, torch.device("cpu"))  # pyright: ignore
    kept.see(torch.tensor([2, 0]), [Output(torch.zeros(()), codes=torch.tensor([n])) for n in (5, 7)])
    kept.see(torch.tensor([2]), [Output(torch.zeros(()), codes=torch.tensor([6]))])
    assert kept.together()["codes"].tolist() == [7, -1, 6]
    kept.begin()
    assert kept.previous.tolist() == [7, -1, 6]
    assert kept.codes.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("name", ["swav", "odc", "deepcluster"])
def test_a_run_that_stopped_ends_with_the_same_files(name, tiny, tmp_path, monkeypatch):
    """The run dies inside the second epoch, behind its last checkpoint; labels of that life are written again."""
    tiny(name, tmp_path / "whole", checkpoint_every=1)
    kind, end = METHODS[name], METHODS[name].on_step_end

    def killed(self, progress, outputs):
        end(self, progress, outputs)
        if progress.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kind, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny(name, tmp_path / "cut", checkpoint_every=1)
    write_labels(tmp_path / "cut", 2, 6, ["stray"], np.zeros(1))  # as a life would that came further
    tiny(name, tmp_path / "cut", checkpoint_every=1)
    one, other = (label_files(tmp_path / run) for run in ("whole", "cut"))
    assert list(one) == list(other) == [0, 1, 2]
    for epoch in one:
        assert one[epoch].read_bytes() == other[epoch].read_bytes()


def test_files_are_thinned_and_the_last_one_stays(tmp_path):
    for epoch in range(10):
        write_labels(tmp_path, epoch, 5 * epoch, ["a"], np.array([epoch]), stride=4)
    assert list(label_files(tmp_path)) == [0, 4, 8, 9]
    assert last_labels(tmp_path) == (9, {"a": 9})
    cut_labels(tmp_path, 40)  # the assignment before step 40 is made again
    assert list(label_files(tmp_path)) == [0, 4]


def test_labels_of_several_columns_are_not_scored(tiny, tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text("id,label\n" + "".join(f"{i:02d},kind {i % 4}\n{i:02d},all\n" for i in range(48)))
    tiny("sela", tmp_path / "run", labels_from=f"tags:{path}", epochs=1)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert not any("nmi_labels" in row for row in rows)


def test_a_skipped_step_gives_no_label(tiny, tmp_path, monkeypatch):
    poisoned(METHODS["swav"], {1}, monkeypatch)
    tiny("swav", tmp_path, epochs=1)
    labels = read_labels(label_files(tmp_path)[0])[1]
    assert (labels < 0).sum() == 16  # the batch of that step
