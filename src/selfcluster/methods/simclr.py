"""SimCLR: distinguish the other view of an image from the views of all other images in the batch.

Chen et al. 2020, arXiv 2002.05709 (v2 of the head: arXiv 2006.10029); multi-crop after Caron et al. 2020, arXiv
2006.09882. B images of this process, N of all, V views, D projection.
The defaults mix two versions: the head of three layers is the second's, optimizer, rate and decay (1e-6) are the
first's. The first version's head is `--num-layers 2`; the released code's default decay is `--weight-decay 1e-4`.
Departs: terms are averaged as in the paper's algorithm 1 (released: summed over the two directions); small views are
compared with the full-resolution views alone, and only those are negatives; an image that a batch holds twice is no
negative of itself; images are normalized by mean and deviation (released: in [0, 1]); the head's weights start as torch
draws them, which batch norm and LARS's rates make alike; LARS multiplies the momentum's sum by the rate (released: each
term by the rate of its step).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.distributed import all_gather
from selfcluster.methods.base import MakeBackbone, Method
from selfcluster.setting import setting
from selfcluster.types import Batch, Crops, DatasetInfo, Group, Output, Progress, Training


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings:
    dim: int = setting(128, "D, size of the projected features", least=1)
    hidden: int = setting(2048, "width of the projection head's hidden layers", least=1, auto=True)
    num_layers: int = setting(3, "layers of the projection head; the first version has 2", least=1)
    temperature: float = setting(
        0.1, "tau of the softmax, eq. 1; use higher values for small images or batches", least=1e-4
    )


class SimCLR(Method):
    Settings = SimCLRSettings
    advice = "Try a higher --temperature (0.5), a lower --learning-rate, or larger batches."
    small = {"hidden": 512, "temperature": 0.2, "num_layers": 2}
    paper = Training(
        optimizer="lars",
        learning_rate=0.3,
        warmup_epochs=10,
        weight_decay=1e-6,
        epochs=1000,
        batch_size=4096,
        crops=Crops(augment="simclr"),
    )

    def __init__(self, make_backbone: MakeBackbone, settings: SimCLRSettings, data: DatasetInfo) -> None:
        super().__init__(make_backbone, settings, data)
        self.backbone = make_backbone()
        self.head = head(self.backbone.num_features, settings.hidden, settings.dim, settings.num_layers)

    def groups(self) -> list[Group]:
        return self.no_decay_groups()

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.encode_views(batch.views)
        z = F.normalize(self.head(features).float(), dim=1).unflatten(0, (len(batch.views), -1))  # (V, B, D)
        everyone = all_gather(batch.index)  # (N,)
        loss = nt_xent(z, batch.index, everyone, self.settings.temperature)
        chance = loss.new_full((), log(2 * len(everyone) - 1))  # all features alike: 2N - 2 negatives, one positive
        return Output(loss, log={"chance_loss": chance}, features=z[0])


def head(in_dim: int, hidden: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """Linear layers without bias, each with batch norm; the last has no ReLU and its batch norm no offset."""
    layers: list[nn.Module] = []
    for before, after in pairwise([in_dim, *[hidden] * (num_layers - 1), out_dim]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    layers[-2].bias.requires_grad_(False)  # stays at 0
    return nn.Sequential(*layers[:-1])


def nt_xent(z: Tensor, index: Tensor, everyone: Tensor, temperature: float) -> Tensor:
    """Eq. 1, the mean over pairs of a view and a full-resolution view of its image; its mean over ranks is the whole's.

    Negatives are the full-resolution views of all other images on all ranks. `z` (V, B, D) unit rows, the two views of
    full resolution first, of the images `index` (B,); `everyone` (N,): the images of all ranks.

    -log(e^p / (e^p + sum of e^n)) is softplus(log-sum of e^n - p).
    """
    with torch.autocast(z.device.type, enabled=False):  # products of unit rows in full precision
        negatives = all_gather(z[:2].transpose(0, 1).contiguous()).flatten(0, 1)  # (2N, D), image after image
        own = (index[:, None] == everyone).repeat_interleave(2, dim=1)  # (B, 2N)
        against = (z @ negatives.T / temperature).masked_fill(own, -1e9).logsumexp(dim=2)  # (V, B)
        views = range(len(z))
        terms = [
            F.softplus(against[v] - (z[v] * z[g]).sum(dim=1) / temperature) for g in (0, 1) for v in views if v != g
        ]
        return torch.stack(terms).mean()
