"""Checkpoints in the layouts of other libraries: the same features as timm's network that they were made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from selfcluster.models.backbones import make_backbone
from selfcluster.models.initialize import PartialWeights, initialize

State = dict[str, Tensor]


def reference(name: str, **create: Any) -> nn.Module:
    """A network of timm's with weights and statistics that no initialization gives."""
    torch.manual_seed(1)
    module = timm.create_model(name, num_classes=0, **create).eval()
    with torch.no_grad():
        for _, value in sorted(module.state_dict().items()):
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.05)
    return module


def loads_exactly(module: nn.Module, content: Any, path: Path, name: str, size: int, **create: Any) -> str:
    torch.save(content, path)
    loaded = make_backbone(name, channels=3, image_size=size, init=path, **create).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(images)
        torch.testing.assert_close(loaded(images), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    return loaded.load_report


def renamed(state: State, *rules: tuple[str, str]) -> State:
    """The state under other names, each by the first rule whose pattern begins it."""
    result = {}
    for name, value in state.items():
        for pattern, new in rules:
            other, count = re.subn(f"^{pattern}", new, name)
            if count:
                name = other
                break
        result[name] = value
    return result


def test_learning_rates_of_numpy_do_not_keep_a_checkpoint_out(tmp_path):
    """SwAV's and DINO's training files hold them in the optimizer's groups."""
    module = reference("test_resnet")
    groups = [{"lr": np.float64(0.3), "weight_decay": np.float32(1e-6), "kind": np.dtype("float16"), "t": np.int64(3)}]
    content = {"state_dict": {f"module.{n}": v for n, v in module.state_dict().items()}, "optimizer": groups}
    loads_exactly(module, content, tmp_path / "w.pth", "test_resnet", 96)


def test_learning_rates_of_an_older_numpy(tmp_path):
    """NumPy 1 wrote `numpy.core`, and protocol 2 writes bytes through `_codecs.encode`."""
    module = reference("test_resnet")
    torch.save({"model": module.state_dict(), "lr": np.float64(0.5)}, tmp_path / "new.pth", pickle_protocol=2)
    import zipfile

    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.namelist():
            data = new.read(entry)
            if entry.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(entry, data)
    loaded = make_backbone("test_resnet", channels=3, image_size=96, init=tmp_path / "old.pth")
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_xcit_as_its_authors_wrote_it(tmp_path):
    """`pos_embeder`, and one matrix for query, key and value of the class attention."""
    create = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32}
    module = reference("xcit_nano_12_p16_224", **create)
    theirs = renamed(dict(module.state_dict()), (r"pos_embed\.", "pos_embeder."))
    for block in range(len(module.cls_attn_blocks)):
        for kind in ("weight", "bias"):
            parts = [theirs.pop(f"cls_attn_blocks.{block}.attn.{part}.{kind}") for part in "qkv"]
            theirs[f"cls_attn_blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    theirs |= {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}
    report = loads_exactly(module, {"model": theirs}, tmp_path / "w.pth", "xcit_nano_12_p16_224", 32, **create)
    assert "100.0%" in report
    dino = {"student": {}, "teacher": {f"backbone.{n}": v for n, v in theirs.items()}}
    loads_exactly(module, dino, tmp_path / "dino.pth", "xcit_nano_12_p16_224", 32, **create)


def dinov2(module: nn.Module) -> State:
    """The authors' layout: register tokens beside the class token, whose position lies in the embeddings."""
    state = dict(module.state_dict())
    position = torch.randn(1, 1, 32)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    return state | {"mask_token": torch.zeros(1, 32)}


REGISTERS = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 56}


def test_dinov2_with_registers_as_its_authors_wrote_it(tmp_path):
    module = reference("vit_small_patch14_reg4_dinov2", **REGISTERS)
    theirs = dinov2(module)
    assert theirs["pos_embed"].shape == (1, 17, 32)
    report = loads_exactly(module, theirs, tmp_path / "w.pth", "vit_small_patch14_reg4_dinov2", 56, **REGISTERS)
    assert "100.0%" in report
    assert "left at random" not in report


HF_VIT = (
    (r"cls_token$", "embeddings.cls_token"),
    (r"pos_embed$", "embeddings.position_embeddings"),
    (r"mask_token$", "embeddings.mask_token"),
    (r"register_tokens$", "embeddings.register_tokens"),
    (r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"norm\.", "layernorm."),
)


def with_projections(state: State) -> State:
    """Query, key and value apart, as Hugging Face keeps them."""
    result = {}
    for name, value in state.items():
        if found := re.match(r"blocks\.(\d+)\.attn\.qkv\.(\w+)$", name):
            for part, piece in zip(("query", "key", "value"), value.chunk(3)):
                result[f"encoder.layer.{found[1]}.attention.attention.{part}.{found[2]}"] = piece
        else:
            result[name] = value
    return result


@pytest.mark.parametrize("prefix", ["vit.", ""])
def test_huggingfaces_vit(tmp_path, prefix):
    create = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    module = reference("vit_tiny_patch16_224", img_size=64, **create)
    blocks = (
        (r"blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
        (r"blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
        (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
        (r"blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
        (r"blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    )
    theirs = {prefix + n: v for n, v in renamed(with_projections(dict(module.state_dict())), *HF_VIT, *blocks).items()}
    theirs |= {"classifier.weight": torch.zeros(5, 32), "vit.pooler.dense.weight": torch.zeros(32, 32)}
    report = loads_exactly(module, theirs, tmp_path / "w.bin", "vit_tiny_patch16_224", 64, **create)
    assert "parameter names as in Hugging Face's ViTModel and Dinov2Model" in report


@pytest.mark.parametrize("registers", [True, False])
def test_huggingfaces_dinov2(tmp_path, registers):
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    module = reference(name, **REGISTERS)
    state = dinov2(module) if registers else dict(module.state_dict()) | {"mask_token": torch.zeros(1, 32)}
    blocks = (
        (r"blocks\.(\d+)\.norm", r"encoder.layer.\1.norm"),
        (r"blocks\.(\d+)\.ls(\d)\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
        (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
        (r"blocks\.(\d+)\.mlp\.", r"encoder.layer.\1.mlp."),
    )
    theirs = renamed(with_projections(state), *HF_VIT, *blocks)
    loads_exactly(module, theirs, tmp_path / "w.bin", name, 56, **REGISTERS)


def hf_resnet(state: State) -> State:
    def unit(found: re.Match[str]) -> str:
        stage, block, kind, number = found.groups()
        word = {"conv": "convolution", "bn": "normalization"}[kind]
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(number) - 1}.{word}."

    def shortcut(found: re.Match[str]) -> str:
        word = ("convolution", "normalization")[int(found[3])]
        return f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}.shortcut.{word}."

    result = {}
    for name, value in state.items():
        name = re.sub(r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.", unit, name)
        name = re.sub(r"^layer(\d)\.(\d+)\.downsample\.(\d)\.", shortcut, name)
        name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
        result[re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)] = value
    return result


@pytest.mark.parametrize("name", ["resnet18", "resnet26"])
def test_huggingfaces_resnet(tmp_path, name):
    module = reference(name)
    theirs = {f"resnet.{n}": v for n, v in hf_resnet(dict(module.state_dict())).items()}
    theirs |= {"classifier.1.weight": torch.zeros(5, module.num_features), "classifier.1.bias": torch.zeros(5)}
    report = loads_exactly(module, theirs, tmp_path / "w.bin", name, 96)
    assert "not used: classifier.1.weight, classifier.1.bias" in report


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.0.", ""])
def test_lightlys_sequential_resnet(tmp_path, prefix):
    """`nn.Sequential(*list(resnet.children())[:-1])`, as lightly's examples build their backbone."""
    module = reference("resnet18")
    order = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    theirs = renamed(dict(module.state_dict()), *((f"{part}\\.", f"{i}.") for i, part in enumerate(order)))
    assert "4.0.conv1.weight" in theirs
    content = {
        "state_dict": {prefix + n: v for n, v in theirs.items()} | {"projection_head.layers.0.weight": torch.ones(3)}
    }
    loads_exactly(module, content, tmp_path / "w.ckpt", "resnet18", 96)


def efficientnet(module: Any) -> State:
    """Blocks counted in one list, layers by the names of `efficientnet_pytorch`."""
    numbers, count = {}, 0
    for stage, blocks in enumerate(module.blocks):
        for place in range(len(blocks)):
            numbers[f"{stage}.{place}"], count = count, count + 1
    wide = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    wide |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    narrow = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    result = {}
    for name, value in module.state_dict().items():
        first, *rest = name.split(".")
        if first == "blocks":
            stage, place, unit, *last = rest
            names = (narrow if stage == "0" else wide) | {
                "se": {"conv_reduce": "_se_reduce", "conv_expand": "_se_expand"}.get(last[0], "")
            }
            last = last[1:] if unit == "se" else last
            result[".".join([f"_blocks.{numbers[f'{stage}.{place}']}", names[unit], *last])] = value
        else:
            result[".".join([outer[first], *rest])] = value
    return result


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_efficientnets_of_another_package(tmp_path, name):
    module = reference(name)
    theirs = efficientnet(module) | {"_fc.weight": torch.zeros(5, 1280), "_fc.bias": torch.zeros(5)}
    report = loads_exactly(module, theirs, tmp_path / "w.pth", name, 64)
    assert "not used: classifier.weight, classifier.bias" in report


@pytest.mark.parametrize(
    ("name", "size", "lost"),
    [
        ("vit_small_patch14_reg4_dinov2", 56, "pos_embed"),
        ("vit_small_patch14_reg4_dinov2", 56, "reg_token"),
        ("vit_small_patch14_reg4_dinov2", 56, "blocks.1.mlp.fc1.weight"),
    ],
)
def test_what_would_stay_random_is_refused(tmp_path, name, size, lost):
    state = dict(reference(name, **REGISTERS).state_dict())
    del state[lost]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(PartialWeights, match=f"left at random: {re.escape(lost)}.*--allow-partial"):
        make_backbone(name, channels=3, image_size=size, init=tmp_path / "w.safetensors", **REGISTERS)
    module = make_backbone(
        name, channels=3, image_size=size, init=tmp_path / "w.safetensors", allow_partial=True, **REGISTERS
    )
    assert f"left at random: {lost}" in module.load_report


def test_a_file_that_timms_filter_cannot_read_is_refused_in_words(tmp_path):
    torch.save({"cls_attn_blocks.0.attn.qkv.weight": torch.zeros(1), "pos_embed": torch.zeros(2)}, tmp_path / "w.pth")
    module = timm.create_model("xcit_nano_12_p16_224", embed_dim=32, depth=1, num_heads=4, num_classes=0)
    with pytest.raises(ValueError, match="less than half, so the file is of another network"):
        initialize(module, tmp_path / "w.pth")
