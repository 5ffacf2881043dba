"""The edge filters: by hand, against the definition, and in front of any network."""

import copy
import json

import pytest
import timm
import torch
from torch.nn import functional as F

from selfcluster.models.backbones import load_backbone, make_backbone, save_backbone
from selfcluster.models.sobel import Sobel


@pytest.mark.parametrize("padding", [0, 1])
def test_sobel_is_the_mean_and_two_edge_filters(padding):
    x = torch.randn(2, 3, 7, 9)
    gray = F.conv2d(x, torch.full((1, 3, 1, 1), 1 / 3))
    kernels = torch.tensor([[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]])
    expected = F.conv2d(gray, kernels.float()[:, None], padding=padding)
    sobel = Sobel(padding)
    torch.testing.assert_close(sobel(x), expected)
    assert not list(sobel.parameters())
    assert not sobel.state_dict()


def test_sobel_answers_to_edges_by_hand():
    step = torch.zeros(1, 1, 5, 6)
    step[..., 3:] = 1  # dark left, bright right
    out = Sobel()(step)[0, :, 1:4, 1:5]
    assert out[0].tolist() == [[0, -4, -4, 0]] * 3
    assert out[1].abs().max() == 0


def test_a_network_sees_the_edges_of_images():
    torch.manual_seed(0)
    network = make_backbone("resnet18_small_w25", channels=3, image_size=16, sobel=True).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.manual_seed(0)
    bare = make_backbone("resnet18_small_w25", channels=2, image_size=16).eval()
    bare.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network(images), bare(Sobel()(images)))
        assert torch.equal(copy.deepcopy(network)(images), network(images))
        brighter = network(images + torch.randn(2, 1, 1, 1).expand(-1, -1, 16, 16))
        assert not torch.equal(brighter, network(images))  # at the border only, where zeros are padded


def test_a_saved_network_of_edges_takes_images_again_and_timm_loads_it(tmp_path):
    network = make_backbone("resnet18_small_w25", channels=3, image_size=16, sobel=True).eval()
    save_backbone(tmp_path, network, (0.5,) * 3, (0.25,) * 3, 16)
    loaded, mean, _, size = load_backbone(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
        described = json.loads((tmp_path / "backbone.json").read_text())
        plain = timm.create_model(**described, checkpoint_path=str(tmp_path / "backbone.safetensors")).eval()
        torch.testing.assert_close(plain(Sobel()(images)), network(images))
    assert (len(mean), size) == (3, 16)
