"""A method of your own: Barlow Twins, registered and trained on the digits: `python examples/add_a_method.py`.

A method is one class with its settings. It joins `train`, `--help` and run folders by `register_method`, or by an entry
point of the group `selfcluster.methods` in your package's pyproject.toml.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import selfcluster
from selfcluster.distributed import all_reduce, world_size
from selfcluster.methods import register_method
from selfcluster.methods.base import MakeBackbone, Method
from selfcluster.models.heads import ProjectionHead
from selfcluster.setting import setting
from selfcluster.types import Batch, Crops, DatasetInfo, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsSettings:
    dim: int = setting(8192, "D, size of the projected features", least=1)
    hidden: int = setting(8192, "width of the projector's hidden layer", least=1)
    redundancy: float = setting(0.0051, "lambda, weight of the off-diagonal terms, eq. 1", least=0)


class BarlowTwins(Method):
    """Barlow Twins: make two views' features agree, dimension by dimension, and nothing else.

    Zbontar et al. 2021, arXiv 2103.03230. B images, D projection.
    Departs: correlations are of all processes' batches; only the two full-resolution views are compared.
    """

    Settings = BarlowTwinsSettings
    advice = "Try a lower --learning-rate or a smaller --redundancy."
    small = {"dim": 128, "hidden": 512}
    paper = Training(
        optimizer="lars",
        learning_rate=0.2,
        warmup_epochs=10,
        weight_decay=1.5e-6,
        epochs=1000,
        batch_size=2048,
        crops=Crops(augment="byol"),
    )

    def __init__(self, make_backbone: MakeBackbone, settings: Any, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        self.backbone = make_backbone()
        self.head = ProjectionHead(self.backbone.num_features, settings.hidden, settings.dim)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        first, second = (self.head(self.backbone(view)).float() for view in batch.views[:2])  # each (B, D)
        loss = barlow_twins_loss(first, second, self.settings.redundancy)
        return Output(loss, features=torch.nn.functional.normalize(first.detach(), dim=1))

    def project(self, features: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.head(features).float(), dim=1)


def barlow_twins_loss(first: Tensor, second: Tensor, redundancy: float) -> Tensor:
    """Eq. 1 for features (B, D) of two views: squared distance of their cross-correlation from the identity."""
    first, second = ((z - z.mean(dim=0)) / (z.std(dim=0, correction=0) + 1e-6) for z in (first, second))
    correlation = all_reduce(first.T @ second / len(first)) / world_size()  # (D, D)
    diagonal = correlation.diagonal()
    on = (diagonal - 1).square().sum()
    return on + redundancy * (correlation.square().sum() - diagonal.square().sum())


def main(epochs: float = 2.0, limit: int | None = None) -> dict[str, Any]:
    register_method("barlow_twins", BarlowTwins)
    with tempfile.TemporaryDirectory() as folder:
        settings = {} if limit is None else {"limit": limit}
        run = selfcluster.train("barlow_twins", "builtin:digits", out=Path(folder) / "run", epochs=epochs, **settings)
        score = selfcluster.evaluate("knn", run["run"])
    print(f"loss {run['loss']:.2f}, 20-NN {score['top1']:.3f}")
    return {"loss": run["loss"], **score}


if __name__ == "__main__":
    main()
