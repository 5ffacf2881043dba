"""The values that travel between the floors: what a batch, a step, a run and a result are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from selfcluster import randomness


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    `views`: list of (B, C, h, w) float tensors, full resolution first. `index`: (B,) int64, the image REALLY shown
    (the replacement's where a file was bad). `pretext_labels`: what a pretext task drew for each image.
    """

    views: list[Tensor]
    index: Tensor
    pretext_labels: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where the run stands, and its only source of randomness. `step` counts from 0 over the whole run."""

    step: int
    total_steps: int
    epoch: int
    steps_per_epoch: int
    seed: int

    @property
    def epochs(self) -> float:
        """Epochs done, with their fraction: settings counted in epochs compare with this."""
        return self.step / self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / max(1, self.total_steps)

    def number(self, purpose: str) -> int:
        """A seed in [0, 2**31) for `purpose` at this step, equal on all ranks."""
        return randomness.key(self.seed, purpose, self.step) >> 33

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator for `purpose` at this step, equal on all ranks."""
        return torch.Generator().manual_seed(self.number(purpose))

    def uniform(self, index: Tensor, n: int, purpose: str) -> Tensor:
        """(B, n) uniforms in [0, 1) for the samples `index` at this step."""
        return randomness.draw(self.seed, purpose, self.step, index, 0, n)


@dataclass(frozen=True)
class DatasetInfo:
    """What a method may know of the data before it sees any. `targets`: (T, N) int64, -1 = none."""

    num_samples: int
    image_size: int
    channels: int
    targets: Tensor | None = None
    teacher: Any = None
    shard: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Output:
    """What a forward returns: a scalar loss, 0-d tensors to log, what `on_step_end` needs, and what health reads.

    `features` (B, D) are the projected features and `codes` (B,) the clusters of the first view.
    """

    loss: Tensor
    log: dict[str, Tensor] = field(default_factory=dict)
    state: Any = None
    features: Tensor | None = None
    codes: Tensor | None = None


@dataclass(frozen=True)
class EpochPlan:
    """How the next epoch is sampled. `balance`: labels (N,), each cluster gets N/C draws. `groups` (N,): each batch
    holds equal shares of every group. `reset`: names of parameters whose optimizer state is forgotten."""

    balance: Tensor | None = None
    replace: bool = False
    groups: Tensor | None = None
    reset: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Crops:
    """What the shared crop flags set; sizes in pixels, scales as shares of the image's area."""

    global_crops: int = 2
    local_crops: int = 0
    global_size: int = 224
    local_size: int = 96
    global_scale: tuple[float, float] = (0.08, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.14)
    augment: str = "color"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A paper's network, optimizer, schedule, batch, epochs and crops: data, not behavior.

    `learning_rate` and `final_learning_rate` are for a batch of `per` images and scale linearly with it.

    `milestones` are epochs. `clip` bounds the norm of all gradients; `clip_each` bounds that of each parameter.

    `trust_coefficient` is eta of larc and lars. `clip_rate` keeps their local rate below the learning rate.
    `exclude_flat` takes biases and norms (one dimension) out of weight decay and of larc's and lars's scaling.
    `layer_decay` is the factor of the learning rate from a layer of the backbone to the one before it.
    """

    backbone: str = "resnet50"
    sobel: bool = False
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    per: int = 256
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    drop: float = 0.1
    warmup_epochs: float = 0.0
    warmup_learning_rate: float = 0.0
    final_learning_rate: float = 0.0
    weight_decay: float = 1e-4
    final_weight_decay: float | None = None
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    clip_rate: bool = False
    exclude_flat: bool = False
    layer_decay: float = 1.0
    clip: float | None = None
    clip_each: float | None = None
    epochs: float = 100
    batch_size: int = 256
    crops: Crops = Crops()


@dataclass(frozen=True)
class Group:
    """Parameters that a paper treats apart; None means the run's value. `layerwise_adaptation`: LARC applies."""

    params: Iterable[torch.nn.Parameter]
    momentum: float | None = None
    weight_decay: float | None = None
    layerwise_adaptation: bool = True


@dataclass(frozen=True)
class Embeddings:
    """One rank's share: `rows` (n, F) float32 belong to the images `index` (n,); `seen` (N,) bool, over all ranks."""

    rows: Tensor
    index: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Assignment:
    """`cluster` (N,) int64 and the `distance` (N,) float32 to its center (0 = at the center)."""

    cluster: Tensor
    distance: Tensor
