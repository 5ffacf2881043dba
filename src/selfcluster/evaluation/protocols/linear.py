"""Trains a linear classifier by SGD on crops and flips, with a frozen network: the papers' linear probe.

Each preset has the optimizer, schedule, batch and crops of a released code: `swav` (Caron et al. 2020, arXiv
2006.09882, eval_linear), `dino` (Caron et al. 2021, arXiv 2104.14294), `moco` (He et al. 2020, arXiv 1911.05722),
`vissl` (Goyal et al. 2019, arXiv 1905.01235), `deepcluster` (Caron et al. 2018, arXiv 1807.05520), `deepercluster`
(Caron et al. 2019, arXiv 1905.01278), `odc` (Zhan et al. 2020, arXiv 2006.10645, with OpenSelfSup's 90 epochs; the
paper has 100). `--layer all` trains a classifier at every depth of the network at once, on maps pooled to about 9,000
numbers. Departs: the last epoch is scored, where several released scripts report the best epoch on the test images.
`odc` leaves out the lighting noise. `deepcluster` takes its squares from the whole image, and its ten test crops from
the center square of 256 pixels.

N training images, M test images, L classes, D depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from selfcluster.evaluation.finetuning import Recipe, predict
from selfcluster.evaluation.labeled import positions, top, with_label
from selfcluster.evaluation.probing import ALL, PRESETS, Preset, Probes, rate_at, train_probes
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting


@dataclass(frozen=True, kw_only=True)
class LinearSettings:
    preset: Literal["swav", "dino", "moco", "vissl", "deepcluster", "deepercluster", "odc"] = setting(
        "swav", "paper whose optimizer, schedule and length to use"
    )
    epochs: int | None = setting(None, "passes over the training images; default: the preset's", least=1)
    learning_rate: float | None = setting(None, "learning rate for 256 images; default: the preset's", least=0)
    probe_batch: int = setting(256, "images per step", least=2)
    depths: int | None = setting(None, "with --layer all: only the last N depths of the network", least=1)
    test_crops: int | None = setting(None, "1 (the center) or 10; default: the preset's", least=1, most=10)


class Linear(Protocol):
    Settings = LinearSettings
    needs = ("network", "layers")

    def run(self, subject: Subject, settings: LinearSettings) -> Result:
        preset = PRESETS[settings.preset]
        crops = settings.test_crops or preset.test_crops
        if crops not in (1, 10):
            raise ValueError(f"--test-crops {crops}: choose 1 or 10")
        if settings.depths is not None and subject.layer != ALL:
            raise ValueError(f"--depths {settings.depths} needs --layer all, which probes every depth")
        train, test = (with_label(part, name) for part, name in zip(subject.sources, ("train", "test"), strict=True))
        if train.labels is None or train.labels.ndim == 2:
            raise ValueError(
                "linear takes one label per image, and these images have several; use svm, knn or finetune"
            )
        labels, wanted = torch.as_tensor(train.labels), torch.as_tensor(test.labels)
        classes = labels.unique()
        if len(classes) < 2:
            raise ValueError(f"train has {len(classes)} class: a classifier needs two")
        network = subject.network(train)
        probes = Probes(network, subject.layer, settings.depths, preset, len(classes), subject.seed)
        epochs = settings.epochs or preset.epochs
        losses = train_probes(
            probes, network, train, positions(classes, labels), preset, epochs=epochs, batch=settings.probe_batch,
            rate=settings.learning_rate, seed=subject.seed, embedding=subject.embedding,
        )  # fmt: skip
        recipe = Recipe(epochs=epochs, trunk_rate=0, head_rate=0, test_crops=crops)
        index, scores = predict(probes, network, test, recipe, subject.embedding)  # (m,), (m, D, L)
        if not scores.isfinite().all():
            raise ValueError(f"the probe's scores are not finite after {epochs} epochs; try a lower --learning-rate")
        wanted = positions(classes, wanted[index])
        rows = [_row(probes, d, scores[:, d], wanted, losses[d]) for d in range(len(probes.names))]
        best = max(rows, key=lambda row: row["top1"])
        numbers: dict[str, Any] = {name: best[name] for name in ("top1", "top5", "loss") if name in best}
        numbers |= {"epochs": epochs, "classes": len(classes), "n_train": len(train), "n_test": len(index)}
        notes = ("The last epoch is scored.",)
        if subject.layer != ALL:
            return result_of("linear", numbers, subject, settings, notes=notes)
        numbers |= {"best_layer": best["layer"]}
        notes += ("The best layer was chosen on the test images, as in the papers' tables.",)
        return result_of("linear", numbers, subject, settings, table=tuple(rows), notes=notes)


def _row(probes: Probes, d: int, scores: torch.Tensor, wanted: torch.Tensor, loss: float) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": probes.names[d], "features": probes.shapes[d][1:].numel()}
    row |= {"top1": top(scores, wanted, 1)} | ({"top5": top(scores, wanted, 5)} if scores.shape[1] > 5 else {})
    return row | {"loss": loss}


__all__ = ["PRESETS", "Linear", "LinearSettings", "Preset", "rate_at"]
