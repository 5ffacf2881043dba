"""Depths of networks: the published windows and sizes, pooling by hand, class tokens, and modules found by name."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from selfcluster.models.backbones import make_backbone
from selfcluster.models.depths import MOST, Depths, LastTokens, depths_of, pooled, windows_of
from selfcluster.models.maps import feature_maps
from selfcluster.models.taps import averaged, output_of


class Named:
    def __init__(self, name):
        self.spec = {"model_name": name}


# channels and side of each depth at 224 pixels, and the published number of features
PUBLISHED = {
    "deepcluster_alexnet": [(96, 55, 9600), (256, 27, 9216), (384, 13, 9600), (384, 13, 9600), (256, 13, 9216)],
    "deepcluster_vgg16": [
        *[(64, 224, 9216)] * 2, *[(128, 112, 8192)] * 2, *[(256, 56, 9216)] * 3, *[(512, 28, 8192)] * 3,
        *[(512, 14, 8192)] * 3,
    ],
    "resnet50": [(64, 112, 9216), (256, 56, 9216), (512, 28, 8192), (1024, 14, 9216), (2048, 7, 8192)],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_windows_give_the_published_sizes_and_so_do_equal_parts(name):
    windows = windows_of(Named(name))
    for channels, side, count in PUBLISHED[name]:
        assert (channels, side) in windows
        maps = torch.rand(1, channels, side, side)
        assert pooled(maps, windows).numel() == count
        assert pooled(maps, {}).numel() == count  # maps of other sizes get the same number


def test_published_depths_of_the_networks():
    alexnet = make_backbone("deepcluster_alexnet", channels=3, image_size=224)
    assert depths_of(alexnet) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert depths_of(alexnet, 2) == ["conv4", "conv5"]
    with torch.no_grad():
        maps = Depths(alexnet, depths_of(alexnet))(torch.rand(1, 3, 224, 224))
    assert [part.numel() for part in maps] == [count for _, _, count in PUBLISHED["deepcluster_alexnet"]]
    assert depths_of(make_backbone("resnet18", channels=3, image_size=32)) == [
        "act1", "layer1", "layer2", "layer3", "layer4",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="does not list its depths; name one with --layer"):
        depths_of(torch.nn.Linear(2, 2))


def test_pooling_by_hand():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pooled(maps, {(1, 4): (2, 2, 0)})[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    # zeros around the map count, as in the released code
    assert pooled(maps, {(1, 4): (4, 4, 2)})[0, 0].tolist() == [[10 / 16, 18 / 16], [42 / 16, 50 / 16]]
    assert torch.equal(pooled(maps, {}), maps)  # smaller than what is wanted: unchanged
    assert pooled(torch.rand(1, 2 * MOST, 3, 3), {}).shape == (1, 2 * MOST, 1, 1)


def test_each_depth_is_what_the_network_computes_there():
    torch.manual_seed(0)
    network = make_backbone("tiny_layout", channels=3, image_size=16).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        x, expected = images, []
        for number in range(1, 6):
            x = getattr(network, f"layer{number}")(x)
            expected.append(x)
    names = depths_of(network)
    for part, whole in zip(Depths(network, names)(images), expected, strict=True):
        torch.testing.assert_close(part, pooled(whole, {}))
    torch.testing.assert_close(output_of(network, images, "layer3"), expected[2])
    torch.testing.assert_close(feature_maps(network, images, "layer3").places, expected[2])
    assert not any(p.requires_grad for p in Depths(network, names).parameters())


def test_blocks_give_the_class_token_behind_the_last_norm():
    torch.manual_seed(0)
    network = cast(Any, make_backbone("vit_tiny_patch8_64", channels=3, image_size=64).eval())
    images = torch.rand(2, 3, 64, 64)
    names = depths_of(network)
    with torch.no_grad():
        tokens = [output_of(network, images, name) for name in names]
        expected = [network.norm(part)[:, 0] for part in tokens]
        patches = network.norm(tokens[-1])[:, 1:].mean(dim=1)
        for part, row in zip(Depths(network, names)(images), expected, strict=True):
            torch.testing.assert_close(part.flatten(1), row)
        four = LastTokens(network, 4, False)(images)[0]
        torch.testing.assert_close(four.flatten(1), torch.cat(expected[-4:], dim=1))
        both = LastTokens(network, 1, True)(images)[0]
        torch.testing.assert_close(both.flatten(1), torch.cat([expected[-1], patches], dim=1))
    assert four.shape[1] == 4 * network.num_features


def test_modules_are_found_by_name_and_averaged():
    network = make_backbone("tiny_layout", channels=3, image_size=16)
    with pytest.raises(ValueError, match=r"--layer layer9: tiny_layout has no such layer; it has layer1, layer2"):
        output_of(network, torch.rand(2, 3, 16, 16), "layer9")
    with pytest.raises(ValueError, match=r"--layer all: .*; only `evaluate linear` takes --layer all"):
        output_of(network, torch.rand(2, 3, 16, 16), "all")
    maps = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(averaged(maps), F.adaptive_avg_pool2d(maps, 1).flatten(1))
