"""Filters: the first weights as they are, and gradient ascent where its result is known."""

from typing import Any

import pytest
import torch
from torch import nn

from selfcluster.models.backbones import make_backbone
from selfcluster.models.filters import ascend, convolutions, first_filters, responses
from selfcluster.models.sobel import Sobel


class Linear(nn.Module):
    """Responses that are scalar products with two patterns of three colors and 6 x 6 pixels."""

    def __init__(self, patterns):
        super().__init__()
        self.conv = nn.Conv2d(3, len(patterns), 6, bias=False)
        self.conv.weight.data.copy_(patterns)

    def forward(self, images):
        return self.conv(images).flatten(1)


def test_the_image_of_a_linear_filter_is_its_pattern_less_the_other_one():
    """With p the softmax of two responses, cross-entropy's gradient for filter 0 is (p0 - 1) a + p1 b = p1 (b - a)."""
    patterns = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    network = Linear(patterns).requires_grad_(False)
    with responses(network, None) as respond:
        made = ascend(respond, [0, 1], (3, 6, 6), steps=60, decay=0.05, blur_every=0)
    direction = (patterns[0] - patterns[1]).flatten()
    for image, sign in zip(made, (1, -1), strict=True):
        assert torch.cosine_similarity(image.flatten(), sign * direction, dim=0) > 0.99


def test_ascent_raises_the_filters_share_and_follows_the_seed():
    torch.manual_seed(0)
    network = make_backbone("tiny_layout", image_size=16, channels=3).eval().requires_grad_(False)
    layer = convolutions(network)[-1]
    with responses(network, layer) as respond:
        before = ascend(respond, [0, 3], (3, 16, 16), steps=1, blur_every=0, seed=1)
        after = ascend(respond, [0, 3], (3, 16, 16), steps=40, blur_every=0, seed=1)
        shares = [respond(images).softmax(dim=1)[[0, 1], [0, 3]] for images in (before, after)]
        assert (shares[1] > 3 * shares[0]).all()
        torch.testing.assert_close(
            ascend(respond, [0, 3], (3, 16, 16), steps=40, blur_every=0, seed=1), after, rtol=0, atol=0
        )
        # an image does not depend on which others are made beside it
        alone = ascend(respond, [3], (3, 16, 16), steps=40, blur_every=0, seed=1)
    torch.testing.assert_close(alone[0], after[1], rtol=1e-3, atol=1e-3)


def test_responses_are_means_over_places_or_tokens():
    network: Any = make_backbone("vit_tiny_patch16_224", image_size=32, channels=3).eval()
    images = torch.randn(2, 3, 32, 32)
    kept = []
    network.blocks[1].register_forward_hook(lambda module, given, out: kept.append(out))
    with responses(network, "blocks.1") as respond:
        found = respond(images)
    torch.testing.assert_close(found, kept[0].mean(dim=1))
    with pytest.raises(
        ValueError, match=r"--layer blocks.99: vit_tiny_patch16_224 has no such layer; it has patch_embed"
    ):
        responses(network, "blocks.99").__enter__()


def test_the_first_filters_are_those_behind_sobels_fixed_ones():
    conv = nn.Conv2d(2, 5, 3)
    network = nn.Sequential(Sobel(), conv, nn.Conv2d(5, 7, 1))
    torch.testing.assert_close(first_filters(network), conv.weight.detach())
    with pytest.raises(ValueError, match="no convolution"):
        first_filters(nn.Linear(2, 2))
