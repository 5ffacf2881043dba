"""Scores the classifier of a supervised run on other labeled images.

The test accuracy of `selfcluster train supervised` after its last epoch: no probe is fitted.

M test images, L classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from selfcluster.evaluation.labeled import labeled, top
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting
from selfcluster.training.load import kept_other, trained_method


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    head: int = setting(0, "number of the target to score, counted from 0", least=0)


class Classifier(Protocol):
    Settings = ClassifierSettings

    def run(self, subject: Subject, settings: ClassifierSettings) -> Result:
        run = subject.run
        if run is None or subject.config.get("method") != "supervised":
            raise ValueError(
                f"{subject.model} trained no classifier; train one with: "
                "selfcluster train supervised DATA --labels-from folders"
            )
        if kept_other(run):
            raise ValueError(
                f"{subject.model} kept its start network or the mean of both, but its classifier belongs to the "
                "trained network. Train the run again with --keep end"
            )
        if subject.train is not None or subject.layer is not None:
            raise ValueError("the classifier is trained already: give --test alone, without --train and --layer")
        method, device = trained_method(run)
        heads = list(method.heads)  # pyright: ignore[reportArgumentType]
        if settings.head >= len(heads):
            raise ValueError(
                f"--head {settings.head}: must be from 0 to {len(heads) - 1}, because {subject.model} has {len(heads)} "
                f"target{'' if len(heads) == 1 else 's'}"
            )
        own = subject.test is None
        test = subject.all_features if own else subject.parts[1]
        x, y = labeled(test.vectors, test.labels, "test")
        with torch.no_grad():
            scores = heads[settings.head](method.final_relu(x.to(device))).float().cpu()
        numbers = {"top1": top(scores, y.cpu(), 1)} | ({"top5": top(scores, y.cpu(), 5)} if scores.shape[1] > 5 else {})
        numbers |= {"classes": scores.shape[1], "n_test": len(y)}
        notes = ("These are the images that the run was trained on: name others with --test.",) if own else ()
        return result_of("classifier", numbers, subject, settings, notes=notes)
