"""Weights from a local file."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from selfcluster.models.backbones import make_backbone, save_backbone


def weights(seed: int = 1, **create) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return timm.create_model("tiny_layout", num_classes=0, **create).state_dict()


def make(path: Path, name: str = "tiny_layout", channels: int = 1, size: int = 16) -> nn.Module:
    return make_backbone(name, channels=channels, image_size=size, init=path)


def agrees(module: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_timm_style_file_is_taken_whole(tmp_path):
    state = weights()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    module = make(tmp_path / "w.safetensors")
    agrees(module, state)
    assert module.account == f"w.safetensors: 100.0% of the network's numbers taken ({len(state)} tensors)"


def test_what_save_backbone_wrote_is_taken_from_its_folder(tmp_path):
    first = make_backbone("tiny_layout", channels=1, image_size=16)
    save_backbone(tmp_path, first, [0.5], [0.5], 16)
    agrees(make(tmp_path), first.state_dict())


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, ""),
        (lambda s: {"epoch": 3, "state_dict": {f"module.{n}": v for n, v in s.items()}}, "prefix 'module.'"),
        (lambda s: {"model": {"net": {f"a.backbone.{n}": v for n, v in s.items()}}}, "key 'model/net'"),
        (lambda s: {"student": weights(2), "teacher": s}, "key 'teacher'"),  # of equals, the average
    ],
)
def test_weights_are_found_wherever_a_checkpoint_keeps_them(tmp_path, wrap, said):
    state = weights()
    torch.save(wrap(state), tmp_path / "w.pth")
    module = make(tmp_path / "w.pth")
    agrees(module, state)
    assert said in module.account


def test_the_account_names_what_was_missing_and_what_was_not_used(tmp_path):
    state = weights()
    kept = state.pop("layer1.0.weight")
    torch.save(state | {"fc.weight": torch.zeros(3, 512), "head.bias": torch.zeros(3)}, tmp_path / "w.pt")
    module = make(tmp_path / "w.pt")
    assert "left at random: layer1.0.weight" in module.account
    assert "not used: fc.weight, head.bias" in module.account
    assert not torch.equal(module.state_dict()["layer1.0.weight"], kept)


def test_the_first_convolution_is_summed_over_colours_for_grey_images(tmp_path):
    state = weights(in_chans=3)
    torch.save(state, tmp_path / "w.pt")
    module = make(tmp_path / "w.pt")
    expected = state["layer1.0.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(module.state_dict()["layer1.0.weight"], expected)
    assert "adapted layer1.0.weight" in module.account


def test_position_embeddings_are_resized_to_the_images(tmp_path):
    large = make_backbone("test_vit", channels=3, image_size=96)
    torch.save(large.state_dict(), tmp_path / "w.pt")
    module = make(tmp_path / "w.pt", "test_vit", 3, 64)
    assert "adapted pos_embed" in module.account
    assert "100.0%" in module.account
    assert module.state_dict()["pos_embed"].shape != large.state_dict()["pos_embed"].shape


def test_a_large_stem_does_not_pass_for_a_small_one(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pt")
    module = make(tmp_path / "w.pt", "resnet18", 3, 32)
    assert "left at random: conv1.weight" in module.account
    assert "not used: fc.weight, fc.bias" in module.account


def test_another_networks_weights_are_refused(tmp_path):
    torch.save(timm.create_model("resnet18_small_w25").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"another network's weights\. w\.pt.* of the network's numbers"):
        make(tmp_path / "w.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"empty\.pt: 0\.0%"):
        make(tmp_path / "empty.pt")


def test_nothing_in_a_file_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": weights(), "extra": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(pickle.UnpicklingError):
        make(tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


def test_paths_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        make(tmp_path / "nowhere.pt")
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a \.safetensors, \.pt or \.pth"):
        make(tmp_path / "w.onnx")
