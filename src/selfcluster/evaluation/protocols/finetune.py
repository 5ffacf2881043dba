"""Trains the network and a new classifier on labeled images, and scores both on other images.

Presets: `swav` (Caron et al. 2020, arXiv 2006.09882: 35 epochs; the rates are those of its semi-supervised script at
10 %), `dino` (Caron et al. 2021, arXiv 2104.14294, with DeiT's recipe, Touvron et al. 2020, arXiv 2012.12877),
`deepercluster` (Caron et al. 2019, arXiv 1905.01278: dropout 0.5, ten crops at test), `odc` (Zhan et al. 2020,
arXiv 2006.10645, with OpenSelfSup's rates), `voc` (Caron et al. 2018, arXiv 1807.05520, as released for VOC07:
`--tune fc` is its FC6-8, `--tune all` its ALL). Images with several labels are learned with binary cross-entropy and
scored by mean average precision.
Departs: the last epoch is scored. Weights of the classifier begin as N(0, 0.01) in every preset. `dino` leaves out
RandAugment, random erasing and stochastic depth. The ten crops lie in the center square. `voc` lowers its rates at
equal shares of the length and counts epochs; the released code counts iterations.

N training images, M test images, L classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from selfcluster.data.sources import Source
from selfcluster.evaluation.average_precision import class_precisions, mean_precision
from selfcluster.evaluation.finetuning import Recipe, fine_tune, predict
from selfcluster.evaluation.labeled import positions, top, with_label
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting

_SIXTEENTHS = tuple(range(16, 256, 16))
PRESETS = {
    "swav": Recipe(epochs=35, trunk_rate=0.01, head_rate=0.2, milestones=(21, 28), drop=0.2),
    "dino": Recipe(
        epochs=300, trunk_rate=5e-4, head_rate=5e-4, per=512, batch=1024, weight_decay=0.05, optimizer="adamw",
        schedule="cosine", warmup_epochs=5, smoothing=0.1, mixup=True,
    ),
    "deepercluster": Recipe(
        epochs=100, trunk_rate=0.1, head_rate=0.1, weight_decay=1e-4, milestones=(20, 40, 60, 80), drop=0.2,
        dropout=0.5, test_crops=10,
    ),
    "odc": Recipe(epochs=20, trunk_rate=0.01, head_rate=0.1, weight_decay=1e-4, milestones=(12, 16), drop=0.2),
    "voc": Recipe(
        epochs=256, trunk_rate=0.003, head_rate=0.003, per=16, batch=16, weight_decay=1e-6, milestones=_SIXTEENTHS,
        drop=0.5, tune="fc", frozen_norm=True, clip=10.0, bias=0.1, scale=(0.1, 0.5), ratio=(1.0, 1.0), test_crops=10,
    ),
}  # fmt: skip
# DeepCluster's command for ALL: another rate, fewer drops, nearly twice the length
VOC_ALL = replace(
    PRESETS["voc"], epochs=480, trunk_rate=0.001, head_rate=0.001, tune="all", milestones=tuple(range(64, 480, 64))
)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    preset: Literal["swav", "dino", "deepercluster", "odc", "voc"] = setting(
        "swav", "paper whose optimizer, rates, schedule and length to use"
    )
    tune: Literal["all", "fc", "head"] | None = setting(
        None, "what to train besides the classifier: all, fully connected layers (fc) or nothing (head)"
    )
    epochs: int | None = setting(None, "passes over the training images; default: the preset's", least=1)
    trunk_rate: float | None = setting(
        None, "learning rate of the network, for the preset's batch; 0 freezes it", least=0
    )
    head_rate: float | None = setting(None, "learning rate of the classifier, for the preset's batch", least=0)
    weight_decay: float | None = setting(None, "weight decay; default: the preset's", least=0)
    dropout: float | None = setting(None, "dropout before the classifier; default: the preset's", least=0, most=0.95)
    tune_batch: int | None = setting(None, "images per step; default: the preset's", least=2)
    test_crops: int | None = setting(None, "1 (the center) or 10; default: the preset's", least=1, most=10)


class Finetune(Protocol):
    Settings = FinetuneSettings
    needs = ("network",)
    labels = "any"

    def run(self, subject: Subject, settings: FinetuneSettings) -> Result:
        recipe = VOC_ALL if (settings.preset, settings.tune) == ("voc", "all") else PRESETS[settings.preset]
        recipe = chosen(recipe, settings)
        train, test = subject.sources
        numbers, table = finetuned(subject, train, test, recipe)
        notes = ("The last epoch is scored.",)
        return result_of("finetune", numbers, subject, settings, table=table, notes=notes)


def chosen(recipe: Recipe, settings: Any) -> Recipe:
    """Return the recipe with the values that the user has set."""
    names = {"tune_batch": "batch"}
    fields = ("tune", "epochs", "trunk_rate", "head_rate", "weight_decay", "dropout", "tune_batch", "test_crops")
    own = {names.get(f, f): value for f in fields if (value := getattr(settings, f, None)) is not None}
    if own.get("test_crops", 1) not in (1, 10):
        raise ValueError(f"--test-crops {own['test_crops']}: choose 1 or 10")
    return replace(recipe, **own)


def finetuned(
    subject: Subject, train: Source, test: Source, recipe: Recipe
) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """Fine-tune a network; return its numbers on the test images, and a row per class.

    Raises:
        ValueError: there are no labels or only one class, or `--layer` is given, which has no effect here.
    """
    if subject.layer is not None:
        raise ValueError(f"--layer {subject.layer} has no effect: fine-tuning trains the whole network; leave it out")
    train, test = with_label(train, "train"), with_label(test, "test")
    labels, others = torch.as_tensor(train.labels), torch.as_tensor(test.labels)
    if labels.dim() != others.dim():
        raise ValueError("train and test differ: one has several labels per image, the other one label per image")
    several = labels.dim() == 2
    classes = torch.arange(labels.shape[1]) if several else labels.unique()
    if len(classes) < 2:
        raise ValueError(f"train has {len(classes)} class: a classifier needs two")
    network = subject.network(train)
    targets = labels if several else positions(classes, labels)
    model, loss = fine_tune(network, train, targets, recipe, subject.seed, subject.embedding)
    index, scores = predict(model, network, test, recipe, subject.embedding)
    if not scores.isfinite().all():
        raise ValueError("test: the scores of some images are not finite")
    wanted, names = others[index], train.class_names
    shared = {"loss": loss, "epochs": recipe.epochs, "classes": len(classes)}
    shared |= {"n_train": len(train), "n_test": len(index)}
    if several:
        precisions = average_precisions(scores, wanted[:, : scores.shape[1]])
        rows = tuple({"class": _name(names, k), "average_precision": float(ap)} for k, ap in enumerate(precisions))
        return {"mean_ap": mean_precision(precisions), **shared}, rows
    numbers = {"top1": top(scores, y := positions(classes, wanted), 1)}
    numbers |= {"top5": top(scores, y, 5)} if len(classes) > 5 else {}
    hits = scores.argmax(dim=1) == y
    known = [(int(c), y == k) for k, c in enumerate(classes) if (y == k).any()]
    rows = tuple(
        {"class": _name(names, c), "images": int(of.sum()), "top1": float(hits[of].double().mean())} for c, of in known
    )
    return numbers | shared, rows


def average_precisions(scores: Tensor, labels: Tensor) -> np.ndarray:
    """Return (L,) average precisions by steps, NaN for classes without a positive test image.

    A tie counts against the positive image, as in DeepCluster's released code. Labels of -1 (difficult) are left out.
    """
    against = scores.double().numpy() - 1e-5 * labels.numpy()
    return class_precisions(against, labels.numpy(), "steps")


def _name(names: list[str] | None, number: int) -> str:
    return names[number] if names is not None else str(number)
