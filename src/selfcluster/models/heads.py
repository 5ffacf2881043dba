"""What stands on a backbone during training: the projection and the prototypes it is compared with.

Caron et al. 2020, arXiv 2006.09882, section 3 and appendix A. B images, F features, D projection, K prototypes.
Departs: nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Sequential):
    """Features (B, F) to projections (B, D), not normalized: Linear, batch norm, ReLU, Linear.

    Args:
        in_dim: F.
        hidden: width of the hidden layers; 0 makes the head a single linear layer.
        out_dim: D.
        batch_norm: normalize each hidden layer.
        num_layers: linear layers in all; 2 is SwAV's.

    >>> ProjectionHead(512, 2048, 128)(torch.zeros(4, 512)).shape
    torch.Size([4, 128])
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int, batch_norm: bool = True, num_layers: int = 2) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: a projection head has at least one layer")
        layers: list[nn.Module] = []
        if hidden:
            for _ in range(num_layers - 1):
                layers += [nn.Linear(in_dim, hidden), *([nn.BatchNorm1d(hidden)] if batch_norm else []), nn.ReLU()]
                in_dim = hidden
        super().__init__(*layers, nn.Linear(in_dim, out_dim))


class Prototypes(nn.Module):
    """K prototypes: unit projections (B, D) to their cosines with each, (B, K).

    The rows have unit length at construction; `normalize_()` restores it after an optimizer's step.

    Args:
        dim: D.
        num_prototypes: K.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__()
        if num_prototypes < 1:
            raise ValueError(f"num_prototypes={num_prototypes}: there must be at least one")
        # nn.Linear's own initialization, as in the released code; its scale goes with the normalization
        self.weight = nn.Parameter(nn.Linear(dim, num_prototypes, bias=False).weight.detach())
        self.normalize_()

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):  # a bf16 cosine is off by 7 % of a weight at epsilon 0.03
            return F.linear(z if z.dtype == torch.float64 else z.float(), self.weight)  # (B, K)

    @torch.no_grad()
    def normalize_(self) -> None:
        """Give every prototype unit length, in place."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
