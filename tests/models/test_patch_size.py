"""Vision transformers with patches of a size that their architecture does not have."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from selfcluster import api
from selfcluster.models.backbones import load_backbone, make_backbone, save_backbone
from selfcluster.models.initialize import PartialWeights
from selfcluster.models.maps import feature_maps
from selfcluster.models.origin import find_origin
from selfcluster.models.pretrained import load_network

TINY = {"embed_dim": 12, "num_heads": 2, "depth": 2}
NAME = "vit_tiny_patch4_32"


def network(side: int = 5, image_size: int = 30, **more):
    return make_backbone(NAME, channels=3, image_size=image_size, patch_size=side, **(TINY | more))


@pytest.mark.parametrize(("side", "image_size"), [(5, 30), (3, 27), (16, 32)])
def test_a_patch_has_the_size_asked_for(side, image_size):
    """The embedding of a patch is its product with the weights; positions are one a patch, and one for the class."""
    module = network(side, image_size).eval()
    grid = image_size // side
    assert module.patch_embed.proj.weight.shape == (12, 3, side, side)
    assert module.pos_embed.shape == (1, 1 + grid * grid, 12)
    images = torch.randn(2, 3, image_size, image_size)
    tokens = module.patch_embed(images).flatten(1, 2)
    weight, bias = module.patch_embed.proj.weight.double(), module.patch_embed.proj.bias.double()
    row, column = 1, grid - 1
    patch = images[1, :, row * side : (row + 1) * side, column * side : (column + 1) * side].double()
    expected = (weight * patch).sum(dim=(1, 2, 3)) + bias
    torch.testing.assert_close(tokens[1, row * grid + column].double(), expected, rtol=1e-4, atol=1e-5)
    assert feature_maps(module, images).places.shape == (2, 12, grid, grid)


def test_other_image_sizes_have_their_own_positions():
    module = network().eval()
    assert module(torch.randn(1, 3, 20, 20)).shape == (1, 12)
    places = feature_maps(module, torch.randn(1, 3, 20, 45)).places
    assert places.shape[2:] == (4, 9)


def test_images_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"--patch-size 5: the image size, 32 px, .* use --image-size 30 or 35"):
        network(5, 32)
    with pytest.raises(ValueError, match="takes no patch_size"):
        make_backbone("resnet18", channels=3, image_size=30, patch_size=5)


def test_an_export_keeps_its_patches(tmp_path):
    module = network().eval()
    save_backbone(tmp_path, module, (0.5,) * 3, (0.5,) * 3, 30)
    assert json.loads((tmp_path / "backbone.json").read_text())["patch_size"] == 5
    images = torch.randn(1, 3, 30, 30)
    torch.testing.assert_close(load_backbone(tmp_path)[0](images), module(images))
    again = find_origin(tmp_path).make(**TINY).eval()  # --init, without --patch-size
    torch.testing.assert_close(again(images), module(images))
    with pytest.raises(PartialWeights, match=r"patch_embed\.proj\.weight \(12 x 3 x 5 x 5 in the file"):
        find_origin(tmp_path).make(patch_size=6, **TINY)


def test_timms_weights_are_not_resized():
    """timm itself would resize the patch embedding without a word; nothing is downloaded before the check."""
    origin = find_origin("timm:vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"patches of 16 x 16 px\. Leave --patch-size out"):
        origin.make(image_size=30, patch_size=5)
    with pytest.raises(ValueError, match="resnet18 has no patches"):
        find_origin("timm:resnet18").make(image_size=30, patch_size=5)


def test_a_run_is_trained_embedded_looked_into_and_tracked_with(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / "davis" / kind / "square").mkdir(parents=True)
    for i in range(8):
        pixels = rng.integers(0, 60, (30, 40, 3)).astype(np.uint8)
        pixels[10:20, i : 10 + i] = 250
        mask = np.zeros((30, 40), np.uint8)
        mask[10:20, i : 10 + i] = 255
        Image.fromarray(pixels).save(tmp_path / "davis/JPEGImages/square" / f"{i:05d}.png")
        Image.fromarray(mask).save(tmp_path / "davis/Annotations/square" / f"{i:05d}.png")
    images, run = tmp_path / "davis" / "JPEGImages", tmp_path / "run"
    settings = {"backbone": NAME, "patch_size": 5, "image_size": 10, "local_crops": 0, "batch_size": 4}
    settings |= {"images_seen": 4, "judge_sample": 0, "quiet": True, "workers": 0, "precision": "fp32"}
    api.train("simclr", images, out=run, dim=8, hidden=8, **settings)
    module = load_network(str(run)).module
    assert module.patch_embed.proj.weight.shape[2:] == (5, 5)
    assert api.embed(run, images, out=tmp_path / "e.parquet", workers=0).vectors.shape == (8, 192)
    shown = api.attention(run, [images / "square" / "00000.png"], image_size=30)
    assert list(shown["grid"]) == [6, 6]
    tracked = api.evaluate("video", run, train=tmp_path / "davis", frame_side=30, max_frames=3)
    assert tracked.table[0]["frames"] == 1
