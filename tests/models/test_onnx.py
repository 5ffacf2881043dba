"""The exported file computes what the network computes, and says what it wants to be given."""

import builtins
import json

import numpy as np
import pytest
import torch

from selfcluster.models import onnx as ours
from selfcluster.models.backbones import make_backbone
from selfcluster.models.onnx import export_onnx

onnx = pytest.importorskip("onnx")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def features(path, images: torch.Tensor) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path)).run(["features"], {"images": images.numpy()})[0]


@pytest.mark.parametrize(
    ("name", "size", "create"),
    [
        ("tiny_layout", 16, {}),
        ("tiny_layout", 16, {"sobel": True}),
        ("resnet18_small_w25", 32, {}),
        ("test_vit", 64, {}),
    ],
)
def test_the_file_computes_the_networks_features(tmp_path, name, size, create):
    module = make_backbone(name, channels=3, image_size=size, **create).eval()
    for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean)  # statistics of a trained network, not 0 and 1
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    export_onnx(tmp_path / "out", module, MEAN, STD, size)
    images = torch.randn(5, 3, size, size)
    expected = module(images).detach().numpy()
    np.testing.assert_allclose(
        features(tmp_path / "out/backbone.onnx", images), expected, atol=1e-4 * np.abs(expected).max()
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["backbone.onnx"]


def test_the_normalization_is_in_the_file(tmp_path):
    said = export_onnx(tmp_path, make_backbone("tiny_layout", channels=3, image_size=16), MEAN, STD, 16)
    model = onnx.load(tmp_path / "backbone.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata == said
    assert json.loads(metadata["mean"]) == list(MEAN)
    assert json.loads(metadata["std"]) == list(STD)
    assert (metadata["model_name"], metadata["size"], metadata["channels"]) == ("tiny_layout", "16", "RGB")
    assert "minus mean, divided by std" in metadata["input"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param == "batch"
    assert [d.dim_value for d in shape[1:]] == [3, 16, 16]


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    module = make_backbone("tiny_layout", channels=3, image_size=16)
    other = make_backbone("tiny_layout", channels=3, image_size=16).eval()
    trace = ours._trace
    monkeypatch.setattr(ours, "_trace", lambda module, images, path: trace(other, images, path))
    with pytest.raises(RuntimeError, match="gives other features than tiny_layout: they differ by up to"):
        export_onnx(tmp_path, module, MEAN, STD, 16)
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_way_to_it_is_said(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "onnx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    module = make_backbone("tiny_layout", channels=3, image_size=16)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'selfcluster\[onnx\]'"):
        export_onnx(tmp_path, module, MEAN, STD, 16)


def test_normalization_inside_takes_pixels(tmp_path):
    module = make_backbone("tiny_layout", channels=3, image_size=16).eval()
    metadata = export_onnx(tmp_path, module, MEAN, STD, 16, normalize_inside=True)
    assert metadata["normalized_inside"] == "true"
    assert "pixel values / 255; the image's shorter side resized to 16 px" in metadata["input"]
    pixels = torch.rand(2, 3, 16, 16)
    normalized = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = module(normalized).detach().numpy()
    np.testing.assert_allclose(
        features(tmp_path / "backbone.onnx", pixels), expected, atol=1e-4 * np.abs(expected).max()
    )
