"""SeLa-v2: predict, from every view, the balanced label of the image in the previous epoch.

Caron et al. 2020, arXiv 2006.09882, section 4.3: SeLa (Asano et al. 2020, arXiv 1911.05371) trained as DeepCluster-v2
is. No code was released; what the paper leaves open follows the author's description: DeepCluster-v2 with balanced
assignments in place of k-means, and prototypes that are learned as SwAV's. B images, V views, D projection, N images in
all, H heads with K prototypes each; head h labels the memory of full-resolution view h mod 2.
Departs: nothing that is written down. Not written, and taken from SeLa: labels are hard, and the assignment raises the
predicted probabilities softmax(z . c / tau) to the power `sharpness` (of cosines, sharpness / tau: 250).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfcluster.clustering.balanced import balanced_assignment
from selfcluster.methods.base import MakeBackbone
from selfcluster.methods.deepcluster_v2 import DeepClusterV2
from selfcluster.methods.sela import scores_of
from selfcluster.setting import setting
from selfcluster.types import Crops, DatasetInfo, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class SeLaV2Settings:
    dim: int = setting(128, "D, size of the projected features", least=1)
    hidden: int = setting(2048, "width of the projection head's hidden layer; 0: one linear layer", least=0, auto=True)
    num_prototypes: int = setting(3000, "K, clusters per head", least=2, auto=True)
    num_heads: int = setting(3, "H, independent labelings", least=1)
    temperature: float = setting(0.1, "tau of the softmax", least=1e-4)
    sharpness: float = setting(25.0, "lambda, SeLa's inverse entropy weight of the assignment", least=1e-4)
    tolerance: float = setting(0.1, "the assignment stops at this error, summed over all images", least=0)
    max_iter: int = setting(100, "most iterations of the assignment", least=1)


class SeLaV2(DeepClusterV2):
    Settings = SeLaV2Settings
    supports_accumulation = True
    advice = "Try fewer --num-prototypes, a lower --learning-rate, or gentler views (fewer --local-crops)."
    small = {"hidden": 512}
    paper = Training(
        optimizer="larc",
        learning_rate=0.3,
        warmup_epochs=10,
        warmup_learning_rate=0.01875,
        final_learning_rate=0.0003,
        weight_decay=1e-6,
        epochs=400,
        batch_size=4096,
        crops=Crops(local_crops=4, global_size=160, global_scale=(0.14, 1.0)),
    )

    def __init__(self, make_backbone: MakeBackbone, settings: Any, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        self.heads.requires_grad_(True)  # labels are made from the prototypes, not the prototypes from the labels

    def cluster(self, h: int, rows: Tensor, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        """Balanced labels of this rank's share of a memory, by the prototypes as they stand."""
        found = balanced_assignment(
            scores_of(self.heads[h], rows, 1 / self.settings.temperature),
            sharpness=self.settings.sharpness,
            tolerance=self.settings.tolerance,
            max_iter=self.settings.max_iter,
        )
        return found.labels, {f"row_error_{h}": found.row_error}

    @torch.no_grad()
    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        super().on_step_end(progress, outputs)
        for prototypes in self.heads:
            prototypes.normalize_()  # unit rows before the next forward
