"""Attention maps against their definition in float64, and the mask by hand."""

import numpy as np
import pytest
import timm
import torch

from selfcluster.models.attention import class_maps, last_attention, mass_mask
from selfcluster.models.backbones import make_backbone


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return make_backbone("vit_tiny_patch4_32", channels=3, image_size=32, depth=2)


@pytest.mark.parametrize("fused", [True, False])
def test_it_is_the_softmax_of_the_blocks_own_queries_and_keys(network, fused):
    images = torch.rand(2, 3, 32, 32)
    block = network.blocks[-1]
    block.attn.fused_attn = fused
    attention, grid = last_attention(network, images)
    assert attention.shape == (2, 3, 65, 65)
    assert grid == (8, 8)
    torch.testing.assert_close(attention.sum(dim=3), torch.ones(2, 3, 65))

    double = make_backbone("vit_tiny_patch4_32", channels=3, image_size=32, depth=2).double().eval()
    double.load_state_dict(network.state_dict())
    with torch.no_grad():
        x = double.norm_pre(double._pos_embed(double.patch_embed(images.double())))
        x = double.blocks[-1].norm1(double.blocks[0](x)).numpy()
    weight, bias = (p.detach().numpy() for p in (double.blocks[-1].attn.qkv.weight, double.blocks[-1].attn.qkv.bias))
    qkv = x @ weight.T + bias  # (2, 65, 3 * 192): queries, keys, values, each of three heads of 64
    for head in range(3):
        q, k = (qkv[..., 192 * part + 64 * head :][..., :64] for part in (0, 1))
        scores = np.exp(q @ k.transpose(0, 2, 1) / 8)  # sqrt(64)
        expected = scores / scores.sum(axis=2, keepdims=True)
        np.testing.assert_allclose(attention[:, head].numpy(), expected, atol=1e-6)


def test_it_is_what_the_block_really_computes(network):
    """Attention times values, projected, is the output of timm's own attention."""
    images = torch.rand(1, 3, 16, 24)
    layer = network.blocks[-1].attn
    caught = {}
    hook = layer.register_forward_hook(lambda module, args, output: caught.update(x=args[0], y=output))
    attention, grid = last_attention(network, images)
    hook.remove()
    assert grid == (4, 6)
    v = layer.qkv(caught["x"]).unflatten(2, (3, 3, 64))[:, :, 2].transpose(1, 2)
    torch.testing.assert_close(layer.proj((attention @ v).transpose(1, 2).flatten(2)), caught["y"])
    maps = class_maps(attention, grid)
    assert maps.shape == (1, 3, 4, 6)
    assert torch.equal(maps[0, 1, 2, 5], attention[0, 1, 0, 1 + 2 * 6 + 5])


def test_training_goes_on_as_before(network):
    network.train()
    last_attention(network, torch.rand(1, 3, 32, 32))
    assert network.training
    assert not network.blocks[-1].attn._forward_pre_hooks


def test_the_mask_holds_the_fewest_patches_with_the_mass():
    maps = torch.tensor([[[0.1, 0.4], [0.2, 0.3]], [[1.0, 0.0], [0.0, 0.0]]])
    assert mass_mask(maps, 0.6).tolist() == [[[False, True], [False, True]], [[True, False], [False, False]]]
    assert mass_mask(maps, 0.71)[0].tolist() == [[False, True], [True, True]]
    assert mass_mask(torch.full((4, 4), 0.5), 0.5).sum() == 8


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="TinyLayout: attention maps need a vision transformer"):
        last_attention(make_backbone("tiny_layout", channels=3, image_size=16), torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vit_small_patch16_dinov3", "Eva"),  # rotary positions
        ("eva02_tiny_patch14_224", "Eva"),  # and biases of its own
        ("beit_base_patch16_224", "Beit"),  # positions added to the scores, by a class that is called Attention too
        ("xcit_nano_12_p16_224", "Xcit"),  # between channels
        ("vit_dwee_patch16_reg1_gap_256", "VisionTransformer"),  # a difference of two softmaxes
        ("vit_tiny_r_s16_p8_224", "VisionTransformer"),  # plain, but its patches are of a residual network's map
        ("naflexvit_base_patch16_gap", "NaFlexVit"),  # plain, but its patches come cut
    ],
)
def test_other_attention_is_refused(name, kind):
    """Computing it as if it were plain would give a map that the network does not use, or none."""
    backbone = timm.create_model(name, depth=1, embed_dim=32, num_heads=2, num_classes=0)
    with pytest.raises(ValueError, match=f"^{kind}: attention maps need a vision transformer"):
        last_attention(backbone, torch.rand(1, 3, 224, 224))


@pytest.mark.parametrize("name", ["vit_base_patch16_gap_224", "vit_base_patch16_reg4_gap_256"])
def test_a_network_without_a_class_token_is_refused_even_if_registers_stand_first(name):
    backbone = timm.create_model(name, depth=1, embed_dim=32, num_heads=2, num_classes=0)
    with pytest.raises(ValueError, match="no class token"):
        last_attention(backbone, torch.rand(1, 3, *backbone.default_cfg["input_size"][1:]))


def test_timms_own_transformer_is_taken():
    backbone = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, num_classes=0)
    attention, grid = last_attention(backbone, torch.rand(1, 3, 224, 224))
    assert grid == (14, 14)
    assert attention.shape == (1, 2, 197, 197)
