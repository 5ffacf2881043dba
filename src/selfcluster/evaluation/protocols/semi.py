"""Learns from few labels (a share of each class, or a list of images), and scores on other images.

The network is fine-tuned with the presets `swav` (Caron et al. 2020, arXiv 2006.09882, table 1: 20 epochs; at 1 % the
classifier learns 250 times as fast as the network, at 10 % 20 times), `odc` (Zhan et al. 2020, arXiv 2006.10645, with
OpenSelfSup's decay for each share) and `vissl` (Misra and van der Maaten 2020, arXiv 1912.01991: 70 epochs); or its
features stay frozen under `logistic` or `knn`, as in the thesis's table 5.5.
Departs: a class keeps at least one image. The last epoch is scored. Shares below 5 % use the rates for 1 %.

N training images with a label, n of them kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from selfcluster.data.order import shuffled
from selfcluster.data.sources import Source
from selfcluster.evaluation.finetuning import Recipe
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.protocols.finetune import chosen, finetuned
from selfcluster.evaluation.protocols.knn import knn
from selfcluster.evaluation.protocols.logistic import logistic
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting

_TUNING = ("epochs", "trunk_rate", "head_rate", "weight_decay", "tune_batch")
_FEW = 0.05  # below this share of the labels, use the papers' rates for 1 %
_SWAV, _ODC = {"milestones": (12, 16), "drop": 0.2}, {"milestones": (12, 16), "drop": 0.2, "trunk_rate": 0.01}
_VISSL = Recipe(epochs=70, trunk_rate=0.05, head_rate=0.05, milestones=(30,))
PRESETS = {  # for 1 %, for 10 %
    "swav": (
        Recipe(epochs=20, trunk_rate=0.02, head_rate=5.0, **_SWAV),
        Recipe(epochs=20, trunk_rate=0.01, head_rate=0.2, **_SWAV),
    ),
    "odc": (
        Recipe(epochs=20, head_rate=0.1, weight_decay=5e-4, **_ODC),
        Recipe(epochs=20, head_rate=0.1, weight_decay=1e-4, **_ODC),
    ),
    "vissl": (_VISSL, _VISSL),
}


@dataclass(frozen=True, kw_only=True)
class SemiSettings:
    share: float = setting(0.01, "share of each class's labels to keep", least=1e-6, most=1)
    subset: str | None = setting(None, "file that lists the labeled images to keep; one id or file name per line")
    classifier: Literal["finetune", "logistic", "knn"] = setting(
        "finetune", "fine-tune the network, or classify its frozen features"
    )
    preset: Literal["swav", "odc", "vissl"] = setting("swav", "paper whose rates, schedule and length to use")
    epochs: int | None = setting(None, "passes over the kept images; default: the preset's", least=1)
    trunk_rate: float | None = setting(None, "learning rate of the network for 256 images; 0 freezes it", least=0)
    head_rate: float | None = setting(None, "learning rate of the classifier for 256 images", least=0)
    weight_decay: float | None = setting(None, "weight decay; default: the preset's", least=0)
    tune_batch: int | None = setting(None, "images per step; default 256", least=2)


class Semi(Protocol):
    Settings = SemiSettings
    needs = ("network", "features")

    def run(self, subject: Subject, settings: SemiSettings) -> Result:
        idle = [name for name in _TUNING if getattr(settings, name) is not None]
        if settings.classifier != "finetune" and idle:
            raise ValueError(
                f"--{idle[0].replace('_', '-')} has no effect with --classifier {settings.classifier}; leave it out"
            )
        if settings.subset is not None:
            listed(subject.source(), settings.subset)  # refused before any image is embedded
        if settings.classifier == "finetune":
            train, test = subject.sources
            rows = _kept(train, settings, subject.seed)
            share = len(rows) / max(1, int((_labels(train) >= 0).sum()))
            recipe = chosen(PRESETS[settings.preset][share >= _FEW], settings)
            numbers, table = finetuned(subject, train.take(rows), test, recipe)
            return result_of("semi", numbers, subject, settings, table=table, notes=("The last epoch is scored.",))
        train, test = subject.parts
        rows = _kept(subject.source("train").take(train.rows), settings, subject.seed)
        few, labels = train.vectors[rows], np.asarray(train.labels)[rows]
        if settings.classifier == "knn":
            numbers = knn(few, labels, test.vectors, test.labels)
        else:
            numbers = logistic(few, labels, test.vectors, test.labels, seed=subject.seed)
        return result_of("semi", numbers, subject, settings)


def per_class(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the sorted rows of a share of each class, drawn by the seed; at least one image per class.

    >>> per_class(np.array([0] * 50 + [1] * 3 + [-1]), 0.1, seed=0).shape
    (6,)
    """
    order = shuffled(len(labels), seed, "semi-supervised")
    members = [order[labels[order] == label] for label in np.unique(labels[labels >= 0])]
    rows = [of_class[: max(1, round(share * len(of_class)))] for of_class in members]
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.int64)


def listed(source: Source, file: str) -> np.ndarray:
    """Return the sorted rows of the images that a file names, by id, or by file name if that is unique.

    Raises:
        ValueError: there is no such file, or it names an image that `source` lacks.
    """
    if not Path(file).is_file():
        raise ValueError(f"--subset {file}: there is no such file; it needs one id or file name per line")
    names = [line.strip() for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
    rows: dict[str, int] = {}
    for row, name in enumerate(source.ids):
        short = PurePosixPath(name).name
        rows[short] = -1 if short in rows else row
    rows |= {name: row for row, name in enumerate(source.ids)}
    missing = [name for name in names if rows.get(name, -1) < 0]
    if missing or not names:
        example = f"e.g. {missing[0]!r}" if missing else "it is empty"
        raise ValueError(
            f"--subset {file}: {len(missing)} of its {len(names)} names are not images of train, {example}; "
            f"ids of train look like {source.ids[0]!r}"
        )
    return np.unique([rows[name] for name in names])


def _kept(train: Source, settings: SemiSettings, seed: int) -> np.ndarray:
    labels = _labels(train)
    return per_class(labels, settings.share, seed) if settings.subset is None else listed(train, settings.subset)


def _labels(train: Source) -> np.ndarray:
    if train.labels is None or train.labels.ndim != 1:
        raise ValueError(f"{train.where}: semi needs one label per image; name their source with --labels-from")
    return train.labels
