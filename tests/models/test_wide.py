"""ResNet-50 at width 2, 4 and 5, on the meta device: no memory is used."""

from __future__ import annotations

import pytest
import timm
import torch

import selfcluster  # noqa: F401 - registers the networks


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


def test_it_halves_the_image_five_times():
    with torch.device("meta"):
        module = timm.create_model("resnet50_w2", num_classes=0)
    assert module.conv1.stride == (2, 2)
    assert module.forward_features(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 4096, 7, 7)
