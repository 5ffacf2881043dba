"""What a network's filters answer to: the first layer's weights, and images made by gradient ascent for deeper ones.

Caron et al. 2018, arXiv 1807.05520, section 4.1, which follows Yosinski et al. 2015, arXiv 1506.06579. A random image
is changed so that one filter's mean response stands out among all filters of its layer (cross-entropy). The image is
decayed and blurred on the way.
Departs: a step is scaled by the gradient's mean absolute value, so that one rate serves every layer and size.

B images, C channels, F filters of a layer, S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster.models.taps import averaged, find_module

_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # a Gaussian of one pixel's variance


def convolutions(network: nn.Module) -> list[str]:
    """Return the names of a network's convolutions, in the order in which they were defined."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]


def first_filters(network: nn.Module) -> Tensor:
    """Return the weights (F, C, h, w) of the first convolution, on the host.

    Raises:
        ValueError: the network has no convolution.
    """
    names = convolutions(network)
    if not names:
        raise ValueError("the network has no convolution, and so no filters that could be drawn")
    return network.get_submodule(names[0]).weight.detach().float().cpu()  # pyright: ignore


@contextmanager
def responses(network: nn.Module, layer: str | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from images (B, C, S, S) to the mean responses (B, F) of a layer, through which gradients flow.

    Args:
        network: in evaluation mode.
        layer: the name of a module; None: the network's features.

    Raises:
        ValueError: there is no such module.
    """
    kept: list[Any] = []
    handle = None
    if layer is not None:
        module = find_module(network, layer)
        handle = module.register_forward_hook(lambda module, given, out: kept.append(out))

    def respond(images: Tensor) -> Tensor:
        kept.clear()
        out = network(images)
        return averaged(out if layer is None else kept[-1])

    try:
        yield respond
    finally:
        if handle is not None:
            handle.remove()


def ascend(
    respond: Callable[[Tensor], Tensor],
    filters: Sequence[int],
    shape: tuple[int, int, int],
    *,
    steps: int = 200,
    rate: float = 0.03,
    decay: float = 1e-3,
    blur_every: int = 2,
    seed: int = 0,
) -> Tensor:
    """Return an image (n, C, S, S) for each of n filters that makes it stand out in its layer.

    Args:
        respond: images to the responses (B, F) of a layer.
        filters: n numbers of filters.
        shape: (C, S, S) of an image, in normalized pixels.
        steps: of the ascent.
        rate: change of a pixel in a step, in the mean.
        decay: share of the image that is taken away at each step.
        blur_every: steps from one slight blur to the next; 0: none.
        seed: of the noise at the start.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, *shape, generator=generator).mul(0.1).repeat(len(filters), 1, 1, 1)  # one start for all
    target = torch.tensor(list(filters))
    for step in range(steps):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_distance(respond(images).float(), target.to(images.device)), images)
        size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
        images = images.detach() * (1 - decay) - rate * gradient / size.clamp(min=1e-12)
        if blur_every and (step + 1) % blur_every == 0:
            images = _blurred(images)
    return images.detach()


def _distance(responses: Tensor, target: Tensor) -> Tensor:
    """The sum over images of how far the others' log-sum-exp lies above the target's response.

    Cross-entropy is softplus of this distance, so its gradient has the same direction. Its own gradient loses the
    target in float32 once the softmax rounds to 1.
    """
    own = torch.arange(responses.shape[1], device=responses.device) == target[:, None]
    return (responses.masked_fill(own, -torch.inf).logsumexp(dim=1) - responses[own]).sum()


def _blurred(images: Tensor) -> Tensor:
    kernel = torch.tensor(_BLUR, device=images.device)
    weight = (kernel[:, None] * kernel).expand(images.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), weight, groups=images.shape[1])
