"""A frozen teacher: its own size, channels and normalization, a layer inside it, and nothing that moves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfcluster.models.backbones import make_backbone
from selfcluster.models.frozen import Frozen

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def network(channels: int = 3, size: int = 16, **kwargs):
    torch.manual_seed(0)
    return make_backbone("tiny_layout", channels=channels, image_size=size, **kwargs)


def normalized(pixels, mean, std):
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_it_is_asked_about_views_of_another_normalization():
    teacher = Frozen(network(mean=MEAN, std=STD), mean=(0.1,) * 3, std=(0.7,) * 3)
    pixels = torch.rand(4, 3, 16, 16)
    asked = teacher(normalized(pixels, (0.1,) * 3, (0.7,) * 3))
    torch.testing.assert_close(asked, teacher.features(normalized(pixels, MEAN, STD)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(asked, teacher.network(normalized(pixels, MEAN, STD)), rtol=1e-4, atol=1e-5)


def test_it_resizes_to_its_own_size():
    teacher = Frozen(network(size=32))
    views = torch.randn(2, 3, 16, 16)
    large = F.interpolate(views, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher(views), teacher.features(large), rtol=1e-4, atol=1e-5)


def test_a_gray_teacher_sees_colors_in_gray_and_a_color_teacher_gray_three_times():
    gray = Frozen(network(channels=1, mean=(0.0,), std=(1.0,)), mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = torch.rand(2, 3, 16, 16)
    luma = 0.299 * pixels[:, :1] + 0.587 * pixels[:, 1:2] + 0.114 * pixels[:, 2:]
    torch.testing.assert_close(gray(pixels), gray.features(luma), rtol=1e-4, atol=1e-5)
    color = Frozen(network(mean=(0.0,) * 3, std=(1.0,) * 3), mean=(0.0,), std=(1.0,))
    torch.testing.assert_close(
        color(pixels[:, :1]), color.features(pixels[:, :1].repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5
    )


def test_nothing_in_it_is_trained_or_moves():
    teacher = Frozen(network())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not teacher(torch.randn(4, 3, 16, 16)).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_layer_is_averaged_over_positions():
    torch.manual_seed(0)
    plain = make_backbone("resnet18", channels=3, image_size=32).eval()
    teacher = Frozen(plain, layer="layer3")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = plain.maxpool(plain.act1(plain.bn1(plain.conv1(images))))
        expected = plain.layer3(plain.layer2(plain.layer1(x))).mean(dim=(2, 3))
    assert teacher.width == 256
    torch.testing.assert_close(teacher.features(images), expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_layer_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"--teacher-layer layer9: tiny_layout has no such layer; it has "):
        Frozen(network(), layer="layer9")


def test_with_a_classifier_it_gives_logits():
    head = nn.Linear(network().num_features, 5)
    teacher = Frozen(network(), classifier=head)
    images = torch.randn(2, 3, 16, 16)
    assert teacher.width == 5
    torch.testing.assert_close(teacher(images), head(teacher.features(images)), rtol=1e-4, atol=1e-5)


def test_a_classifier_stands_behind_the_relu_that_the_features_stop_before():
    head, teacher = nn.Linear(network().num_features, 5), network()
    plain = Frozen(teacher, classifier=head)
    images = torch.randn(2, 3, 16, 16)
    teacher.register_forward_hook(lambda module, given, out: out - out.mean())  # negative for some, as AlexNet's are
    linear = plain(images)
    teacher.stops_before_relu = True
    rows = plain.features(images)
    torch.testing.assert_close(plain(images), head(rows.relu()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(images), linear)


def test_a_layer_of_a_network_with_features_last_is_averaged_over_positions_too():
    swin = make_backbone(
        "swin_tiny_patch4_window7_224", channels=3, image_size=56, embed_dim=8, depths=(1, 1), num_heads=(1, 2)
    )
    teacher, maps = Frozen(swin, layer="layers.0"), []
    swin.layers[0].register_forward_hook(lambda module, given, out: maps.append(out))
    rows = teacher.features(torch.randn(2, 3, 56, 56))
    assert maps[0].shape == (2, 14, 14, 8)
    torch.testing.assert_close(rows, maps[0].mean(dim=(1, 2)), rtol=1e-4, atol=1e-5)


def test_a_layer_that_gives_no_row_an_image_is_refused():
    swin = make_backbone(
        "swin_tiny_patch4_window7_224", channels=3, image_size=56, embed_dim=8, depths=(1, 1), num_heads=(1, 2)
    )
    with pytest.raises(ValueError, match=r"--teacher-layer layers\.0\.blocks\.0\.attn: it gives 8 rows for 2 images"):
        Frozen(swin, layer="layers.0.blocks.0.attn")
