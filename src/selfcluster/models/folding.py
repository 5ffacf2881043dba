"""Sobel filters folded into a network's first convolution, so that it takes normalized images instead of edges.

A correlation after a correlation is one with the full convolution of the two kernels: k x k after 3 x 3 is
(k + 2) x (k + 2), the same for each color since the filters see their mean. Caron et al. 2019, arXiv 1905.01278, do
so to compare filters in color; their filters see the image with 2 zeros around it.
Departs: nothing.

`folded_sobel` is the network that the result is rebuilt as, for any of timm's: importing this file registers it.

O outputs of the convolution, C channels of the image, k kernel, p and s zeros that convolution and filters put around.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster.models.entries import register
from selfcluster.models.sobel import CHANNELS, Sobel, take_away

if TYPE_CHECKING:
    from selfcluster.models.backbones import Backbone

FOLDED = "folded_sobel"


def fold_sobel(module: Any, *, padding: int | None = None, channels: int | None = None) -> Any:
    """Return the same network for normalized images (B, C, h, w), with the Sobel filters inside its first convolution.

    The first convolution of the network has kernel k and padding p; the Sobel filters have padding s. The new
    convolution has the kernel k + 2 and the padding p + s. Its outputs equal those of the Sobel filters followed by the
    network
    - at every position if s = 2 (as in DeeperCluster) or p = 0 (as for the patches of a vision transformer).
    - otherwise (DeepCluster: s = 1) in the interior only. At the border the original network pads the Sobel maps
      with zeros; the new one applies the Sobel filters to the image padded with zeros.

    Args:
        module: a backbone of two input channels, with filters before it (`sobel.put_before`) or without; not changed.
        padding: s; default: the padding of its filters, or 1 if it has none.
        channels: C; default: the image channels in its `spec`, or 3 if it has none.

    Returns:
        A copy without filters. `load_report` says where it is exact. If the network has a `spec`, the copy has one,
        too, and `timm.create_model(**spec)` rebuilds it strictly. Otherwise the spec is None and the copy cannot be
        saved.

    Raises:
        ValueError: the first convolution is not plain, or does not have two input channels.
    """
    own = getattr(module, "sobel", None)
    filters = own if own is not None and padding is None else Sobel(1 if padding is None else padding)
    spec = getattr(module, "spec", None)
    overlay = {} if spec is None else dict(spec.get("pretrained_cfg_overlay", {}))
    colors: int = channels or overlay.get("input_size", (3,))[0]
    name, old = _first_convolution(module)
    folded = copy.deepcopy(module)
    _replace(folded, name, _folded(old, filters, colors).train(old.training))
    if own is not None:
        take_away(folded)
    exact = filters.padding == 2 or set(old.padding) == {0}
    border = "exact" if exact else "exact but for outputs whose window reaches over the image's border"
    folded.load_report = f"Sobel filters folded into {name}: {border}"
    folded.spec = None
    if spec is not None:
        overlay.pop("notes", None)  # they said that the network sees edges
        real = {"model_name": FOLDED, "network": spec["model_name"], "filter_padding": filters.padding}
        folded.spec = {**spec, **real, "in_chans": colors, "pretrained_cfg_overlay": overlay}
    return folded


def full_name(spec: Mapping[str, object]) -> str:
    """The name by which `make_backbone` makes a network again: a folded one's says which it is and its zeros.

    >>> full_name({"model_name": "folded_sobel", "network": "resnet18", "filter_padding": 1})
    'folded_sobel/resnet18/1'
    """
    name = str(spec["model_name"])
    return f"{name}/{spec['network']}/{spec['filter_padding']}" if name == FOLDED else name


def parts_of(name: str) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` for a network's full name."""
    model, *rest = name.split("/")
    if model != FOLDED:
        return {"model_name": name}
    if len(rest) != 2 or not rest[1].isdecimal():
        raise ValueError(f"{name}: name it {FOLDED}/NETWORK/ZEROS, as {FOLDED}/resnet18/1")
    return {"model_name": model, "network": rest[0], "filter_padding": int(rest[1])}


def for_images(module: Backbone) -> tuple[Backbone, str]:
    """A network that takes images by itself, where its first layer can, and what became of its filters ("")."""
    if getattr(module, "sobel", None) is None:
        return module, ""
    try:
        folded = fold_sobel(module)
    except ValueError as error:
        return module, f"takes Sobel edges, two channels: {error}"
    return folded, folded.load_report


def fold_kernel(weight: Tensor, filters: Tensor, channels: int) -> Tensor:
    """(O, 2, k, k) behind filters (2, 1, 3, 3) of the mean of C channels, as (O, C, k + 2, k + 2).

    >>> fold_kernel(torch.ones(1, 2, 1, 1), Sobel().weight, 1)[0, 0, 0]
    tensor([2., 2., 0.])
    """
    full = F.conv_transpose2d(weight.double(), filters.double())  # (O, 1, k + 2, k + 2)
    return (full / channels).expand(-1, channels, -1, -1).to(weight.dtype)


@torch.no_grad()
def _folded(old: nn.Conv2d, filters: Sobel, channels: int) -> nn.Conv2d:
    new = _larger(old, channels, filters.padding)
    new.weight.copy_(fold_kernel(old.weight, filters.weight.to(old.weight.device), channels))
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    return new


def _larger(old: nn.Conv2d, channels: int, padding: int) -> nn.Conv2d:
    """The convolution that filters with so many zeros around fit into: two pixels more of C channels."""
    new = nn.Conv2d(
        channels,
        old.out_channels,
        (old.kernel_size[0] + 2, old.kernel_size[1] + 2),
        (old.stride[0], old.stride[1]),
        (int(old.padding[0]) + padding, int(old.padding[1]) + padding),
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    return new.requires_grad_(old.weight.requires_grad)


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)


def _rebuild(network: str, filter_padding: int, *, in_chans: int = 3, **kwargs: Any) -> nn.Module:
    """timm's `network`, its first convolution as large as `fold_sobel` makes it; weights are loaded into it."""
    import timm

    module = timm.create_model(network, in_chans=CHANNELS, **kwargs)
    name, old = _first_convolution(module)
    _replace(module, name, _larger(old, in_chans, filter_padding))
    return module


register(FOLDED, _rebuild, "any network of timm's whose first convolution does the work of Sobel filters before it too")


def _first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d]:
    first = getattr(module, "pretrained_cfg", {}).get("first_conv")
    if not isinstance(first, str):
        raise ValueError(f"{type(module).__name__} names no single first convolution, so no filters can be folded in")
    layer: Any = module.get_submodule(first)
    # a subclass of Conv2d (weights standardized, padding that depends on the image) computes something else
    plain = type(layer) is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1)
    if not plain or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(f"{first} is {layer}: only a plain convolution can take filters in")
    if layer.in_channels != CHANNELS:
        raise ValueError(f"{first} takes {layer.in_channels} channels; behind Sobel filters it takes {CHANNELS}")
    return first, layer
