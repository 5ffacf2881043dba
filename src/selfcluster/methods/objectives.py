"""What a teacher's output becomes as a target, and how a student's output is compared with it.

Caron et al. 2021, arXiv 2104.14294, algorithm 1 and appendices B and D: DINO's cross-entropy with centering, the
balanced codes of SwAV in its place, the squared error of BYOL and the contrast of MoCo-v2. B images of this rank, K
outputs.
Departs: InfoNCE takes its negatives from the batch of all ranks, not from a queue.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.clustering.sinkhorn import Centering, batch_softmax, sinkhorn
from selfcluster.distributed import all_gather, rank

CHOICES = {"loss": ("cross_entropy", "mse", "infonce"), "centering": ("center", "sinkhorn", "softmax", "none")}


class Objective(nn.Module):
    """Targets from teacher outputs, and the loss of a pair of views. The center is its only state.

    Args:
        num_prototypes: K.
        loss, centering: one of `CHOICES`; codes balanced over the batch go with cross_entropy alone.
        temperature: of the student's softmax, or of the contrast.
        center_momentum: share of the old center that an update keeps.
    """

    def __init__(
        self, num_prototypes: int, loss: str, centering: str, temperature: float, center_momentum: float
    ) -> None:
        super().__init__()
        for name, value in (("loss", loss), ("centering", centering)):
            if value not in CHOICES[name]:
                raise ValueError(f"{name}={value!r} is none of {', '.join(CHOICES[name])}")
        if loss != "cross_entropy" and centering in ("sinkhorn", "softmax"):
            raise ValueError(f"loss={loss!r} compares outputs, not codes: use --centering center or none")
        self.loss, self.kind, self.temperature = loss, centering, temperature
        self.centering = Centering(num_prototypes, center_momentum)

    @torch.no_grad()
    def target(self, taught: Tensor, temperature: float) -> Tensor:
        """Teacher outputs of one view (B, K) to its targets (B, K): codes, or unit rows where outputs are compared."""
        if self.loss != "cross_entropy":
            return F.normalize(taught - self.centering.center, dim=1)  # no sharpening there
        if self.kind == "sinkhorn":
            return sinkhorn(taught, temperature, check_finite=False)
        if self.kind == "softmax":
            return batch_softmax(taught, temperature)
        return self.centering(taught, temperature)  # without centering the center stays 0

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
        """Move the center, after the loss, by all teacher outputs of a step."""
        if self.kind == "center":
            self.centering.update(taught)
