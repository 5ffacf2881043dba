"""DINO's projection head: an MLP, a normalized bottleneck, and a weight-normalized layer to many outputs.

Caron et al. 2021, arXiv 2104.14294, sections 3.1 and appendix C; Salimans and Kingma 2016, arXiv 1602.07868.
n rows, F features, D bottleneck, K outputs.
Departs: nothing; a predictor, which the paper tries and does not describe, stands before the last layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class DINOHead(nn.Module):
    """Features (n, F) to what the last layer sees (n, D) and the outputs (n, K).

    With the bottleneck, the MLP ends in D linear outputs that are brought to unit length; without it, the last layer
    stands right behind the hidden ones and D has no effect.

    Args:
        in_dim: F.
        hidden: width of the hidden layers.
        dim: D of the bottleneck.
        out_dim: K.
        num_layers: linear layers in all, the last one included.
        bottleneck: normalize the rows before a weight-normalized last layer; else that is a plain linear layer.
        activation: gelu or relu.
        batch_norm: normalize each hidden layer.
        fixed_norm: the last layer's rows keep unit length; else their lengths are learned.

    >>> before, outputs = DINOHead(384, 2048, 256, 65536)(torch.zeros(2, 384))
    >>> before.shape, outputs.shape
    (torch.Size([2, 256]), torch.Size([2, 65536]))
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int,
        dim: int,
        out_dim: int,
        *,
        num_layers: int = 4,
        bottleneck: bool = True,
        activation: str = "gelu",
        batch_norm: bool = False,
        fixed_norm: bool = True,
    ) -> None:
        super().__init__()
        fewest = 2 if bottleneck else 1
        if num_layers < fewest:
            raise ValueError(f"num_layers={num_layers}: the head has at least {fewest}, its bottleneck is {bottleneck}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} must be one of {', '.join(ACTIVATIONS)}")
        layers: list[nn.Module] = []
        for _ in range(num_layers - fewest):
            layers += [_linear(in_dim, hidden), *([nn.BatchNorm1d(hidden)] if batch_norm else [])]
            layers += [ACTIVATIONS[activation]()]
            in_dim = hidden
        self.bottleneck = bottleneck
        self.mlp = nn.Sequential(*layers, *([_linear(in_dim, dim)] if bottleneck else []))
        self.last = WeightNormLinear(dim, out_dim, fixed_norm) if bottleneck else _linear(in_dim, out_dim)
        self.width = dim if bottleneck else in_dim

    def forward(self, features: Tensor, predict: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """`predict` changes the rows before the bottleneck: the student's predictor."""
        x = self.mlp(features)
        x = x if predict is None else predict(x)
        if self.bottleneck:
            x = F.normalize(x.float(), dim=1)
        with torch.autocast(x.device.type, enabled=False):  # in bf16, targets at 0.04 are off by 7 %
            return x, self.last(x if x.dtype == torch.float64 else x.float())


class WeightNormLinear(nn.Module):
    """Rows (n, D) to (n, K) by weights whose direction and length are learned apart, without a bias.

    Args:
        dim: D.
        out_dim: K.
        fixed_norm: every length stays 1.
    """

    def __init__(self, dim: int, out_dim: int, fixed_norm: bool = True) -> None:
        super().__init__()
        # nn.Linear's own initialization, as in the released code; its scale goes with the normalization
        self.direction = nn.Parameter(nn.Linear(dim, out_dim, bias=False).weight.detach())
        self.length = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not fixed_norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.direction, dim=1) * self.length)  # (n, K)


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
