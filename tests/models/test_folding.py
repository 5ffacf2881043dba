"""Sobel filters folded into the first convolution: where it is exact, where only inside, and what is refused."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from selfcluster.methods.deepercluster import DeeperCluster
from selfcluster.models.backbones import load_backbone, make_backbone, save_backbone
from selfcluster.models.folding import fold_kernel, fold_sobel, for_images
from selfcluster.models.sobel import Sobel

STATISTICS = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(side: int, n: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def network(name: str, **arguments) -> nn.Module:
    """Two input channels, and batch norm that is no identity."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=0, in_chans=2, **arguments)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return module.eval()


def first(module: nn.Module) -> nn.Conv2d:
    return module.get_submodule(module.pretrained_cfg["first_conv"])


@pytest.mark.parametrize(
    ("name", "arguments", "side"),
    [
        ("deepcluster_alexnet", {"hidden": 16}, 67),
        ("deepcluster_vgg16", {"hidden": 16}, 32),
        ("resnet18_small_w25", {}, 32),
        ("resnet18", {}, 65),
        ("tiny_layout", {}, 16),
    ],
)
@torch.no_grad()
def test_exact_where_the_image_is_padded_before_the_filters(name, arguments, side):
    module, x = network(name, **arguments), images(side)
    expected = module(Sobel(padding=0)(F.pad(x, [2] * 4)))  # DeeperCluster's form
    folded = fold_sobel(module, padding=2)
    assert folded.load_report.endswith(": exact")
    torch.testing.assert_close(folded(x), expected, atol=1e-5, rtol=1e-5)
    assert first(folded).in_channels == 3
    assert first(folded).kernel_size[0] == first(module).kernel_size[0] + 2


@pytest.mark.parametrize(("name", "border"), [("deepcluster_alexnet", 1), ("deepcluster_vgg16", 1), ("resnet18", 2)])
@torch.no_grad()
def test_padding_inside_the_filters_is_exact_but_for_the_border(name, border):
    module, x = network(name, **({} if name == "resnet18" else {"hidden": 8})), images(64)
    folded = fold_sobel(module)
    expected, got = first(module)(Sobel(padding=1)(x)), first(folded)(x)
    assert got.shape == expected.shape
    inside = (..., slice(border, -border), slice(border, -border))
    torch.testing.assert_close(got[inside], expected[inside], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, expected, atol=1e-2), "at the border it differs"
    assert "border" in folded.load_report


@torch.no_grad()
def test_patches_without_padding_are_exact_whatever_the_filters():
    module, x = network("vit_tiny_patch16_224", img_size=64), images(64)
    folded = fold_sobel(module)
    # the patch grid of the folded one is that of the image: kernel 18, stride 16, padding 1
    torch.testing.assert_close(folded.patch_embed.proj(x), module.patch_embed.proj(Sobel()(x)), atol=1e-5, rtol=1e-5)
    assert folded.load_report.endswith(": exact")


@pytest.mark.parametrize("name", ["deepcluster_vgg16", "resnet18_small_w25", "vit_tiny_patch16_224"])
def test_a_run_of_deepercluster_is_exported_exactly(name, tmp_path):
    """Its filters see 2 zeros around the image, or whole patches; saved and loaded they still do."""
    create = {"hidden": 8} if "vgg" in name else {}
    assert DeeperCluster.edge_border == 2
    module = make_backbone(name, channels=3, image_size=32, sobel=DeeperCluster.edge_border, **create)
    assert module.sobel.padding == (1 if "vit" in name else 2)
    save_backbone(tmp_path, module.eval(), *STATISTICS, 32)
    loaded = load_backbone(tmp_path)[0]
    folded, account = for_images(loaded)
    assert account.endswith(": exact")
    with torch.no_grad():
        assert torch.equal(loaded(images(32)), module(images(32)))
        torch.testing.assert_close(folded(images(32)), module(images(32)), atol=1e-4, rtol=1e-4)


def test_the_kernel_is_the_full_convolution_in_float64():
    torch.manual_seed(0)
    weight, filters = torch.randn(2, 2, 3, 3), Sobel().weight
    by_hand = torch.zeros(2, 5, 5, dtype=torch.float64)
    for o in range(2):
        for c in range(2):
            for i in range(3):
                for j in range(3):
                    by_hand[o, i : i + 3, j : j + 3] += weight[o, c, i, j].double() * filters[c, 0].double()
    found = fold_kernel(weight, filters, 3)
    for color in range(3):
        torch.testing.assert_close(found[:, color].double(), by_hand / 3, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("deepcluster_alexnet", 32),
        ("deepcluster_vgg16", 32),
        ("resnet18_small_w25", 32),
        ("resnet18", 96),
        ("resnet18d", 96),
        ("vit_tiny_patch16_224", 96),
        ("convnext_atto", 64),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folded_export_is_rebuilt_by_timm_strictly(name, side, channels, tmp_path):
    create = {"hidden": 8} if "deepcluster" in name else {}
    module = make_backbone(name, channels=channels, image_size=side, sobel=True, **create)
    folded = fold_sobel(module.eval())
    mean, std = (s[:channels] for s in STATISTICS)
    weights = save_backbone(tmp_path, folded, mean, std, side)
    spec = json.loads((tmp_path / "backbone.json").read_text())
    assert spec["in_chans"] == channels
    assert "notes" not in spec["pretrained_cfg_overlay"]
    rebuilt = timm.create_model(**spec).eval()
    rebuilt.load_state_dict(load_file(weights), strict=True)
    x = images(side, channels=channels)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), folded(x))
        assert torch.equal(load_backbone(tmp_path)[0](x), folded(x))
        if ": exact but" not in folded.load_report:
            torch.testing.assert_close(folded(x), module(x), atol=1e-4, rtol=1e-4)
        inside, whole = first(folded)(x)[..., 2:-2, 2:-2], first(module)(module.sobel(x))[..., 2:-2, 2:-2]
    torch.testing.assert_close(inside, whole, atol=1e-5, rtol=1e-5)


def test_the_original_is_left_alone_and_the_copy_has_no_filters():
    module = make_backbone("deepcluster_alexnet", channels=3, image_size=32, sobel=True, hidden=8).eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = images(32)
    features = module(x)
    folded = fold_sobel(module)
    assert not any(isinstance(m, Sobel) for m in folded.modules())
    assert torch.equal(module(x), features)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert folded.state_dict().keys() == module.state_dict().keys()


def test_a_network_of_other_origin_is_folded_but_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no spec"):
        save_backbone(tmp_path, fold_sobel(network("resnet18")), *STATISTICS, 96)


def test_what_cannot_take_filters_is_refused():
    with pytest.raises(ValueError, match=r"conv1 takes 3 channels; behind Sobel filters it takes 2"):
        fold_sobel(timm.create_model("resnet18_small_w25", num_classes=0))
    with pytest.raises(ValueError, match="only a plain convolution"):
        fold_sobel(timm.create_model("resnetv2_50x1_bit", num_classes=0, in_chans=2))
    with pytest.raises(ValueError, match="Linear names no single first convolution"):
        fold_sobel(nn.Linear(2, 2))


def test_an_export_takes_images_and_is_the_trained_network_inside_the_border(tmp_path):
    trained = make_backbone("resnet18_small_w25", channels=3, image_size=32, sobel=True).eval()
    folded, account = for_images(trained)
    assert "folded into conv1" in account
    save_backbone(tmp_path, folded, (0.5,) * 3, (0.25,) * 3, 32)
    described = json.loads((tmp_path / "backbone.json").read_text())
    plain = timm.create_model(**described, checkpoint_path=str(tmp_path / "backbone.safetensors")).eval()
    shown = images(32)
    with torch.no_grad():
        inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
        edges = trained.conv1(trained.sobel(shown))
        torch.testing.assert_close(plain.conv1(shown)[inner], edges[inner], atol=1e-4, rtol=1e-4)
        assert plain(shown).shape == trained(shown).shape


def test_what_takes_no_filters_in_stays_as_it_is_and_says_so():
    trained = make_backbone("resnetv2_50x1_bit", channels=3, image_size=80, sobel=True)
    kept, account = for_images(trained)
    assert kept is trained
    assert account.startswith("takes Sobel edges, two channels: ")
    assert "only a plain convolution" in account
    assert for_images(make_backbone("resnet18_small_w25", channels=3, image_size=32))[1] == ""
