"""Names of weights in other libraries' checkpoints, turned into timm's.

Each function takes the tensors of a checkpoint by name, without the network's prefix. It returns them under timm's
names, or None where the names are not that library's. Then timm's own `checkpoint_filter_fn` splits and resizes what
an architecture needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]

_STAGES = {"4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_STEM = {"0": "conv1", "1": "bn1"}


def sequential_resnet(tensors: Tensors) -> dict[str, Tensor] | None:
    """torchvision's ResNet as `nn.Sequential(*children)`, as lightly's examples build it: 0 is conv1, 4 is layer1."""
    if "0.weight" not in tensors or not any(name.startswith("4.0.conv1") for name in tensors):
        return None
    places = _STEM | _STAGES
    return {
        ".".join([places.get(first, first), *rest]): tensor
        for name, tensor in tensors.items()
        for first, *rest in [name.split(".")]
    }


def huggingface_resnet(tensors: Tensors) -> dict[str, Tensor] | None:
    """`ResNetModel` of Hugging Face's transformers."""
    if "embedder.embedder.convolution.weight" not in tensors:
        return None
    renamed = {}
    kinds = {"convolution": "conv", "normalization": "bn"}
    for name, tensor in tensors.items():
        if found := re.match(r"embedder\.embedder\.(convolution|normalization)\.(\w+)$", name):
            name = f"{kinds[found[1]]}1.{found[2]}"
        elif found := re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)$", name):
            stage, block, rest = int(found[1]) + 1, found[2], found[3]
            if inner := re.match(r"layer\.(\d+)\.(convolution|normalization)\.(\w+)$", rest):
                rest = f"{kinds[inner[2]]}{int(inner[1]) + 1}.{inner[3]}"
            elif inner := re.match(r"shortcut\.(convolution|normalization)\.(\w+)$", rest):
                rest = f"downsample.{int(inner[1] == 'normalization')}.{inner[2]}"
            name = f"layer{stage}.{block}.{rest}"
        renamed[name] = tensor
    return renamed


_TRANSFORMER = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.register_tokens$", "register_tokens"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.norm([12])\.", r"blocks.\1.norm\2."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.fc([12])\.", r"blocks.\1.mlp.fc\2."),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
)
_PROJECTION = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


def huggingface_transformer(tensors: Tensors) -> dict[str, Tensor] | None:
    """`ViTModel` and `Dinov2Model` (with registers or without) of Hugging Face's transformers."""
    if "embeddings.patch_embeddings.projection.weight" not in tensors:
        return None
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if found := _PROJECTION.match(name):
            parts.setdefault(f"blocks.{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = tensor
            continue
        for pattern, timm_name in _TRANSFORMER:
            name, count = re.subn(f"^{pattern}", timm_name, name)
            if count:
                break
        renamed[name] = tensor
    for name, part in parts.items():
        if part.keys() == {"query", "key", "value"}:  # timm keeps the three in one matrix, in this order
            renamed[name] = torch.cat([part["query"], part["key"], part["value"]])
    return renamed


def efficientnet_pytorch(tensors: Tensors) -> dict[str, Tensor] | None:
    """EfficientNet of the packages `efficientnet_pytorch` and `efficientnet_lite_pytorch`: blocks counted in one list.

    timm counts the blocks of each stage. Every stage ends in another number of channels than the stage before.
    """
    if "_conv_stem.weight" not in tensors:
        return None
    stages = _stages(tensors)
    renamed: dict[str, Tensor] = {}
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    for name, tensor in tensors.items():
        first, *rest = name.split(".")
        if first != "_blocks":
            renamed[".".join([outer.get(first, first), *rest])] = tensor
            continue
        number, unit, *last = rest
        stage, place = stages[int(number)]
        expanded = f"_blocks.{number}._expand_conv.weight" in tensors
        renamed[".".join(["blocks", str(stage), str(place), _unit(unit, expanded), *last])] = tensor
    return renamed


def _unit(name: str, expanded: bool) -> str:
    """timm's name of a layer in a block: one without expansion is called a depthwise-separable convolution there."""
    if expanded:
        names = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
        names |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    else:
        names = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", **names}.get(name, name)


def _stages(tensors: Tensors) -> dict[int, tuple[int, int]]:
    """Return each block's stage and its place there: the first block of a stage changes the number of channels."""
    stages: dict[int, tuple[int, int]] = {}
    stage, place, width = -1, 0, -1
    for number in sorted({int(name.split(".")[1]) for name in tensors if name.startswith("_blocks.")}):
        channels = tensors[f"_blocks.{number}._project_conv.weight"].shape[0]
        stage, place = (stage, place + 1) if channels == width else (stage + 1, 0)
        stages[number], width = (stage, place), channels
    return stages


LAYOUTS: tuple[tuple[str, Callable[[Tensors], dict[str, Tensor] | None]], ...] = (  # what a message calls each
    ("torchvision's ResNet in nn.Sequential", sequential_resnet),
    ("Hugging Face's ResNetModel", huggingface_resnet),
    ("Hugging Face's ViTModel and Dinov2Model", huggingface_transformer),
    ("efficientnet_pytorch", efficientnet_pytorch),
)
