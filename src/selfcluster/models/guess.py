"""Which of timm's networks a weights file belongs to, by the names and shapes of its tensors.

Only networks in common use are tried, those of one family each time, and without allocating their weights. Some
networks have equal tensors and compute something else (EfficientNet with TensorFlow's padding or PyTorch's); the
answer then holds all of them, and the user decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfcluster.models.initialize import OtherInput, match, places

_VITS = [
    *(f"vit_{size}_patch16_{side}" for size in ("tiny", "small", "base", "large") for side in (224, 384)),
    *(f"vit_{size}_patch8_224" for size in ("small", "base")),
    *(f"vit_{size}_patch32_{side}" for size in ("small", "base", "large") for side in (224, 384)),
    "vit_huge_patch14_224",
    *(
        f"vit_{size}_patch14{registers}_dinov2"
        for size in ("small", "base", "large", "giant")
        for registers in ("", "_reg4")
    ),
    *(f"deit_{size}_patch16_{side}" for size in ("tiny", "small", "base") for side in (224,)),
    "vit_tiny_patch4_32",
    "test_vit",
]
_RESNETS = [
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnet50_w2", "resnet50_w4", "resnet50_w5", "resnet18_small", "resnet34_small", "resnet50_small"),
    *("resnet26", "resnet50d", "seresnet50", "ecaresnet50d", "test_resnet"),
]
_EFFICIENT = [
    *(f"{kind}efficientnet_b{n}" for n in range(8) for kind in ("tf_", "")),
    *(f"{kind}efficientnet_lite{n}" for n in range(5) for kind in ("tf_", "")),
    *("mobilenetv2_050", "mobilenetv2_100", "mobilenetv3_small_050", "mobilenetv3_small_100"),
    *("mobilenetv3_large_100", "tf_mobilenetv3_large_100", "tf_mobilenetv3_small_100"),
    *("tf_efficientnetv2_s", "tf_efficientnetv2_m", "efficientnetv2_rw_s", "test_efficientnet"),
]
# what the names of a family's tensors hold, and its networks
FAMILIES: tuple[tuple[str, list[str]], ...] = (
    (r"cls_attn_blocks\.", [f"xcit_{size}_p{patch}_224" for size in (
        "nano_12", "tiny_12", "tiny_24", "small_12", "small_24", "medium_24", "large_24"
    ) for patch in (16, 8)]),
    (r"layer1\.0\.conv1\.weight$", _RESNETS),
    (r"blocks\.0\.0\.conv_dw\.weight$", _EFFICIENT),
    (r"blocks\.0\.0\.conv\.weight$", _EFFICIENT),
    (r"stages\.0\.blocks\.0\.conv_dw\.weight$", [
        *(f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge")),
        *(f"convnextv2_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")),
        "test_convnext",
    ]),
    (r"layers\.0\.blocks\.0\.attn\.qkv\.weight$", [
        *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")),
        *(f"swin_{size}_patch4_window12_384" for size in ("base", "large")),
    ]),
    (r"blocks\.0\.attn\.qkv\.weight$", _VITS),
    (r"features\.denseblock1\.", [f"densenet{depth}" for depth in (121, 161, 169, 201)]),
    (r"s1\.b1\.conv1\.conv\.weight$", [f"regnet{kind}_{size}" for kind in "xy" for size in (
        "002", "004", "006", "008", "016", "032", "040", "064", "080", "120", "160", "320"
    )]),
    (r"conv1\.0\.weight$", ["deepcluster_alexnet", "deepcluster_vgg16"]),
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A network that the file fits: its timm name, and whether nothing had to be adapted."""

    name: str
    exact: bool
    has_classifier: bool


def guess_network(content: object, names: Sequence[str] | None = None) -> list[Candidate]:
    """Return the networks whose every tensor the file has, and whose layers are all that the file has.

    Where some fit without adaptation, only those are returned. An empty list: none of the common networks.

    Args:
        content: of a weights file, from `read_weights`.
        names: the networks to try; default those of the family that the tensors' names belong to.
    """
    import timm

    found: list[Candidate] = []
    for name in _family(content) if names is None else names:
        if not timm.is_model(name):
            continue
        with torch.device("meta"):
            module = timm.create_model(name, num_classes=0)
        try:
            result = match(module, content)
        except OtherInput:
            continue
        if result.missing or result.skipped or not result.taken:
            continue
        found.append(Candidate(name, not result.adapted, result.has_classifier))
    exact = [candidate for candidate in found if candidate.exact]
    return exact or found


def _family(content: object) -> list[str]:
    for pattern, names in FAMILIES:
        if any(_has(pattern, tensors) for _, tensors, _ in places(content)):
            return names
    return []


def _has(pattern: str, tensors: Mapping[str, Tensor]) -> bool:
    return any(re.match(pattern, name) for name in tensors)
