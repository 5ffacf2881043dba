"""Modules inside a network: found by name, and listened to while images pass through the network.

B images, F features, h x w places.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def find_module(network: nn.Module, name: str, flag: str = "--layer") -> nn.Module:
    """Return the module of a network; raise ValueError with the names that there are, and the flag."""
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        names = ", ".join(child for child, _ in network.named_children())
        model = getattr(network, "spec", {}).get("model_name", "the network")
        every = "; only `evaluate linear` takes --layer all, which probes every depth" if name == "all" else ""
        raise ValueError(f"{flag} {name}: {model} has no such layer; it has {names}{every}") from error


def channels_first(network: nn.Module, module: nn.Module, out: Tensor) -> Tensor:
    """Return a map as (B, F, h, w); a network such as Swin has (B, h, w, F). Other outputs are returned unchanged."""
    last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC") and not isinstance(module, nn.Conv2d)
    return out.permute(0, 3, 1, 2) if last and out.dim() == 4 else out


def averaged(out: Tensor) -> Tensor:
    """Return (B, F): the mean over the places of a map (B, F, h, w), or over tokens (B, T, F).

    >>> averaged(Tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[2., 3.]])
    """
    return out.mean(dim=(2, 3)) if out.dim() == 4 else out.mean(dim=1) if out.dim() == 3 else out


def output_of(network: nn.Module, images: Tensor, name: str, flag: str = "--layer") -> Tensor:
    """Return what a module gives while the images (B, C, height, width) pass through the network.

    Raises:
        ValueError: the network has no such module, or the module gives no tensor.
    """
    module = find_module(network, name, flag)
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda module, given, out: seen.append(out))
    try:
        network(images)
    finally:
        hook.remove()
    if not seen or not isinstance(seen[-1], Tensor):
        raise ValueError(f"{flag} {name}: the module gives no tensor for an image; name another one")
    return channels_first(network, module, seen[-1])
