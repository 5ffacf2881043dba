"""Freeze parts of a pretrained network: batch-norm statistics, norm layers, early layers; and layer-wise rates.

The batch-norm statistics of a pretrained network carry information. If they follow a small set of images, k-NN accuracy
falls by several points even at a learning rate of 0. So `auto` sets `--freeze-norm` with `--init`.
Layers are counted from the input as timm counts them (stem, then every block). Every copy of the backbone in a method,
such as a teacher's, is frozen in the same way.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from selfcluster.methods.base import Method

FREEZE_NORM = ("no", "statistics", "all")
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


class FixedStatistics:
    """Mixed into a batch norm's class: the layer is always in evaluation mode."""

    fixed_statistics = True  # nothing to synchronize: `models.norm.convert_sync` does not change the layer

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # pyright: ignore[reportAttributeAccessIssue]


def freeze(method: Method, norm: str = "no", layers: float = 0.0) -> str:
    """Freeze parts of every backbone in the method; return in words what was frozen, or "".

    Args:
        method: changed in place.
        norm: "statistics" keeps the batch-norm statistics, "all" also the weights and biases of norm layers, "no"
            neither.
        layers: early layers whose parameters are frozen: a number of at least 1, or a share below 1 of all layers.

    Raises:
        ValueError: no layer would be trained.
    """
    done = []
    total = max(depths(method.backbone).values(), default=0) + 1
    count = round(layers * total) if layers < 1 else int(layers)
    if count >= total:
        raise ValueError(
            f"--freeze-layers {layers:g}: the network has {total} layers, so at most {total - 1} can be frozen"
        )
    fixed = 0
    for network in backbones(method):
        for module in network.modules():
            if norm != "no" and isinstance(module, _NormBase) and not isinstance(module, FixedStatistics):
                module.__class__ = type(f"Fixed{type(module).__name__}", (FixedStatistics, type(module)), {})
                module.eval()
                fixed += 1
            if norm == "all" and isinstance(module, _NORMS):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        if count:
            depth = depths(network)
            for name, parameter in network.named_parameters():
                if depth[name] < count:
                    parameter.requires_grad_(False)
    if fixed:
        done.append("batch-norm statistics" + (" and the norms' weights" if norm == "all" else ""))
    if count:
        done.append(f"{count} of {total} layers")
    return " and ".join(done)


def rate_factors(method: Method, decay: float) -> dict[Tensor, float]:
    """Return the factor of the learning rate of each backbone parameter: `decay` to the power of its distance from
    the last layer. Parameters outside the backbone have no entry; their factor is 1.

    Clark et al. 2020, arXiv 2003.10555, section 3.1, used it for fine-tuning.
    """
    if decay == 1:
        return {}
    depth = depths(method.backbone)
    last = max(depth.values(), default=0)
    return {parameter: decay ** (last - depth[name]) for name, parameter in method.backbone.named_parameters()}


def backbones(method: Method) -> list[nn.Module]:
    """Return the backbone and every other network of its class in the method."""
    found: list[nn.Module] = [m for m in method.modules() if type(m) is type(method.backbone)]
    return found or [method.backbone]


def depths(network: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter by name, from 0 at the input.

    timm's networks define their layers. In other networks each top-level module with parameters is a layer.
    """
    names = [name for name, _ in network.named_parameters()]
    matcher: Any = getattr(network, "group_matcher", None)
    if matcher is not None:
        from timm.models._manipulate import group_with_matcher

        grouped: Any = group_with_matcher(network.named_parameters(), matcher(coarse=False), reverse=True)
        if set(names) <= set(grouped):
            ranks = {depth: rank for rank, depth in enumerate(sorted({int(d) for d in grouped.values()}))}
            return {name: ranks[int(grouped[name])] for name in names}
    top = list(dict.fromkeys(name.split(".")[0] for name in names))
    return {name: top.index(name.split(".")[0]) for name in names}
