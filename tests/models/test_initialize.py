"""Weights from a local file."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from selfcluster.models.backbones import make_backbone, save_backbone
from selfcluster.models.initialize import PartialWeights, initialize


def weights(seed: int = 1, **create) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return timm.create_model("tiny_layout", num_classes=0, **create).state_dict()


def make(path: Path, name: str = "tiny_layout", channels: int = 1, size: int = 16, **create) -> nn.Module:
    return make_backbone(name, channels=channels, image_size=size, init=path, **create)


def agrees(module: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_timm_style_file_is_taken_whole(tmp_path):
    state = weights()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    module = make(tmp_path / "w.safetensors")
    agrees(module, state)
    where = f"weights {tmp_path / 'w.safetensors'}"
    matched = "30 tensors: layer1 (6), layer2 (6), layer3 (6), layer4 (6), layer5 (6)"
    assert module.load_report == f"{where}: 100.0% of the network's weights found ({matched})"


def test_what_save_backbone_wrote_is_taken_from_its_folder(tmp_path):
    first = make_backbone("tiny_layout", channels=1, image_size=16)
    save_backbone(tmp_path, first, [0.5], [0.5], 16)
    agrees(make(tmp_path), first.state_dict())


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, ""),
        (lambda s: {"epoch": 3, "state_dict": {f"module.{n}": v for n, v in s.items()}}, "key 'state_dict':"),
        (lambda s: {"model": {"net": {f"a.backbone.{n}": v for n, v in s.items()}}}, "key 'model/net'"),
        (lambda s: {"student": weights(2), "teacher": s}, "key 'teacher'"),  # of equals, the average
    ],
)
def test_weights_are_found_wherever_a_checkpoint_keeps_them(tmp_path, wrap, said):
    state = weights()
    torch.save(wrap(state), tmp_path / "w.pth")
    module = make(tmp_path / "w.pth")
    agrees(module, state)
    assert said in module.load_report


def test_the_account_names_what_was_missing_and_what_was_not_used(tmp_path):
    state = weights()
    kept = state.pop("layer1.0.weight")
    torch.save(state | {"fc.weight": torch.zeros(3, 512), "head.bias": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(
        PartialWeights, match=r"left at random: layer1\.0\.weight;.*accept random parts with --allow-partial"
    ):
        make(tmp_path / "w.pt")
    module = make(tmp_path / "w.pt", allow_partial=True)
    assert "left at random: layer1.0.weight;" in module.load_report
    assert "not used: fc.weight, head.bias" in module.load_report
    assert not torch.equal(module.state_dict()["layer1.0.weight"], kept)


@pytest.mark.parametrize(("there", "here"), [(3, 1), (1, 3)])
@torch.no_grad()
def test_between_gray_and_color_a_gray_image_keeps_its_features(tmp_path, there, here):
    before = make_backbone("tiny_layout", channels=there, image_size=16).eval()
    torch.save(before.state_dict(), tmp_path / "w.pt")
    module = make(tmp_path / "w.pt", channels=here).eval()
    gray = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(module(gray.expand(-1, here, -1, -1)), before(gray.expand(-1, there, -1, -1)))
    assert f"adapted: layer1.0.weight ({there} to {here} channels)" in module.load_report


@pytest.mark.parametrize(("there", "flag"), [(False, "--no-sobel"), (True, "--sobel")])
def test_between_colors_and_edges_nothing_is_taken(tmp_path, there, flag):
    """A first convolution at random would undo the layers behind it."""
    before = make_backbone("tiny_layout", channels=3, image_size=16, sobel=there)
    torch.save(before.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=flag):
        make_backbone("tiny_layout", channels=3, image_size=16, sobel=not there, init=tmp_path / "w.pt")


def test_edges_to_edges_are_taken_whole(tmp_path):
    before = make_backbone("tiny_layout", channels=3, image_size=16, sobel=True)
    torch.save(before.state_dict(), tmp_path / "w.pt")
    agrees(
        make_backbone("tiny_layout", channels=1, image_size=16, sobel=True, init=tmp_path / "w.pt"), before.state_dict()
    )


def test_position_embeddings_are_resized_to_the_images(tmp_path):
    large = make_backbone("test_vit", channels=3, image_size=96)
    torch.save(large.state_dict(), tmp_path / "w.pt")
    module = make(tmp_path / "w.pt", "test_vit", 3, 64)
    assert "adapted: pos_embed (6 x 6 to 4 x 4 patches)" in module.load_report
    assert "100.0%" in module.load_report
    assert module.state_dict()["pos_embed"].shape != large.state_dict()["pos_embed"].shape


def test_a_large_stem_does_not_pass_for_a_small_one(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pt")
    with pytest.raises(PartialWeights, match=r"left at random: conv1\.weight \(64 x 3 x 7 x 7 in the file, 64 x 3 x 3"):
        make(tmp_path / "w.pt", "resnet18", 3, 32)
    module = make(tmp_path / "w.pt", "resnet18", 3, 32, allow_partial=True)
    assert "not used: fc.weight, fc.bias" in module.load_report


def test_a_larger_network_does_not_pass_for_its_first_layers(tmp_path):
    """ResNet-34 holds every tensor that ResNet-18 has; its features are others."""
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "w.pt")
    with pytest.raises(PartialWeights, match=r"layers that this network lacks \(layer1 \(10\), layer2"):
        make(tmp_path / "w.pt", "resnet18", 3, 96)


def test_a_patch_embedding_of_another_size_is_not_resized(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        PartialWeights, match=r"patch_embed\.proj\.weight \(192 x 3 x 16 x 16 in the file, 192 x 3 x 8 x 8"
    ):
        make(tmp_path / "w.pt", "vit_tiny_patch16_224", 3, 32, depth=1, patch_size=8)


def test_another_networks_weights_are_refused(tmp_path):
    torch.save(timm.create_model("resnet18_small_w25").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt.* of the network's weights found .*the file is of another network"):
        make(tmp_path / "w.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"empty\.pt: 0\.0%"):
        make(tmp_path / "empty.pt")


def test_nothing_in_a_file_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"state_dict": weights(), "extra": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: .*it holds a posix.mkdir, and nothing but weights is loaded"):
        make(tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


def test_paths_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights .*nowhere\.pt: no such file$"):
        make(tmp_path / "nowhere.pt")
    for content in (b"", b"not weights", b"PK\x03\x04", b"\x80\x02}q", b"\x10\0\0\0\0\0\0\0{"):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"weights .*w\.pth: not a \.safetensors, \.pt or \.pth file of weights"):
            make(tmp_path / "w.pth")
    (tmp_path / "config.yaml").write_text("method: swav")
    with pytest.raises(FileNotFoundError, match="no such file; its run has not finished"):
        make(tmp_path)


# The files of other repositories: keys as they write them, sizes as small as they come.


def resnet(seed: int = 1, **create) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=0, in_chans=3, **create).state_dict()


def behind(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def head(prefix: str, *layers: str) -> dict[str, Tensor]:
    return {f"{prefix}{layer}.{kind}": torch.zeros(3) for layer in layers for kind in ("weight", "bias")}


def optimizer(state: dict[str, Tensor]) -> dict:
    return {
        "state": {i: {"momentum_buffer": torch.zeros_like(v)} for i, v in enumerate(state.values())},
        "param_groups": [{"lr": 0.1, "params": list(range(len(state)))}],
    }


LAYOUTS = {
    "torchvision": (lambda s, other: s | head("", "fc"), "not used: fc.weight, fc.bias"),
    "swav": (
        lambda s, other: behind(
            "module.", s | head("", "projection_head.0", "projection_head.3") | {"prototypes.weight": torch.zeros(3, 3)}
        ),
        "not used: projection_head (4), prototypes (1)",
    ),
    "swav, in training": (
        lambda s, other: {"epoch": 7, "state_dict": behind("module.", s), "optimizer": optimizer(s), "amp": {"x": 1.0}},
        "key 'state_dict'",
    ),
    "deepcluster-v2": (
        lambda s, other: {
            "state_dict": behind(
                "module.", s | {f"prototypes.prototypes{i}.weight": torch.zeros(3, 3) for i in range(3)}
            )
        },
        "not used: prototypes.prototypes0.weight",
    ),
    "moco": (
        lambda s, other: {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": {
                **behind("module.encoder_q.", s | head("", "fc.0", "fc.2")),
                **behind("module.encoder_k.", other | head("", "fc.0", "fc.2")),
                "module.queue": torch.zeros(3, 8),
                "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
            },
            "optimizer": optimizer(s),
        },
        "prefix 'encoder_q.'",
    ),
    "vissl": (
        lambda s, other: {
            "classy_state_dict": {
                "base_model": {"model": {"trunk": behind("_feature_blocks.", s), "heads": head("", "0.clf.0")}}
            }
        },
        "key 'classy_state_dict/base_model/model/trunk', prefix '_feature_blocks.'",
    ),
    "openselfsup": (
        lambda s, other: {"meta": {"time": "x"}, "state_dict": behind("backbone.", s) | head("head.", "fc_cls")},
        "not used: head.fc_cls.weight, head.fc_cls.bias",
    ),
    "torch.compile and DDP": (lambda s, other: behind("_orig_mod.module.", s), "100.0%"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["w.pth", "w.pth.tar"])
def test_residual_networks_of_other_repositories(tmp_path, layout, name):
    state = resnet()
    wrap, said = LAYOUTS[layout]
    torch.save(wrap(state, resnet(2)), tmp_path / name)
    module = make(tmp_path / name, "test_resnet", 3, 96)
    agrees(module, state)
    assert "100.0%" in module.load_report
    assert said in module.load_report


def test_torchvisions_residual_networks_have_timms_names():
    from torchvision.models import resnet18

    own = timm.create_model("resnet18", num_classes=0).state_dict()
    theirs = resnet18().state_dict()
    assert {name: value.shape for name, value in own.items()} == {
        n: v.shape for n, v in theirs.items() if n[:2] != "fc"
    }


def test_dinos_checkpoint(tmp_path):
    """Student and teacher, each with its head, the loss's center, the optimizer and the command's arguments."""
    torch.manual_seed(1)
    teacher = timm.create_model("test_vit", num_classes=0, img_size=96).state_dict()
    student = timm.create_model("test_vit", num_classes=0, img_size=96).state_dict()
    heads = head("head.mlp.", "0", "2", "4") | {"head.last_layer.weight_g": torch.ones(3, 1)}
    content = {
        "student": behind("module.", behind("backbone.", student) | heads),
        "teacher": behind("backbone.", teacher) | heads,
        "optimizer": optimizer(student),
        "epoch": 100,
        "args": Namespace(arch="vit_small", patch_size=16, lr=0.0005, crops=[2, 8]),
        "dino_loss": {"center": torch.zeros(1, 3)},
        "fp16_scaler": {"scale": 1.0},
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    module = make(tmp_path / "checkpoint.pth", "test_vit", 3, 96)
    agrees(module, teacher)
    assert "key 'teacher', prefix 'backbone.': 100.0%" in module.load_report
    assert "not used: head (7)" in module.load_report
    torch.save({"student": content["student"]}, tmp_path / "student.pth")
    agrees(make(tmp_path / "student.pth", "test_vit", 3, 96), student)
    torch.save(teacher, tmp_path / "dino_vits16.pth")  # the backbone alone, as it was released
    agrees(make(tmp_path / "dino_vits16.pth", "test_vit", 3, 96), teacher)


def test_dinos_names_are_timms():
    own = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1).state_dict()
    block = [
        f"{part}.{kind}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    dino = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    assert set(own) == dino | {f"blocks.0.{name}" for name in block}


@pytest.mark.parametrize("name", ["deepcluster_alexnet", "deepcluster_vgg16"])
def test_deepclusters_networks(tmp_path, name):
    """Layers counted through a Sequential, of which `features` alone was wrapped for several GPUs."""
    state = timm.create_model(name, num_classes=0, in_chans=2, hidden=4).state_dict()
    pools = {"alexnet": (1, 2), "vgg16": (2, 4, 7, 10, 13)}[name.removeprefix("deepcluster_")]
    number = {}  # of a convolution in their Sequential: three layers each, and one for a pooling
    for conv in range(1, 14):  # a pooling stands behind these convolutions
        number[f"conv{conv}"] = 3 * (conv - 1) + sum(pool < conv for pool in pools)
    theirs = {}
    for key, value in state.items():
        layer, *rest = key.split(".")
        if key.endswith("num_batches_tracked"):
            continue  # written before batch norm counted its batches
        if layer.startswith("conv"):
            theirs[f"features.module.{number[layer] + int(rest[0])}.{rest[1]}"] = value
        else:
            place = {"fc6": 1, "fc7": 4} if name == "deepcluster_alexnet" else {"fc6": 0, "fc7": 3}
            theirs[f"classifier.{place[layer]}.{rest[0]}"] = value
    theirs |= head("", "top_layer", "sobel.0", "sobel.1")
    torch.save({"epoch": 500, "arch": "alexnet", "state_dict": theirs}, tmp_path / "checkpoint.pth.tar")
    module = timm.create_model(name, num_classes=0, in_chans=2, hidden=4)
    account = initialize(module, tmp_path / "checkpoint.pth.tar")
    agrees(module, state)
    assert "left at random" not in account
    assert "not used: top_layer (2), sobel (4)" in account


def test_deepclusters_alexnet_by_its_numbers():
    names = timm.create_model("deepcluster_alexnet", num_classes=0, hidden=4).released_names
    convolutions = [f"features.{place}" for place in (0, 4, 8, 11, 14)]
    assert [names[c] for c in convolutions] == [f"conv{n}.0" for n in range(1, 6)]
    assert (names["features.1"], names["classifier.1"], names["classifier.4"]) == ("conv1.1", "fc6", "fc7")
