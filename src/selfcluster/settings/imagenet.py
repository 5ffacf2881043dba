"""Recipes of one method each: runs on ImageNet in a paper or its released code, in addition to the main run.

Learning rates are for the recipe's own batch size and scale in proportion to another one. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from selfcluster.choice import Choice
from selfcluster.settings.schema import Schema

_RATES = ("learning_rate", "final_learning_rate", "warmup_learning_rate")


Values = dict[str, Any]
Recipe = Callable[[Schema, object, Mapping[str, object]], dict[str, Choice]]

VARIANTS: dict[str, tuple[str, Recipe]] = {}
"""Name -> the method of the recipe, and the recipe."""


def _of(method: str) -> Callable[[Callable[[], Values]], Recipe]:
    """Make a recipe of one method from a function that returns its values; the function's name is the recipe's."""

    def named(values_of: Callable[[], Values]) -> Recipe:
        name = values_of.__name__

        def recipe(schema: Schema, facts: object, said: Mapping[str, object]) -> dict[str, Choice]:
            if schema.name != method:
                raise ValueError(f"--recipe {name} is a recipe of {method}, not of {schema.name}; use --recipe paper")
            values = values_of()
            out = {key: Choice(value, f"{name}, see docs/fidelity.md") for key, value in values.items()}
            own, batch = values.get("batch_size"), said.get("batch_size")
            if own and batch and batch != own:
                for rate in set(_RATES) & values.keys():
                    reason = f"{values[rate]:g} is for batches of {own} images; for {batch} in proportion"
                    out[rate] = Choice(values[rate] * batch / own, reason)
            return out

        recipe.__doc__ = values_of.__doc__
        VARIANTS[name] = method, recipe
        return recipe

    return named


@_of("swav")
def swav_256() -> Values:
    """SwAV with batches of 256: rate 0.6 down to 0.0006, no warm-up, 3,840 queued features from epoch 15, 200 epochs.

    Caron et al. 2020, section 4.2 and table 3: 72.7 % linear probe on ImageNet, as published; not run here.
    """
    return {
        "batch_size": 256,
        "learning_rate": 0.6,
        "final_learning_rate": 0.0006,
        "warmup_epochs": 0.0,
        "warmup_learning_rate": 0.0,
        "queue_length": 3840,
        "queue_from_epoch": 15.0,
        "epochs": 200.0,
    }


@_of("dino")
def dino_resnet50() -> Values:
    """DINO with ResNet-50 as released: SGD, 0.03 for 256 images, decay 1e-4 throughout, SwAV's crop scales, 100 epochs.

    The released command for eight GPUs of 64 images (so rate 0.06) with the defaults of its code: 8 small crops,
    teacher temperature 0.04. The published 75.3 % is of a longer run; not run here.
    """
    return {
        "backbone": "resnet50",
        "optimizer": "sgd",
        "batch_size": 512,
        "learning_rate": 0.06,
        "final_learning_rate": 1e-6,
        "weight_decay": 1e-4,
        "final_weight_decay": None,
        "global_scale": (0.14, 1.0),
        "local_scale": (0.05, 0.14),
        "local_crops": 8,
        "teacher_temperature": 0.04,
        "warmup_teacher_temperature": 0.04,
        "teacher_warmup_epochs": 0.0,
        "epochs": 100.0,
    }


@_of("deepercluster")
def deepercluster_imagenet() -> Values:
    """DeeperCluster on ImageNet: batches of 748 at rate 0.1, one clustering into 10,000 every fifth epoch.

    Caron et al. 2019, appendix 5. The paper starts it from a RotNet network: add `--init` with a run of
    `train rotnet --recipe rotnet_vgg16`. Not run here.
    """
    return {
        "batch_size": 748,
        "learning_rate": 0.1,
        "num_prototypes": 10000,
        "num_super_clusters": 1,
        "reassign_epochs": 5,
    }


@_of("rotnet")
def rotnet_vgg16() -> Values:
    """RotNet of the DeeperCluster paper: VGG-16 with one dropout of 0.3, batches of 512, rate 0.05, decay 1e-5.

    Caron et al. 2019, appendix 5. The paper gives no schedule; a constant rate is that of its other runs. Not run here.
    """
    return {
        "backbone": "deepcluster_vgg16",
        "network_dropout": 0.3,
        "batch_size": 512,
        "learning_rate": 0.05,
        "schedule": "constant",
        "milestones": (),
        "weight_decay": 1e-5,
    }


@_of("deepcluster")
def deepcluster_thesis() -> Values:
    """DeepCluster as in the thesis: the classifier has momentum 0.9, too, and an empty cluster moves at random.

    Caron 2021, section 3.2.1; the released code has 0 and a fixed step. Not run here.
    """
    return {"head_momentum": 0.9, "split": "random"}


@_of("sela")
def sela_resnet50() -> Values:
    """SeLa with the released code's ResNet-50: batch norm before convolutions, no norm or ReLU after the stem.

    Asano et al. 2020; timm's `resnetv2_50` is that network. 61.5 % linear probe, as published; not run here.
    """
    return {"backbone": "resnetv2_50"}
