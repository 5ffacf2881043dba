"""The networks that timm lacks."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from selfcluster.models import classic


def images(channels: int, side: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(n for n in classic.default_cfgs if not n.startswith("resnet50_w")))
@torch.no_grad()
def test_all_are_timm_models(name):
    module = timm.create_model(name, num_classes=7, pretrained_cfg_overlay={"input_size": (2, 16, 16)}).eval()
    x = images(2, 16)
    assert module(x).shape == (2, 7)
    assert module.get_classifier().out_features == 7
    features = module.forward_head(module.forward_features(x), pre_logits=True)
    assert features.shape == (2, module.num_features)
    module.reset_classifier(0)
    assert torch.equal(module(x), features)


@pytest.mark.parametrize(("name", "parameters"), [("resnet18_small", 11_168_832), ("resnet50_small", 23_500_352)])
def test_small_residual_networks_differ_from_the_large_in_their_stem_alone(name, parameters):
    small = timm.create_model(name, num_classes=0)
    large = timm.create_model(name.removesuffix("_small"), num_classes=0)
    shapes = {n: tuple(p.shape) for n, p in large.named_parameters()}
    shapes["conv1.weight"] = (64, 3, 3, 3)
    assert {n: tuple(p.shape) for n, p in small.named_parameters()} == shapes
    assert sum(p.numel() for p in small.parameters()) == parameters
    assert small.forward_features(images(3, 32)).shape[-2:] == (4, 4)  # 32 / 8, where the large one has 1


def test_the_small_stem_is_a_convolution_of_stride_1_without_pooling():
    module = timm.create_model("resnet18_small", num_classes=0, features_only=True)
    shapes = [m.shape[1:] for m in module(images(3, 32))]
    assert shapes == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert module.feature_info.reduction() == [1, 1, 2, 4, 8]


def test_narrow_variants_have_their_share_of_the_channels():
    for name, features in (("resnet18_small_w50", 256), ("resnet18_small_w25", 128), ("resnet50_small_w25", 512)):
        assert timm.create_model(name, num_classes=0).num_features == features


def test_tiny_layout_keeps_position_where_pooling_would_lose_it():
    module = timm.create_model("tiny_layout", num_classes=0).eval()
    left, right = torch.zeros(2, 1, 1, 16, 16)
    left[..., 4:8, 2:4] = 1
    right[..., 4:8, 10:12] = 1
    with torch.no_grad():
        a, b = (module.forward_features(x) for x in (left, right))
        assert not torch.allclose(module(left), module(right), atol=1e-2)
        # the same stroke 8 pixels on is the same map 2 cells on, inside the border
        torch.testing.assert_close(a[..., :2], b[..., 2:], atol=0.2, rtol=0.2)
        torch.testing.assert_close(module(left), a.flatten(1))


@pytest.mark.parametrize("side", [8, 12, 17, 32])
def test_tiny_layout_takes_any_size_and_gives_as_many_features(side):
    module = timm.create_model("tiny_layout", num_classes=0, in_chans=3).eval()
    assert module(images(3, side)).shape == (2, 512)
    assert timm.create_model("tiny_layout", num_classes=0, grid=2, widths=(8, 8, 8, 8, 5)).num_features == 20


def test_tiny_layout_has_no_pooling_to_set():
    with pytest.raises(ValueError, match="global_pool='avg'"):
        timm.create_model("tiny_layout").reset_classifier(3, "avg")


def test_dropout_stands_before_the_classifier_and_only_in_training():
    module = timm.create_model("tiny_layout", num_classes=4, drop_rate=0.5)
    assert isinstance(module.fc, nn.Linear)
    torch.manual_seed(0)
    maps = torch.ones(1, 32, 4, 4)
    assert not torch.equal(module.forward_head(maps), module.forward_head(maps))
    module.eval()
    assert torch.equal(module.forward_head(maps), module.forward_head(maps))


@pytest.mark.parametrize(("width", "millions"), [(2, 94), (4, 375), (5, 586)])
def test_parameters_are_as_many_as_published(width, millions):
    with torch.device("meta"):
        module = timm.create_model(f"resnet50_w{width}", num_classes=0)
    assert round(sum(p.numel() for p in module.parameters()) / 1e6) == millions
    assert module.num_features == 2048 * width
    assert module(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 2048 * width)


@pytest.mark.parametrize("width", [2, 5])
def test_every_channel_is_multiplied_and_no_name_changed(width):
    with torch.device("meta"):
        single = timm.create_model("resnet50", num_classes=0, in_chans=3).state_dict()
        wide = timm.create_model(f"resnet50_w{width}", num_classes=0, in_chans=3).state_dict()
    assert list(wide) == list(single)
    for name, tensor in single.items():
        first, *rest = tensor.shape or [1]
        inputs = [] if not rest else rest if name == "conv1.weight" else [width * rest[0], *rest[1:]]
        assert list(wide[name].shape or [width]) == [width * first, *inputs], name


def test_a_wide_resnet_halves_the_image_five_times():
    with torch.device("meta"):
        module = timm.create_model("resnet50_w2", num_classes=0)
    assert module.conv1.stride == (2, 2)
    assert module.forward_features(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 4096, 7, 7)
