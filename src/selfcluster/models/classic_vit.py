"""Vision transformers that timm lacks, registered with it by importing this file.

Dosovitskiy et al. 2021, arXiv 2010.11929, in the sizes of Touvron et al. 2021 (arXiv 2012.12877): tiny, small and base
have 192, 384 and 768 channels in 3, 6 and 12 heads, and twelve blocks. `vit_tiny_patch4_32` cuts images of 32 px into
patches of 4; `patch2_16` is for digits, `patch8_64` for images of 64 px, and `vit_tiny_patch8_224` completes timm's
row. Every one takes other image sizes too (`img_size`, `dynamic_img_size`).
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from selfcluster.models.entries import entry, register

_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # channels, heads
_GRIDS = ((2, 16), (4, 32), (8, 64))  # pixels of a patch and of the image: 8 x 8 patches each
_NAMES = {f"vit_{size}_patch{patch}_{side}": (size, patch, side) for size in _SIZES for patch, side in _GRIDS} | {
    "vit_tiny_patch8_224": ("tiny", 8, 224)
}


_TAKEN: dict[str, Any] = {"pool_size": None, "interpolation": "bicubic", "crop_pct": 1.0}
_CONFIGS: dict[str, Any] = {
    name: entry(side, "patch_embed.proj", "head", **_TAKEN) for name, (_, _, side) in _NAMES.items()
}
default_cfgs = generate_default_cfgs(_CONFIGS)


def _register(name: str, size: str, patch: int, side: int) -> None:
    channels, heads = _SIZES[size]

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        own: dict[str, Any] = {
            "img_size": side,
            "patch_size": patch,
            "embed_dim": channels,
            "num_heads": heads,
            "depth": 12,
        }
        return build_model_with_cfg(VisionTransformer, name, pretrained, **own | kwargs)

    register(name, create, f"twelve blocks of {channels} channels, patches of {patch} in images of {side} pixels")


for _name, (_size, _patch, _side) in _NAMES.items():
    _register(_name, _size, _patch, _side)
