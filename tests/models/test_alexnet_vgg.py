"""DeepCluster's AlexNet and VGG16: the paper's sizes, timm's contract, other image sizes."""

from __future__ import annotations

from math import sqrt

import pytest
import timm
import torch
from torch import nn
from torchvision.models import vgg

from selfcluster.models import alexnet_vgg
from selfcluster.models.backbones import load_backbone, make_backbone, save_backbone

NAMES = sorted(alexnet_vgg.default_cfgs)


def images(channels: int, side: int, n: int = 1) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_both_keep_timms_contract(name):
    module = timm.create_model(name, num_classes=7, in_chans=2, hidden=24).eval()
    x = images(2, 32, 2)
    assert module(x).shape == (2, 7)
    assert module.get_classifier().out_features == 7
    features = module.forward_head(module.forward_features(x), pre_logits=True)
    assert features.shape == (2, module.num_features) == (2, 24)
    assert (features < 0).any(), "features are those before the last ReLU"
    torch.testing.assert_close(module(x), module.fc(features.relu()))
    module.reset_classifier(0)
    assert torch.equal(module(x), features)
    with pytest.raises(ValueError, match="global_pool='avg'"):
        module.reset_classifier(3, "avg")


@torch.no_grad()
def test_alexnet_has_the_papers_maps_and_parameters():
    module = timm.create_model("deepcluster_alexnet", num_classes=0, in_chans=2).eval()
    assert module.num_features == 4096
    # by hand: convolutions k^2 in out + out, batch norms 2 out, fc6 9216 x 4096 and fc7 4096 x 4096 with biases
    widths = [(11, 2, 96), (5, 96, 256), (3, 256, 384), (3, 384, 384), (3, 384, 256)]
    convolutions = sum(k * k * before * after + 3 * after for k, before, after in widths)
    linear = 9216 * 4096 + 4096 + 4096 * 4096 + 4096
    assert sum(p.numel() for p in module.parameters()) == convolutions + linear
    x, sides = images(2, 224), {}
    for block, layer in module.named_children():
        if block.startswith(("conv", "pool")):
            x = layer(x)
            sides[block] = x.shape[-1]
    assert list(sides.values()) == [55, 27, 27, 13, 13, 13, 13, 6]
    assert list(sides) == ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
    assert [stage["reduction"] for stage in module.feature_info] == [4, 8, 16, 16, 16]
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in module.modules())
    assert all(isinstance(getattr(module, f"conv{n}")[1], nn.BatchNorm2d) for n in range(1, 6))


@torch.no_grad()
def test_vgg16_is_torchvisions_with_batch_norm_up_to_the_linear_layers():
    """The same convolutional part, and the same values with its weights."""
    ours = timm.create_model("deepcluster_vgg16", num_classes=0, hidden=8).eval()
    theirs = vgg.make_layers(vgg.cfgs["D"], batch_norm=True).eval()
    target = [m for m in ours.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    source = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for mine, other in zip(target, source, strict=True):
        mine.load_state_dict(other.state_dict())
    x = images(3, 224)
    torch.testing.assert_close(ours.forward_features(x), theirs(x))
    assert ours.forward_features(x).shape == (1, 512, 7, 7)
    assert ours.fc6.in_features == 512 * 49


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [16, 32, 64, 80, 96])
@torch.no_grad()
def test_other_sizes_run(name, side):
    torch.manual_seed(0)  # of eight hidden units, all may be silent by chance
    module = timm.create_model(name, num_classes=0, hidden=8).eval()
    features = module(images(3, side, 2))
    assert features.shape == (2, 8)
    assert not torch.equal(features[0], features[1])


def test_a_map_smaller_than_the_window_is_not_pooled():
    pool = alexnet_vgg.Pool(3)
    x = images(4, 2)
    assert torch.equal(pool(x), x)
    assert pool(images(4, 3)).shape[-1] == 1


@pytest.mark.parametrize(("name", "before_fc6"), [("deepcluster_alexnet", True), ("deepcluster_vgg16", False)])
def test_dropout_stands_where_each_network_has_it(name, before_fc6):
    module = timm.create_model(name, num_classes=0, hidden=64)
    seen = {}
    module.fc6.register_forward_pre_hook(lambda m, args: seen.update(fc6=args[0]))
    module.fc7.register_forward_pre_hook(lambda m, args: seen.update(fc7=args[0]))
    maps = torch.ones(1, module.fc6.in_features // module.grid**2, module.grid, module.grid)
    nn.init.ones_(module.fc6.weight)
    torch.manual_seed(0)
    module.train().forward_head(maps)
    dropped = {layer: float((x == 0).float().mean()) for layer, x in seen.items()}
    assert dropped["fc6"] == pytest.approx(0.5 if before_fc6 else 0.0, abs=0.05)
    assert dropped["fc7"] == pytest.approx(0.5, abs=0.25)
    module.eval().forward_head(maps)
    assert all((x != 0).all() for x in seen.values())


def test_weights_start_as_in_the_released_code():
    module = timm.create_model("deepcluster_alexnet", num_classes=0, hidden=512)
    for number, fan_out in ((1, 121 * 96), (2, 25 * 256), (3, 9 * 384)):
        convolution = getattr(module, f"conv{number}")[0]
        assert convolution.weight.std().item() == pytest.approx(sqrt(2 / fan_out), rel=0.02)
        assert (convolution.bias == 0).all()
    assert module.fc6.weight.std().item() == pytest.approx(0.01, rel=0.02)


@torch.no_grad()
def test_each_convolution_can_be_probed():
    for name, count in (("deepcluster_alexnet", 5), ("deepcluster_vgg16", 13)):
        module = timm.create_model(name, hidden=8, features_only=True, out_indices=range(count))
        maps = module(images(3, 64))
        assert [m.shape[1] for m in maps] == module.feature_info.channels()
        assert [64 / m.shape[-1] for m in maps] == pytest.approx(module.feature_info.reduction(), rel=0.5)


def test_an_export_is_loaded_by_timm_alone(tmp_path):
    module = make_backbone("deepcluster_alexnet", channels=3, image_size=32, hidden=16)
    save_backbone(tmp_path, module, (0.5,) * 3, (0.25,) * 3, 32)
    loaded, *_ = load_backbone(tmp_path)
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}
    x = images(3, 32)
    assert torch.equal(loaded(x), module.eval()(x))


def test_one_dropout_of_the_asked_share_stands_between_vggs_linear_layers():
    """DeeperCluster's RotNet has 0.3 there; the first linear layer's input is never dropped."""
    module = make_backbone("deepcluster_vgg16", channels=3, image_size=32, hidden=512, drop_rate=0.3).train()
    kept: dict[str, torch.Tensor] = {}
    module.fc6.register_forward_hook(lambda _, x, y: kept.update(before=x[0], positive=y > 0))
    module.fc7.register_forward_hook(lambda _, x, y: kept.update(dropped=x[0]))
    with torch.no_grad():
        module(images(3, 32, 2))
    dropped = (kept["dropped"] == 0) & kept["positive"]
    assert dropped.sum() / kept["positive"].sum() == pytest.approx(0.3, abs=0.04)
    assert module.drops == (0.0, 0.3)


def test_linear_layers_start_from_deepclusters_normal_numbers():
    """DeeperCluster's released VGG-16 leaves torch's uniform numbers there: at most 1 / sqrt(1024) in fc7 here."""
    weight = timm.create_model("deepcluster_vgg16", num_classes=0, hidden=1024).fc7.weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert weight.abs().max() > 1024**-0.5
