"""Recipes: named settings. `auto` reads the data and says why; the others are fixed. No torch here.

A recipe fills only what the user did not set; what it leaves out is the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from selfcluster.choice import Choice, RunShape
from selfcluster.methods import METHODS
from selfcluster.settings.imagenet import VARIANTS
from selfcluster.settings.schema import Schema


@dataclass(frozen=True)
class DataSummary:
    """What a recipe gets to know about the data and the machine.

    `side`: the median of the images' shorter sides, in pixels. `start_size`: image size of the network that
    `--init` names; None: training begins with random weights.
    """

    num_images: int
    side: int
    channels: int
    gpu: bool = False
    start_size: int | None = None


_SHORT = 5_000_000  # a run that sees fewer images than this is too short to learn from hard views
_FEW_IMAGES = 30_000  # below, training from nothing rarely reaches a pretrained network
_PHOTOGRAPH = 64  # pixels of the shorter side; smaller images are unlike the photographs of pretraining
_FREEZE_BELOW = 20_000  # fewer images do not improve the early layers of a pretrained network

Recipe = Callable[[Schema, DataSummary, Mapping[str, Any]], dict[str, Choice]]


def paper(schema: Schema, facts: DataSummary, said: Mapping[str, object]) -> dict[str, Choice]:
    """The paper's own run, made for ImageNet on many GPUs.

    `torchrun --nproc-per-node 64 -m selfcluster train swav imagenet/train --recipe paper`: 75.3 % linear probe for
    SwAV and 75.2 % for DeepCluster-v2 (800 epochs, ResNet-50), as published; not run here.
    """
    return {}


def auto(schema: Schema, facts: DataSummary, said: Mapping[str, object]) -> dict[str, Choice]:
    """Settings chosen from the images, the device and the start network.

    `selfcluster train swav photos/`
    """
    if facts.start_size is not None:
        return _from_network(schema, facts, said)
    n = facts.num_images
    out: dict[str, Choice] = {}

    def choose(name: str, value: object, reason: str) -> Any:
        out[name] = Choice(value, reason)
        return said.get(name, value)

    where = "a GPU" if facts.gpu else "no GPU"
    sizes = [16, 32, 64] if facts.side <= 64 else [80] if not facts.gpu else [96, 160, 224]
    fitting = [s for s in sizes if s >= facts.side] if facts.side <= 64 else [s for s in sizes if s <= facts.side]
    size = choose(
        "image_size",
        fitting[0] if facts.side <= 64 else (fitting or sizes)[-1],
        f"images are {facts.side} px on their shorter side, and there is {where}",
    )
    layout = facts.channels == 1
    small = size <= 64
    if layout and size <= 32:
        choose("backbone", "tiny_layout", "small grayscale images: position matters, so the network keeps the layout")
    elif small:
        choose("backbone", "resnet18_small", "images up to 64 px: no down-sampling in the first layers")
    else:
        choose("backbone", "resnet50" if facts.gpu else "resnet18", where)
    if facts.gpu and "epochs" not in said and "images_seen" not in said:
        choose("minutes", 30.0, "a GPU's time budget; --epochs sets the length instead")
    epochs = choose("epochs", float(max(20, min(400, round(400_000 / n)))), f"{n} images")
    short = epochs * n < _SHORT
    length = f"the run is short ({epochs * n:,.0f} images shown)"
    views = schema.paper.get("crops", {})
    alone = views.get("global_crops", 2) == 1
    if layout:
        choose("augment", "layout", "grayscale images: small affine and elastic changes instead of crops and colors")
    elif short or small:
        detail = f"smaller parts of an image have too little detail in views of {size} px"
        choose("global_scale", (0.2, 1.0) if small else (0.25, 1.0), detail if small else length)
        choose("augment", "gentle", "images of 64 px or less have little detail" if small else length)
    few = 0 if layout or small or short else views.get("local_crops", 0)
    why = (
        f"{schema.name} takes one view"
        if alone
        else "the paper's number, for long runs"
        if few
        else "none for images of 64 px or less, and none in short runs"
    )
    if choose("local_crops", few, why):
        by = 8 if size <= 64 else 16
        choose(
            "local_size",
            max(by, round(size * 96 / 224 / by) * by),
            "the papers' ratio of small to full views, 96 / 224",
        )

    most = min(512 if facts.gpu else 128, max(8, 2 ** int(n / 16).bit_length() // 2), n // 2)
    batch = choose(
        "batch_size", max(2, min(most, max(64, 2 ** int(n / 128).bit_length() // 2))), f"{n} images, {where}"
    )
    steps = max(1, int(epochs * (n // max(1, batch))))
    adam = layout or short or small
    own_kind = "adamw" if adam else schema.paper.get("optimizer", "sgd")
    kind = choose(
        "optimizer", own_kind, "works well on small images and in short runs" if adam else "the paper's, for long runs"
    )
    if adam or kind != own_kind:  # else rates and decay are the paper's, too
        rates = {"adamw": 4e-3 if layout else 1e-3 if small else 5e-4, "sgd": 0.06, "larc": 0.3, "lars": 0.3}
        choose("learning_rate", rates[kind], f"for {kind}")
        choose("weight_decay", {"adamw": 1e-4, "sgd": 5e-4}.get(kind, 1e-6), f"for {kind}")
        if "final_weight_decay" in schema.paper:
            choose("final_weight_decay", None, "the weight decay stays constant")
    falls = schema.paper.get("schedule", "cosine")
    # a constant rate stays in long runs: new classifiers at every epoch need a high rate at the end, too
    if falls != "cosine" and (adam or falls != "constant"):
        choose("schedule", "cosine", "suits runs of any length")
        choose("milestones", (), "the cosine schedule has no milestones")
    choose("warmup_epochs", round(min(10.0, epochs * 0.05), 2), "a twentieth of the run, and at most 10 epochs")
    choose("warmup_learning_rate", 0.0, "training begins with random weights")

    shape = RunShape(n, batch, epochs, steps, layout=layout, small=small, short=short, given=said)
    out |= METHODS[schema.name].auto(shape)
    if small or short:
        fits = "optimizer" not in said or kind == schema.small.get("optimizer", own_kind)
        for name, value in schema.small.items():
            if fits or name not in ("learning_rate", "weight_decay"):  # these two are for its own optimizer
                choose(name, value, f"the value of {schema.name} for small images and short runs")
    in_force = {"schedule": "cosine", **{name: choice.value for name, choice in out.items()}, **said}
    if "learning_rate" in out and in_force["schedule"] == "cosine":
        choose("final_learning_rate", in_force["learning_rate"] / 1000, "a thousandth of the highest rate")
    return out


def _from_network(schema: Schema, facts: DataSummary, said: Mapping[str, Any]) -> dict[str, Choice]:
    """Gentle training from a pretrained network, because a few images can easily make its features worse.

    If the batch-norm statistics change, 20-NN accuracy falls by 6 points even at a learning rate of 0. The other values
    were tried on 600 photographs (docs/pretrained.md).
    """
    n, size = facts.num_images, facts.start_size
    batch = max(2, min(64 if not facts.gpu else 256, 2 ** int(n / 4).bit_length() // 2))
    epochs = 2.0
    values: dict[str, tuple[Any, str]] = {
        "image_size": (size, "the start network's own size"),
        "epochs": (epochs, "few, because a pretrained network forgets in long runs"),
        "batch_size": (batch, f"{n} images"),
        "optimizer": ("adamw", "works well in short runs"),
        "learning_rate": (1e-4, "low, because the start network is trained already"),
        "final_learning_rate": (said.get("learning_rate", 1e-4) / 1000, "a thousandth of the highest rate"),
        "weight_decay": (1e-4, "for adamw"),
        "schedule": ("cosine", "suits runs of any length"),
        "milestones": ((), "the cosine schedule has no milestones"),
        "warmup_epochs": (0.1, "a twentieth of two epochs"),
        "warmup_learning_rate": (0.0, "the new head begins with random weights"),
        "global_scale": ((0.25, 1.0), "the run is short"),
        "augment": ("gentle", "the run is short"),
        "local_crops": (0, "none in short runs"),
        "freeze_norm": ("statistics", "the batch-norm statistics of the pretrained network are kept"),
        "freeze_layers": (0.5, f"{n} images are too few to improve the early layers")
        if n < _FREEZE_BELOW
        else (0.0, f"{n} images are enough to improve all layers"),
    }
    if "final_weight_decay" in schema.paper:
        values["final_weight_decay"] = (None, "the weight decay stays constant")
    out = {name: Choice(value, reason) for name, (value, reason) in values.items()}
    given = {**{name: choice.value for name, choice in out.items()}, **said}
    steps = max(1, int(given["epochs"] * (n // max(1, given["batch_size"]))))
    shape = RunShape(n, given["batch_size"], given["epochs"], steps, layout=False, small=False, short=True, given=said)
    out |= METHODS[schema.name].auto(shape)
    for name, value in schema.small.items():
        if name not in values:  # its rates are for training from random weights
            out[name] = Choice(value, f"the value of {schema.name} for short runs")
    return out


def warning_from_nothing(schema: Schema, facts: DataSummary, recipe: str, data: str) -> str | None:
    """Return a warning if training begins with random weights on few photographs; else None."""
    photographs = facts.channels == 3 and facts.side > _PHOTOGRAPH
    if recipe != "auto" or facts.start_size is not None or not photographs or facts.num_images >= _FEW_IMAGES:
        return None
    return (
        f"training from random weights on {facts.num_images:,} images usually gives worse features than a pretrained "
        "network has. On 5,398 photographs of clothes, the accuracy of 20-NN was 32.6 % trained from random weights, "
        "41.0 % untrained and 58.4 % pretrained. Start from a pretrained network: "
        f"selfcluster train {schema.name} {data} --init starter"
    )


# solo-learn's CIFAR settings where they differ from one another; rates are for batches of 256 images
_LARS = {"optimizer": "larc", "trust_coefficient": 0.02, "clip_rate": True, "exclude_flat": True, "momentum": 0.9}
_LONG = {"learning_rate": 0.6, "final_learning_rate": 6e-4, "warmup_epochs": 11.0, "warmup_learning_rate": 0.0}
_CIFAR: dict[str, dict[str, Any]] = {
    "swav": {
        **_LARS,
        **_LONG,
        "weight_decay": 1e-6,
        "augment": "swav",
        "queue_length": 3840,
        "queue_from_epoch": 50.0,
        "freeze_epochs": 2.0,
    },
    "deepcluster_v2": {**_LARS, **_LONG, "weight_decay": 1e-6, "augment": "swav"},
    "dino": {
        **_LARS,
        "learning_rate": 0.3,
        "weight_decay": 1e-6,
        "augment": "asymmetric",
        "num_prototypes": 4096,
        "teacher_momentum": 0.9995,
        "clip_each": None,
    },
    "byol": {
        **_LARS,
        "learning_rate": 1.0,
        "weight_decay": 1e-5,
        "augment": "asymmetric",
        "teacher_momentum": 0.99,
    },
    "simclr": {
        **_LARS,
        "learning_rate": 0.4,
        "weight_decay": 1e-4,
        "augment": "swav",
        "dim": 256,
        "num_layers": 2,
        "temperature": 0.2,
    },
    # Departs: solo-learn raises the teacher momentum from 0.99 to 0.999; here it stays at 0.99
    "moco_v2": {
        "optimizer": "sgd",
        "learning_rate": 0.3,
        "weight_decay": 1e-4,
        "augment": "moco_v2",
        "hidden": 2048,
        "dim": 256,
        "queue_length": 32768,
        "teacher_momentum": 0.99,
    },
}


def cifar(schema: Schema, facts: DataSummary, said: Mapping[str, Any]) -> dict[str, Choice]:
    """The common CIFAR setting: ResNet-18, two views of 32 px, 1,000 epochs, batch 256; in short runs auto's values.

    `selfcluster train swav cifar10/train --recipe cifar`: online linear probe as solo-learn publishes it, CIFAR-10 and
    CIFAR-100: SwAV 89.17 and 64.88 %, DeepCluster-v2 88.85 and 63.61, DINO 89.52 and 66.76, SimCLR 90.74 and 65.78,
    MoCo-v2 92.94 and 69.89, BYOL 92.58 and 70.46; not run here at that length. Other methods have no published row:
    they take auto's values for 200 epochs. LARS is the form with clipped local rates and without biases and norms.

    The published values are for runs of 50 million images. A run of fewer than 5 million takes auto's values instead,
    and keeps the network, the size and the number of views (docs/LOG.md, 2026-11-28).
    """
    network = {"backbone": "resnet18_small", "image_size": 32, "local_crops": 0}
    published = schema.name in _CIFAR
    images = said.get("images_seen") or said.get("epochs", 1000.0 if published else 200.0) * facts.num_images
    if not published or images < _SHORT:
        why = f"{schema.name} has no published CIFAR setting"
        if published:
            why = f"{images:,.0f} images seen are too few for the published values"
        reason = f"the common CIFAR network; {why}, so auto chooses the rest"
        values = {**network, "epochs": images / facts.num_images}
        out = auto(schema, facts, {**values, **said})
        out = {name: Choice(choice.value, f"as auto: {choice.reason}") for name, choice in out.items()}
        return out | {name: Choice(value, reason) for name, value in values.items()}
    reason = "the common CIFAR setting"
    values = {
        **network,
        "global_scale": (0.08, 1.0),
        "epochs": 1000.0,
        "batch_size": 256,
        "schedule": "cosine",
        "milestones": (),
        "warmup_epochs": 10.0,
        "warmup_learning_rate": 3e-5,
        "final_learning_rate": 0.0,
        **_CIFAR[schema.name],
    }
    if "final_weight_decay" in schema.paper:
        values["final_weight_decay"] = None
    out = {name: Choice(value, reason) for name, value in values.items()}
    batch = said.get("batch_size", 256)
    if batch != 256:
        for name in ("learning_rate", "final_learning_rate", "warmup_learning_rate"):
            scaled = values[name] * batch / 256
            out[name] = Choice(scaled, f"{values[name]:g} per 256 images, scaled to the batch size of {batch}")
    return out


def small(schema: Schema, facts: DataSummary, said: Mapping[str, object]) -> dict[str, Choice]:
    """A run of about five minutes on two cores: a quarter-width ResNet-18, small views, 70,000 images in all.

    `selfcluster train swav cifar10/train-00000.tar --recipe small`; what each method reaches: docs/reproduce.md.
    """
    reason = "a short run on a small machine"
    values: dict[str, Any] = {"backbone": "tiny_layout", "image_size": 16, "epochs": 20.0}
    if facts.channels == 3:
        epochs = float(max(2, min(20, round(70_000 / facts.num_images))))
        values = {"backbone": "resnet18_small_w25", "image_size": 24 if facts.side <= 64 else 48, "epochs": epochs}
    return {**auto(schema, facts, {**values, **said}), **{k: Choice(v, reason) for k, v in values.items()}}


RECIPES: dict[str, Recipe] = {"auto": auto, "paper": paper, "small": small, "cifar": cifar}
RECIPES |= {name: recipe for name, (_, recipe) in VARIANTS.items()}
