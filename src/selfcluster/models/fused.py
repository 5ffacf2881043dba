"""Batch normalization fused into the convolution before it, for a network that is only evaluated.

In evaluation, batch normalization multiplies each channel by a constant and adds another. The convolution before it can
do both, which saves a pass over the largest arrays of the network (Jacob et al. 2018, arXiv 1712.05877, section 3.2).
Measured: docs/LOG.md, 2026-11-28.

B images, C channels.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from timm.layers import Conv2dSame  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # others may change their weights before use
_CLOSE = 1e-3  # largest difference relative to the largest output; rounding in float32 gives about 1e-5

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def fuse_norms(module: Module, image: Tensor) -> Module:
    """Return a copy of a network for evaluation whose convolutions include the batch normalization after them.

    The network is run once to see which normalizations take the output of a convolution. The copy is then compared with
    the network, since a convolution's output may be used in a second place, too.

    Args:
        module: a network in evaluation mode; not changed.
        image: one image (1, C, h, w) of the size that the network takes.

    Returns:
        The copy. If nothing can be fused, or the copy's outputs differ, the network itself.
    """
    if not any(isinstance(inner, _BatchNorm) for inner in module.modules()):
        return module
    pairs = _pairs(module, image)
    if not pairs:
        return module
    fused = copy.deepcopy(module)
    for convolution_name, norm_name in pairs:
        convolution: Any = fused.get_submodule(convolution_name)
        norm: Any = fused.get_submodule(norm_name)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, own = norm_name.rpartition(".")
        # timm's BatchNormAct2d has its dropout and activation inside
        setattr(fused.get_submodule(parent), own, nn.Sequential(*norm.children()).eval())
    probe = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    expected, found = module(probe), fused(probe)
    return fused if bool((found - expected).abs().max() <= _CLOSE * expected.abs().max()) else module


def _pairs(module: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Return the names of each convolution and of the normalization that takes its output; both are used once."""
    names = {inner: name for name, inner in module.named_modules()}
    calls: Counter[nn.Module] = Counter()
    outputs: list[tuple[Tensor, nn.Module]] = []  # tensors are kept, so that their identity stays theirs
    found: list[tuple[nn.Module, nn.Module]] = []

    def after_convolution(convolution: nn.Module, _: object, output: Tensor) -> None:
        calls[convolution] += 1
        outputs.append((output, convolution))

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        found.extend((convolution, norm) for output, convolution in outputs if output is inputs[0])

    hooks = []
    for inner in names:
        if type(inner) in _CONVOLUTIONS:
            hooks.append(inner.register_forward_hook(after_convolution))
        elif isinstance(inner, _BatchNorm) and inner.running_mean is not None:
            hooks.append(inner.register_forward_pre_hook(before_norm))
    try:
        module(image)
    finally:
        for hook in hooks:
            hook.remove()
    return [(names[convolution], names[norm]) for convolution, norm in found if calls[convolution] == calls[norm] == 1]
