"""Supervised training against its loss in float64, and what it takes for labels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from selfcluster.methods import METHODS
from selfcluster.models.backbones import make_backbone
from selfcluster.training.targets import TARGETS_FILE
from selfcluster.types import DatasetInfo
from tests.methods.test_contract import batch_of, progress


def build(targets: torch.Tensor):
    torch.manual_seed(0)
    kind = METHODS["supervised"]
    data = DatasetInfo(targets.shape[1], 16, 3, targets=targets)
    return kind(lambda **kw: make_backbone("tiny_layout", channels=3, image_size=16, **kw), kind.Settings(), data)


def test_loss_is_the_sum_over_heads_of_the_mean_over_labeled_images():
    targets = torch.stack([torch.arange(48) % 3, torch.arange(48) % 6 - 1])  # the second has none for every sixth
    method, batch = build(targets).eval(), batch_of("supervised", views=1)
    with torch.no_grad():
        loss = method(batch, progress()).loss.item()
        features = method.encode(batch.views[0]).double()
    by_hand = 0.0
    for head, row in zip(method.heads, targets, strict=True):
        logits = (features @ head.weight.double().T + head.bias.double()).detach()
        terms = [torch.logsumexp(logits[i], 0) - logits[i, row[i]] for i in range(8) if row[i] >= 0]
        by_hand += sum(terms).item() / len(terms)
    assert loss == pytest.approx(by_hand, abs=1e-5)


def test_one_head_a_row_with_as_many_classes_as_it_has():
    method = build(torch.stack([torch.arange(48) % 3, torch.arange(48) % 7 - 1]))
    assert [head.out_features for head in method.heads] == [3, 6]


def test_every_view_has_its_images_label():
    method, batch = build(torch.arange(48)[None] % 3).eval(), batch_of("supervised", views=1)
    twice = type(batch)([batch.views[0]] * 2, batch.index)
    with torch.no_grad():
        assert method(twice, progress()).loss.item() == pytest.approx(method(batch, progress()).loss.item(), abs=1e-5)


def test_the_chance_level_is_the_entropy_of_the_labels():
    targets = torch.tensor([[0, 0, 1, 2], [0, 1, -1, -1]])
    assert build(targets).chance_loss() == pytest.approx(1.5 * math.log(2) + math.log(2), abs=1e-9)


def test_without_labels_it_says_where_to_get_them():
    kind = METHODS["supervised"]
    with pytest.raises(ValueError, match="--labels-from"):
        kind(lambda **kw: None, kind.Settings(), DatasetInfo(48, 16, 3))


def test_it_learns_the_labels_of_the_file(tiny, tmp_path):
    summary = tiny("supervised", tmp_path / "run", epochs=10, augment="none")
    assert summary["loss"] < summary["chance_loss"] / 4
    assert summary["clusters"] == 4
    assert np.load(tmp_path / "run" / TARGETS_FILE).tolist() == [[i % 4 for i in range(48)]]


def test_label_noise_spoils_what_is_learned_and_never_what_is_scored(tiny, tmp_path, pictures):
    from selfcluster import api

    for i, picture in enumerate(pictures):
        path = tmp_path / f"data/{i % 4}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    run, true = tmp_path / "run", np.repeat(np.arange(4), 12)  # in the order of the ids
    tiny("supervised", run, data=tmp_path / "data", labels_from="folders", epochs=1, label_noise=0.25)
    assert (np.load(run / TARGETS_FILE)[0] != true).sum() == 12
    assert api.embed(run)["labels"].tolist() == true.tolist()
    assert api.evaluate("knn", run)["classes"] == 4


def test_a_run_goes_on_with_the_labels_it_began_with(tiny, tmp_path, pictures, monkeypatch):
    from selfcluster import api

    kind = METHODS["supervised"]
    with monkeypatch.context() as patch:
        patch.setattr(kind, "on_step_end", lambda self, at, outputs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tiny("supervised", tmp_path / "run")
    assert api.train("supervised", pictures, out=tmp_path / "run", quiet=True)["steps"] == 9  # no --labels-from


def test_the_classifier_stands_behind_the_relu_that_a_networks_features_stop_before():
    method = build(torch.arange(48)[None] % 3).eval()
    features = torch.randn(4, method.backbone.num_features)
    plain = method.assign(features).distance
    method.backbone.stops_before_relu = True
    assert torch.equal(method.assign(features).distance, 1 - method.heads[0](features.relu()).softmax(1).amax(1))
    assert not torch.equal(method.assign(features).distance, plain)


def test_an_attempt_that_failed_before_its_first_step_leaves_no_labels_behind(tiny, tmp_path, monkeypatch):
    other = np.roll(np.arange(48) % 3, 1)
    (tmp_path / "other.csv").write_text("id,label\n" + "".join(f"{i:02d},{k}\n" for i, k in enumerate(other)))
    with pytest.raises(ValueError, match="cannot process views of --local-size 8"):
        tiny("supervised", tmp_path / "run", backbone="vit_tiny_patch16_224", local_crops=1, local_size=8)
    assert (tmp_path / "run" / TARGETS_FILE).is_file()
    tiny("supervised", tmp_path / "run", labels_from=str(tmp_path / "other.csv"))
    tiny("supervised", tmp_path / "fresh", labels_from=str(tmp_path / "other.csv"))
    assert (tmp_path / "run" / TARGETS_FILE).read_bytes() == (tmp_path / "fresh" / TARGETS_FILE).read_bytes()
