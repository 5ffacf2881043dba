"""Features by a network's word equal timm's own pipeline, whatever the network's normalization and interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from selfcluster import api
from selfcluster.models.backbones import make_backbone, save_backbone
from selfcluster.models.origin import starter_file
from selfcluster.models.preprocessing import from_config
from selfcluster.models.pretrained import load_network

try:
    starter_file()
    STARTER = True
except FileNotFoundError:
    STARTER = False

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# network, size, what its published weights expect
NETWORKS = {
    "test_resnet": (64, {"mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bilinear", "crop_pct": 0.875}),
    "test_vit": (64, {"mean": HALF, "std": HALF, "interpolation": "bicubic", "crop_pct": 0.95}),
    "test_efficientnet": (80, {"mean": HALF, "std": HALF, "interpolation": "bicubic", "crop_pct": 0.875}),
    "test_convnext": (
        64,
        {"mean": (0.2, 0.5, 0.8), "std": (0.3, 0.2, 0.1), "interpolation": "bilinear", "crop_pct": 1.0},
    ),
    "test_byobnet": (
        96,
        {"mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "squash"},
    ),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six crops of two photographs, as PNG and JPEG, upright, across and square."""
    from sklearn.datasets import load_sample_image

    folder = tmp_path_factory.mktemp("photos")
    for name in ("china.jpg", "flower.jpg"):
        picture = Image.fromarray(load_sample_image(name))
        for number, box in enumerate(((0, 0, 640, 427), (100, 20, 300, 420), (150, 100, 350, 300))):
            picture.crop(box).save(folder / f"{name[:-4]}-{number}.{'png' if number else 'jpg'}", quality=95)
    return folder


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


@torch.no_grad()
def by_timm(module, config, photos) -> np.ndarray:
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    images = [transform(Image.open(path).convert("RGB")) for path in sorted(photos.iterdir())]
    return module.eval()(torch.stack(images)).numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_timms_own_pipeline(tmp_path, name, photos):
    size, expects = NETWORKS[name]
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=0, **({"img_size": size} if "vit" in name else {}))
    config = {"input_size": (3, size, size), **expects}
    with torch.no_grad():
        module(torch.rand(8, 3, size, size))  # moves the statistics of batch norm off 0 and 1
    made = make_backbone(name, channels=3, image_size=size, preprocessing=from_config(config))
    made.load_state_dict(module.state_dict())
    save_backbone(tmp_path / "network", made, expects["mean"], expects["std"], size)
    table = api.embed(tmp_path / "network", photos, precision="fp32")
    assert cosines(table["vectors"], by_timm(module, config, photos)).min() > 0.999
    # and through what an export tells timm
    exported = load_network(api.export(tmp_path / "network", tmp_path / "export")["weights"])
    overlay = exported.module.spec["pretrained_cfg_overlay"]
    again = by_timm(exported.module, overlay, photos)
    assert cosines(table["vectors"], again).min() > 0.999


@pytest.mark.skipif(not STARTER, reason="the extra `starter` is not installed")
def test_the_starters_features_are_those_of_timms_own_pipeline(photos):
    table = api.embed("starter", photos, precision="fp32")
    network = load_network("starter")
    theirs = by_timm(network.module, timm.get_pretrained_cfg("tf_efficientnet_lite0").to_dict(), photos)
    assert cosines(table["vectors"], theirs).min() > 0.999
