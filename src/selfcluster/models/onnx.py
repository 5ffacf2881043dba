"""A backbone as an ONNX file, for programs without torch. Needs the `onnx` package: pip install 'selfcluster[onnx]'.

The file takes normalized images of one size, any number of them, and its metadata say how they are prepared. Or it
takes pixels in 0..1 and normalizes them itself.

B images, C channels, F features.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfcluster.files import write_atomically
from selfcluster.models.backbones import Backbone, preprocessing_of

_OPSET = 17  # of 2022: every runtime in use reads it, and it has all that our networks need
_CLOSE = 1e-3  # of the largest feature; what float32 sums in another order may differ by


def export_onnx(
    folder: str | Path,
    module: Backbone,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    *,
    normalize_inside: bool = False,
) -> dict[str, str]:
    """Write `backbone.onnx`: one input, `images` (B, C, size, size), and one output, `features` (B, F), both float32.

    The file appears under its name only after ONNX's own evaluator has computed from it what the network computes.

    Args:
        folder: made if it does not exist.
        module: from `make_backbone` or `load_backbone`, on the CPU; evaluation mode is set.
        mean, std: of the images' normalization, one number a channel.
        size: side of the images in pixels.
        normalize_inside: let the file take pixels in 0..1 and subtract the mean and divide by std itself.

    Returns:
        The metadata in the file: model_name, channels (their order), mean, std, size, interpolation, crop_pct,
        normalized_inside, input (in words).

    Raises:
        ValueError: the onnx package is missing.
        RuntimeError: the network cannot be written as ONNX, or the file computes something else.
    """
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ValueError("--format onnx needs the package: pip install 'selfcluster[onnx]'") from error
    name = module.spec["model_name"]
    prepared = preprocessing_of(module)
    scaled = "pixel values / 255" if normalize_inside else "pixel values / 255, minus mean, divided by std"
    resize = "both sides" if prepared.crop_mode == "squash" else "the image's shorter side"
    metadata = {
        "model_name": name,
        "channels": "RGB" if len(mean) == 3 else "gray",
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "size": str(size),
        "interpolation": prepared.interpolation,
        "crop_pct": str(prepared.crop_pct),
        "normalized_inside": json.dumps(normalize_inside),
        "input": f"float32 (batch, channel, row, column): {scaled}; {resize} resized to "
        f"{max(size, math.floor(size / prepared.crop_pct))} px, the center cut out",
    }
    network: Any = _Normalizing(module, mean, std) if normalize_inside else module
    images = torch.rand(3, len(mean), size, size, generator=torch.Generator().manual_seed(0))

    def write(temporary: Path) -> None:
        _trace(network, images[:2], temporary)
        model = onnx.load(temporary)
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        onnx.save(model, temporary)
        with torch.no_grad():
            expected = network(images)
        # three images where two were traced: a batch size that became a constant shows
        (found,) = ReferenceEvaluator(model).run(None, {"images": images.numpy()})
        error = (torch.as_tensor(found) - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        if not error <= _CLOSE:
            raise RuntimeError(
                f"the exported ONNX network gives other features than {name}: they differ by up to {error:.1%} of the "
                "largest feature. Nothing was written. Use --format safetensors"
            )

    network.eval()
    Path(folder).mkdir(parents=True, exist_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    write_atomically(Path(folder) / "backbone.onnx", write, size)
    return metadata


class _Normalizing(torch.nn.Module):
    """A network that is given pixels in 0..1."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: torch.nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(tuple(mean))[:, None, None])
        self.register_buffer("std", torch.tensor(tuple(std))[:, None, None])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network((pixels - self.mean) / self.std)


def _trace(module: nn.Module, images: torch.Tensor, path: Path) -> None:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["features"]}
    free = {"images": {0: "batch"}, "features": {0: "batch"}}
    with warnings.catch_warnings():
        # the exporter by tracing is called legacy, but the newer one needs a further package, and warns of shapes that
        # become constants: the size is meant to, and the batch is checked
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (images,), str(path), dynamo=False, opset_version=_OPSET, dynamic_axes=free, **names)
