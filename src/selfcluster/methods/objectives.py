"""What a teacher's output becomes as a target, and how a student's output is compared with it.

Caron et al. 2021, arXiv 2104.14294, algorithm 1 and appendices B and D: DINO's cross-entropy with centring, the
balanced codes of SwAV in its place, the squared error of BYOL and the contrast of MoCo-v2. B images of this rank, K
outputs.
Departs: InfoNCE takes its negatives from the batch of all ranks, not from a queue.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.clustering.sinkhorn import Centring, batch_softmax, sinkhorn
from selfcluster.distributed import all_gather, rank

CHOICES = {"loss": ("cross_entropy", "mse", "infonce"), "centring": ("centre", "sinkhorn", "softmax", "none")}


class Objective(nn.Module):
    """Targets from teacher outputs, and the loss of a pair of views. The centre is its only state.

    Args:
        num_prototypes: K.
        loss, centring: one of `CHOICES`; codes balanced over the batch go with cross_entropy alone.
        temperature: of the student's softmax, or of the contrast.
        centre_momentum: share of the old centre that an update keeps.
    """

    def __init__(
        self, num_prototypes: int, loss: str, centring: str, temperature: float, centre_momentum: float
    ) -> None:
        super().__init__()
        for name, value in (("loss", loss), ("centring", centring)):
            if value not in CHOICES[name]:
                raise ValueError(f"{name}={value!r} is none of {', '.join(CHOICES[name])}")
        if loss != "cross_entropy" and centring in ("sinkhorn", "softmax"):
            raise ValueError(f"loss={loss!r} compares outputs, not codes: use --centring centre or none")
        self.loss, self.kind, self.temperature = loss, centring, temperature
        self.centring = Centring(num_prototypes, centre_momentum)

    @torch.no_grad()
    def target(self, taught: Tensor, temperature: float) -> Tensor:
        """Teacher outputs of one view (B, K) to its targets (B, K): codes, or unit rows where outputs are compared."""
        if self.loss != "cross_entropy":
            return F.normalize(taught - self.centring.centre, dim=1)  # no sharpening there
        if self.kind == "sinkhorn":
            return sinkhorn(taught, temperature)
        if self.kind == "softmax":
            return batch_softmax(taught, temperature)
        return self.centring(taught, temperature)  # without centring the centre stays 0

    def compare(self, target: Tensor, output: Tensor) -> Tensor:
        """The mean loss over the batch of a view's targets and another view's student outputs, both (B, K)."""
        if self.loss == "cross_entropy":
            return -(target * F.log_softmax(output / self.temperature, dim=1)).sum(dim=1).mean()
        unit = F.normalize(output, dim=1)
        if self.loss == "mse":
            return (unit - target).square().sum(dim=1).mean()
        own = torch.arange(len(unit), device=unit.device) + rank() * len(unit)  # ranks hold equal shares
        with torch.autocast(unit.device.type, enabled=False):  # products of unit rows in full precision
            return F.cross_entropy(unit @ all_gather(target).T / self.temperature, own)

    @torch.no_grad()
    def update(self, taught: Tensor) -> None:
        """Move the centre, after the loss, by all teacher outputs of a step."""
        if self.kind == "centre":
            self.centring.update(taught)
