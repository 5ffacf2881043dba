"""Few labels: what is drawn, by hand; lists of images; and the classifier that a supervised run ends with."""

import numpy as np
import pytest
import torch

from selfcluster import api
from selfcluster.data.loader import Loader
from selfcluster.data.sources import open_source
from selfcluster.evaluation.protocols.semi import PRESETS, listed, per_class
from selfcluster.training.load import load_network, trained_method

FP32 = {"precision": "fp32", "device": "cpu", "workers": 1}


def test_a_share_of_each_class_by_hand():
    labels = np.array([0] * 200 + [1] * 1000 + [2] * 30 + [-1] * 500)
    rows = per_class(labels, 0.01, seed=0)
    assert np.bincount(labels[rows]).tolist() == [2, 10, 1]  # 2, 10 and 0.3 images, the last one raised to one
    assert (np.diff(rows) > 0).all()
    assert np.bincount(labels[per_class(labels, 0.1, seed=0)]).tolist() == [20, 100, 3]
    assert np.array_equal(rows, per_class(labels, 0.01, seed=0))
    assert not np.array_equal(rows, per_class(labels, 0.01, seed=1))
    assert set(rows) <= set(per_class(labels, 0.1, seed=0))  # 1 % is a part of 10 %, as SimCLR's lists are not
    assert len(per_class(labels, 1.0, seed=0)) == 1230


def test_every_image_of_a_class_is_drawn_equally_often():
    drawn = np.concatenate([per_class(np.zeros(10, int), 0.3, seed) for seed in range(1000)])
    assert np.abs(np.bincount(drawn, minlength=10) - 300).max() < 5 * np.sqrt(1000 * 0.3 * 0.7)


def test_lists_name_images_by_id_or_file_name(folders, tmp_path):
    source = open_source(folders, labels_from="folders")
    file = tmp_path / "few.txt"
    file.write_text("kind1/5.png\n\n6.png\n")
    assert [source.ids[row] for row in listed(source, str(file))] == ["kind1/5.png", "kind2/6.png"]
    file.write_text("5.png\nn01440764_7.JPEG\n")
    with pytest.raises(ValueError, match=r"1 of its 2 names are not images of train, e.g. 'n01440764_7.JPEG'"):
        listed(source, str(file))
    with pytest.raises(ValueError, match="there is no such file"):
        listed(source, str(tmp_path / "none.txt"))


def test_rates_of_table_1():
    one, ten = PRESETS["swav"]
    assert (one.trunk_rate, one.head_rate, ten.trunk_rate, ten.head_rate) == (0.02, 5.0, 0.01, 0.2)
    assert [one.factor(epoch, 20) for epoch in (11, 12, 16)] == pytest.approx([1, 0.2, 0.04])


def test_frozen_and_fine_tuned_networks_learn_from_the_drawn_images(folders, tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    common = {"train": folders, "labels_from": "folders", "split": 0.25, "share": 0.34, **FP32}
    tuned = api.evaluate("semi", tmp_path / "run", epochs=30, head_rate=5.0, trunk_rate=1.0, tune_batch=12, **common)
    assert (tuned["n_train"], tuned["n_test"]) == (12, 12)
    assert tuned["top1"] >= 0.5  # of four kinds
    frozen = api.evaluate("semi", tmp_path / "run", classifier="knn", **common)
    assert (frozen["n_train"], frozen["n_test"]) == (12, 12)
    assert api.evaluate("semi", tmp_path / "run", classifier="logistic", **common)["n_train"] == 12
    whole = api.evaluate("semi", tmp_path / "run", classifier="knn", **common | {"share": 1.0})
    del common["share"]
    assert whole.numbers == api.evaluate("knn", tmp_path / "run", **common).numbers


def test_the_classifier_of_a_supervised_run(folders, tiny, tmp_path):
    run = tmp_path / "run"
    tiny("supervised", run, data=folders, labels_from="folders", epochs=20)
    result = api.evaluate("classifier", run, test=folders, labels_from="folders", **FP32)
    source = open_source(folders, labels_from="folders")
    method, _ = trained_method(run)
    network = load_network(str(run))
    loader = Loader(source, batch_size=48, workers=1, **network.preprocessing.loader_arguments())
    batch = next(iter(loader.iterate_all()))
    loader.close()
    with torch.no_grad():
        predicted = method.assign(method.encode(batch.views[0])).cluster
    hits = predicted == torch.as_tensor(source.labels)[batch.index]
    assert result["top1"] == pytest.approx(float(hits.double().mean()))
    assert result["top1"] >= 0.5
    assert result["n_test"] == 48
    own = api.evaluate("classifier", run, **FP32)
    assert "the run was trained on" in own.notes[0]
    with pytest.raises(ValueError, match="give --test alone"):
        api.evaluate("classifier", run, train=folders, test=folders)
    with pytest.raises(ValueError, match="trained no classifier"):
        api.evaluate("classifier", "tiny_layout", train=folders)
