"""Backbones by name, saved so that timm alone loads them."""

from __future__ import annotations

import json

import pytest
import safetensors
import timm
import torch

from selfcluster.models.backbones import load_backbone, make_backbone, preprocessing_of, save_backbone


def images(channels: int, side: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "size", "real"),
    [
        ("resnet18", 32, "resnet18_small"),
        ("resnet34", 64, "resnet34_small"),
        ("resnet18", 65, "resnet18"),
        ("resnet26", 32, "resnet26"),  # no small variant is known: as asked for
    ],
)
def test_the_stem_follows_the_image_size_and_the_spec_says_so(name, size, real):
    module = make_backbone(name, channels=3, image_size=size)
    assert module.spec["model_name"] == real
    assert module.load_report == ""


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("tiny_layout", 1, 16),
        ("resnet18_small_w25", 2, 24),
        ("test_vit", 3, 64),
        ("mobilenetv3_small_050", 3, 64),  # has a layer behind what timm calls its features
    ],
)
def test_timm_alone_rebuilds_what_was_saved(tmp_path, name, channels, size):
    module = make_backbone(name, channels=channels, image_size=size, drop_path=0.0)
    module(images(channels, size))  # moves batch-norm statistics off their start
    module.to(memory_format=torch.channels_last)  # which safetensors would refuse
    module.eval()
    expected = module(images(channels, size))
    assert expected.shape == (2, module.num_features)
    mean, std = [0.25] * channels, [0.75] * channels
    weights = save_backbone(tmp_path / "run", module, mean, std, size)
    spec = json.loads((tmp_path / "run" / "backbone.json").read_text())
    rebuilt = timm.create_model(**spec, checkpoint_path=weights).eval()
    close = {"atol": 1e-4, "rtol": 1e-4}  # the memory format changes the order of sums
    torch.testing.assert_close(rebuilt(images(channels, size)), expected, **close)
    assert rebuilt.pretrained_cfg["mean"] == mean
    assert rebuilt.pretrained_cfg["std"] == std
    assert list(rebuilt.pretrained_cfg["input_size"]) == [channels, size, size]
    assert rebuilt.state_dict().keys() == module.state_dict().keys()
    for path in (tmp_path / "run", weights, weights.with_name("backbone.json")):
        loaded, *rest = load_backbone(path)
        assert rest == [tuple(mean), tuple(std), size]
        assert loaded.num_features == module.num_features
        torch.testing.assert_close(loaded(images(channels, size)), expected, **close)
    # saved again, a loaded backbone is the same bytes
    again = save_backbone(tmp_path / "again", loaded, mean, std, size)
    assert again.read_bytes() == weights.read_bytes()
    assert sorted(p.name for p in again.parent.iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_a_vision_transformer_takes_crops_of_several_sizes():
    module = make_backbone("test_vit", channels=3, image_size=64, drop_path=0.1)
    assert module.spec["img_size"] == 64
    assert module.spec["drop_path_rate"] == 0.1
    assert module(images(3, 64)).shape == module(images(3, 32)).shape == (2, module.num_features)


def test_residual_branches_start_awake():
    """A zero scale at the end of each branch is not the papers' start, and LARC takes it for a raw step."""
    module = make_backbone("resnet18", channels=3, image_size=32)
    assert float(module.layer1[0].bn2.weight.detach().min()) == 1.0
    asked = make_backbone("resnet18", channels=3, image_size=32, zero_init_last=True)
    assert float(asked.layer1[0].bn2.weight.detach().max()) == 0.0


def test_making_one_leaves_the_statistics_and_the_generator_to_the_weights_alone():
    torch.manual_seed(0)
    first = make_backbone("tiny_layout", channels=1, image_size=16)
    torch.manual_seed(0)
    plain = timm.create_model("tiny_layout", num_classes=0)
    assert first.training
    for name, value in plain.state_dict().items():
        assert torch.equal(first.state_dict()[name], value), name


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no backbone 'resnet18_smal'; the nearest are resnet18_small,"):
        make_backbone("resnet18_smal", channels=3, image_size=32)


def test_impossible_wishes_name_themselves():
    with pytest.raises(ValueError, match="tiny_layout takes no drop_path"):
        make_backbone("tiny_layout", channels=3, image_size=32, drop_path=0.1)
    with pytest.raises(ValueError, match="tiny_layout takes no depth"):
        make_backbone("tiny_layout", channels=3, image_size=32, depth=3)
    with pytest.raises(ValueError, match="test_vit cannot process images of 3 x 65 x 65"):
        make_backbone("test_vit", channels=3, image_size=65)
    with pytest.raises(ValueError, match="another global_pool"):
        make_backbone("resnet18", channels=3, image_size=32, global_pool="")
    with pytest.raises(ValueError, match="one number for each of 3 channels"):
        make_backbone("tiny_layout", channels=3, image_size=32, mean=[0.5], std=[0.5])


def test_what_is_not_ours_is_neither_saved_nor_loaded(tmp_path):
    with pytest.raises(ValueError, match="Linear has no spec"):
        save_backbone(tmp_path, torch.nn.Linear(2, 2), [0.5], [0.5], 16)
    with pytest.raises(FileNotFoundError, match=r"backbone\.json is missing"):
        load_backbone(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    module = make_backbone("tiny_layout", channels=1, image_size=16)
    weights = save_backbone(tmp_path, module, [0.5], [0.5], 16)
    before = weights.read_bytes()

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    with pytest.raises(KeyboardInterrupt):
        save_backbone(tmp_path, module, [0.5], [0.5], 16)
    assert weights.read_bytes() == before
    with safetensors.safe_open(weights, "pt") as file:
        assert set(file.keys()) == set(module.state_dict())


@pytest.fixture
def exported(tmp_path):
    module = make_backbone("tiny_layout", channels=3, image_size=16)
    save_backbone(tmp_path, module, [0.5] * 3, [0.5] * 3, 16)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "entries"),
    [
        ("", {"pretrained": True}),
        ("", {"checkpoint_path": "/tmp/other.pth"}),
        ("", {"pretrained_cfg": {"url": "http://127.0.0.1:9/w.pth"}}),
        ("pretrained_cfg_overlay", {"url": "http://127.0.0.1:9/w.pth"}),
        ("pretrained_cfg_overlay", {"hf_hub_id": "somebody/weights"}),
    ],
)
def test_a_description_never_makes_a_network_request(exported, monkeypatch, place, entries):
    import socket

    path = exported / "backbone.json"
    spec = json.loads(path.read_text())
    (spec[place] if place else spec).update(entries)
    path.write_text(json.dumps(spec))
    for owner, name in ((socket, "getaddrinfo"), (socket.socket, "connect")):
        monkeypatch.setattr(owner, name, lambda *unused, **named: pytest.fail("a network request"))
    with pytest.raises(ValueError, match=next(iter(entries))):
        load_backbone(exported)


def test_a_description_of_other_weights_is_refused(exported):
    path = exported / "backbone.json"
    path.write_text(path.read_text() + "\n")  # the same content
    load_backbone(exported)
    spec = json.loads(path.read_text())
    spec["pretrained_cfg_overlay"]["mean"] = [0.1] * 3
    path.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="do not belong together"):
        load_backbone(exported)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"model_name": "resnet18"}'])
def test_a_description_of_another_shape_is_refused_in_words(exported, text):
    (exported / "backbone.json").write_text(text)
    with pytest.raises(ValueError, match=r"backbone\.json (cannot be read|does not describe)"):
        load_backbone(exported)


def test_colors_are_divided_by_imagenets_usual_deviations():
    """SwAV's released code has 0.228 for red: its red values are 0.44 % larger."""
    std = preprocessing_of(make_backbone("resnet18", channels=3, image_size=64)).std
    assert std == (0.229, 0.224, 0.225)
    assert std[0] / 0.228 == pytest.approx(1.0044, abs=1e-4)
