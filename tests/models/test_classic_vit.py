"""Our transformers are timm's own, in the papers' sizes, at any image size."""

import pytest
import timm
import torch
import torch.nn.functional as F

from selfcluster.models.backbones import load_backbone, make_backbone, save_backbone

# published numbers of parameters at 224 px and patch 16, without classifier: 5.5, 21.7 and 85.8 million
SIZES = [("vit_tiny", 192, 5.5), ("vit_small", 384, 21.7), ("vit_base", 768, 85.8)]


@pytest.mark.parametrize(("name", "channels", "millions"), SIZES)
def test_sizes_are_the_papers(name, channels, millions):
    with torch.device("meta"):
        theirs = timm.create_model(f"{name}_patch16_224", num_classes=0)
        ours = timm.create_model(f"{name}_patch4_32", num_classes=0)
    assert sum(p.numel() for p in theirs.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert ours.num_features == channels
    # all but the patches' projection and the position embeddings is the same network
    mine = {n: p.shape for n, p in ours.named_parameters() if not n.startswith(("patch_embed", "pos_embed"))}
    assert mine == {n: p.shape for n, p in theirs.named_parameters() if not n.startswith(("patch_embed", "pos_embed"))}
    assert ours.pos_embed.shape == (1, 1 + 8 * 8, channels)


@pytest.mark.parametrize("name", ["vit_tiny_patch2_16", "vit_tiny_patch4_32", "vit_tiny_patch8_64"])
def test_they_take_other_sizes_and_are_saved(name, tmp_path):
    side = int(name.rpartition("_")[2])
    module = make_backbone(name, channels=3, image_size=side, depth=1).eval()
    assert module.num_features == 192
    assert module(torch.rand(2, 3, side // 2, side // 2)).shape == (2, 192)
    save_backbone(tmp_path, module, (0.5,) * 3, (0.5,) * 3, side)
    again, *_ = load_backbone(tmp_path)
    images = torch.rand(2, 3, side, side)
    assert torch.equal(again(images), module(images))


def test_position_embeddings_of_a_small_view_are_interpolated_bicubically():
    """What a 16 px view meets at the position (i, j) of its 4 x 4 patches is the 8 x 8 grid resampled."""
    module = make_backbone("vit_tiny_patch4_32", channels=3, image_size=32, depth=1).eval()
    assert module.pos_embed.std() > 0.01
    tokens = torch.zeros(1, 4, 4, 192)
    grid = module.pos_embed[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    small = F.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    expected = torch.cat([module.cls_token + module.pos_embed[:, :1], small], dim=1)
    torch.testing.assert_close(module._pos_embed(tokens), expected, atol=1e-6, rtol=0)
