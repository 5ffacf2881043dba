"""What a method is: views to features, a target for each image, the prediction of one view's target from another.

A method never sees labels, the loader, devices or the loop. The loop calls it in one order:
`reassign` if due, `forward`, backward, `on_backward`, the optimizer's step, `on_step_end`.
Letters: B images of this rank, V views, F features of the backbone, D of the projection, K clusters, N images in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from math import isnan, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfcluster.choice import Choice, RunSettings, RunShape
from selfcluster.clustering.scores import successive_nmi
from selfcluster.distributed import all_reduce, world_size
from selfcluster.models.backbones import Backbone, final_relu
from selfcluster.setting import check_settings
from selfcluster.types import (
    Assignment,
    Batch,
    Crops,
    DatasetInfo,
    Embeddings,
    EpochPlan,
    Group,
    Output,
    Progress,
    Training,
)
from selfcluster.views.augmentations import plan_from_crops
from selfcluster.views.plans import ViewPlan

MakeBackbone = Callable[..., Any]  # (**creation arguments) -> a new, separately initialized network with .num_features
Embed = Callable[..., Embeddings]  # (fn, view="center" | "train", train=False) -> this rank's share


class Method(nn.Module):
    """Base of all methods. All state exists after `__init__`; `forward` changes no buffer (batch norm's excepted)."""

    Settings: ClassVar[type]  # frozen keyword-only dataclass of scalars; the comment behind a field is its help
    paper: ClassVar[Training]
    edge_border: ClassVar[int] = 1  # zeros around an image before --sobel takes its edges; after 2 they fold exactly
    online: ClassVar[bool] = False  # assigns images at every step; its labels are kept when an epoch ends
    per_image: ClassVar[tuple[str, ...]] = ()  # names of the buffers that hold a value for each image of the data
    supports_accumulation: ClassVar[bool] = False  # True where one large batch equals several small ones
    small: ClassVar[dict[str, Any]] = {}  # settings for images up to 64 px and short runs, where they differ from paper
    # settings, another setting, and the values of that under which the first have no effect
    idle: ClassVar[tuple[tuple[tuple[str, ...], str, tuple[Any, ...]], ...]] = ()
    advice: ClassVar[str] = "Try a lower --learning-rate, or larger batches."  # what helps when the run collapses

    backbone: Backbone

    def __init__(self, make_backbone: MakeBackbone, settings: Any, data: DatasetInfo) -> None:
        super().__init__()
        check_settings(settings)
        self.settings = settings
        self.data = data

    @classmethod
    def views(cls, settings: Any, crops: Crops, channels: int) -> ViewPlan:
        """The views of an image, known before the network exists."""
        if crops.global_crops < 2 <= cls.paper.crops.global_crops:
            raise ValueError(f"--global-crops {crops.global_crops}: {cls.__name__} compares two full views of an image")
        return plan_from_crops(crops, channels)

    @classmethod
    def check(cls, settings: RunSettings, num_images: int) -> None:
        """Raise ValueError where settings do not fit each other or the data. `settings`: those of the whole run."""

    @classmethod
    def auto(cls, run: RunShape) -> dict[str, Choice]:
        """Return the settings of its own that the recipe `auto` takes from the data, with reasons."""
        return {}

    def groups(self) -> list[Group]:
        """Parameters that the paper treats apart; together they are all that is trained."""
        return [Group([p for p in self.parameters() if p.requires_grad])]

    def no_decay_groups(self) -> list[Group]:
        """Two groups: the weights; biases and norms, which take plain steps without decay (SimCLR's, BYOL's and
        DINO's `groups`)."""
        trained = [p for p in self.parameters() if p.requires_grad]
        flat = Group([p for p in trained if p.ndim < 2], weight_decay=0.0, layerwise_adaptation=False)
        return [Group([p for p in trained if p.ndim >= 2]), flat]

    @classmethod
    def shards(cls, settings: Any) -> int:
        """Into how many shards the parameters can be parted at most."""
        return 1

    def sharded(self) -> tuple[str, ...]:
        """Names of the parameters that only the ranks of this shard hold."""
        return ()

    def chance_loss(self) -> float | None:
        """The loss of a method that has learned nothing or has collapsed, where there is such a level."""
        return None

    def forward(self, batch: Batch, progress: Progress) -> Output:
        raise NotImplementedError

    def should_reassign(self, progress: Progress) -> bool:
        """Whether targets are reassigned before this step; the default is the first step of every epoch."""
        return progress.step % progress.steps_per_epoch == 0

    def reassign(self, progress: Progress, embed: Embed) -> dict[str, float]:
        """Make new targets offline; returns scalars to log, none where they stay as they are. All ranks
        take part."""
        return {}

    def plan(self) -> EpochPlan:
        """How to sample until the next reassignment: a pure function of the buffers."""
        return EpochPlan()

    def on_backward(self, progress: Progress) -> None:
        """Drop or scale gradients, after they are reduced over ranks and before they are clipped."""

    def on_step_end(self, progress: Progress, outputs: Sequence[Output]) -> None:
        """Write teacher, queue, memory and center: one output for each micro-batch of the step. `forward` writes none
        of them; DINO's `--teacher-rule iteration` writes in `on_backward`, and `reassign` writes first memories."""

    def pseudo_labels(self) -> Tensor | None:
        """The labels (N,) that it trains on, -1 = none, the first head's where it has several; None: it has none, or
        only the codes of each step."""
        return None

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, h, w) normalized images to (B, F): the features that users get, of the exported network."""
        return self.backbone(images)

    def exported(self) -> nn.Module:
        """The network whose weights users get."""
        return self.backbone

    def project(self, features: Tensor) -> Tensor:
        """Encoded images (N, F) as the method compares them, (N, D): the space that `cluster --k` looks for groups in.
        The features themselves, but for methods whose clusters lie behind a projection."""
        return features

    def assign(self, features: Tensor) -> Assignment | None:
        """Clusters of encoded images (N, F); None where the method has none of its own."""
        return None

    def encode_views(self, views: Sequence[Tensor]) -> Tensor:
        """(V * B, F), view after view: consecutive views of one resolution share one pass through the backbone."""
        same = [list(run) for _, run in groupby(views, key=lambda v: v.shape[-2:])]
        return torch.cat([self.backbone(torch.cat(run)) for run in same])

    def final_relu(self, features: Tensor) -> Tensor:
        """Features of the backbone as a linear layer wants them, behind the last ReLU."""
        return final_relu(self.backbone, features)


def clusters_from_data(run: RunShape) -> dict[str, Choice]:
    """Return `num_prototypes` for a run of the recipe `auto`."""
    n, batch = run.num_images, run.batch_size
    # fewer clusters than a batch has images: codes are balanced without a queue, and short runs learn faster
    brief = run.short and not run.layout
    root = round((1 if brief else 2) * sqrt(n) / 10) * 10
    k = max(10, min(3000, root, batch if brief else root))
    root_of = f"the square root of the number of images ({n})"
    why = f"{root_of}, in tens, and at most the batch size" if brief else f"twice {root_of}, in tens"
    if n // 2 < k:
        k, why = max(2, n // 2), f"half the number of images ({n})"
    elif k == 10 and min(root, batch) < 10:
        why = "the minimum, except for fewer than 20 images"
    return {"num_prototypes": Choice(k, why)}


def freezing(run: RunShape) -> dict[str, Choice]:
    """Return `freeze_epochs` for a run of the recipe `auto`."""
    epochs = round(min(1.0, run.epochs * 0.02), 3)
    return {"freeze_epochs": Choice(epochs, "one epoch, but at most 2 % of the run")}


def no_accumulation(method: str, accumulate: int) -> str:
    """Return the message for methods that compare the images of a batch with each other."""
    return (
        f"--accumulate {accumulate}: {method} compares the images of a batch with each other, so several small batches "
        "do not equal a large one. Use a smaller --batch-size"
    )


def check_clusters(k: int, most: int, images: str = "the number of images") -> None:
    """Raise ValueError where there are more clusters than images; `images` says which images are counted."""
    if k > most:
        raise ValueError(f"--num-prototypes {k}: must be from 2 to {most}, {images}")


def check_enough_images(k: int, n: int) -> None:
    """Raise ValueError where a method of k clusters is made for fewer than k images."""
    if k > n:
        raise ValueError(f"--num-prototypes {k} is more than the {n} images; use --num-prototypes {max(2, n // 10)}")


def check_clusters_of_last_epoch(settings: RunSettings, num_images: int) -> None:
    """The same for methods that cluster what the last epoch wrote, which leaves out images beyond its whole batches."""
    most = num_images // settings["batch_size"] * settings["batch_size"]
    images = "the number of images" + (" in the complete batches of an epoch" if most < num_images else "")
    check_clusters(settings["num_prototypes"], most, images)


def dropout_of(share: float | None) -> dict[str, float]:
    """Return the arguments of `make_backbone` for a network with dropout inside; None leaves it its own."""
    return {} if share is None else {"drop_rate": share}


def check_dropout(settings: RunSettings) -> None:
    """Raise ValueError where `network_dropout` is set for a network that has no dropout inside."""
    share, backbone = settings["network_dropout"], settings["backbone"]
    if share is not None and not backbone.startswith("deepcluster_"):
        raise ValueError(
            f"--network-dropout {share:g}: {backbone} has no dropout inside; leave it out, or use "
            "--backbone deepcluster_vgg16"
        )


def stability(before: Tensor, after: Tensor) -> dict[str, float]:
    """What a reassignment logs: the NMI of the labels (N,) before and after it; nothing where no image has both."""
    agreement = successive_nmi(before, after)
    return {} if isnan(agreement) else {"nmi_previous": agreement}


def labeled_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the samples of all ranks that have a label; 0 where none has.

    Ranks hold different numbers of labeled samples, and their gradients are averaged: each rank's sum is divided by
    the mean count a rank, so that the average is the mean over all. `logits` (n, K), `target` (n,) with -1 = none,
    `weight` (K,) of the clusters: a sample counts as much as its cluster's weight, and so does the mean.
    """
    total = F.cross_entropy(logits, target, weight, ignore_index=-1, reduction="sum")
    seen = target >= 0
    mass = seen.to(total.dtype) if weight is None else weight.to(total.dtype)[target.clamp(min=0)] * seen
    mean_mass = all_reduce(mass.sum()) / world_size()
    return total / torch.where(mean_mass > 0, mean_mass, 1.0)
