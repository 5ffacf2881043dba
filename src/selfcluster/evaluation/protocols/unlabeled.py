"""Ranks runs without labels: RankMe, stability over seeds, silhouette and crop retrieval.

Caron's thesis, section 6.2.3, leaves open how to choose a model without labels. A seeded sample of the images is
embedded; `evaluation/ranking.py` lists the measures. If a run has several checkpoints, each one is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.ranking import MEASURES, check_count, embed_crops, mean_ranks, measures
from selfcluster.evaluation.subject import Subject
from selfcluster.models.pretrained import Network
from selfcluster.setting import setting
from selfcluster.training.load import checkpoints_of, has_method, trained_method


@dataclass(frozen=True, kw_only=True)
class UnlabeledSettings:
    sample: int = setting(1000, "number of images, drawn by the seed; the time grows with its square", least=8)
    checkpoints: bool = setting(True, "also measure the checkpoints of a run if it has several")


class Unlabeled(Protocol):
    Settings = UnlabeledSettings
    needs = ("network",)
    labels = "none"

    def run(self, subject: Subject, settings: UnlabeledSettings) -> Result:
        if subject.layer is not None:
            raise ValueError(f"--layer {subject.layer}: unlabeled measures the features that users get; leave it out")
        subject.refuse_test("unlabeled")
        source = subject.source()
        check_count(len(source))
        if settings.sample < len(source):
            rows = np.random.default_rng(subject.seed).choice(len(source), settings.sample, replace=False)
            source = source.take(np.sort(rows))
        network = subject.network(source)
        arguments = {"max_bad": subject.config.get("max_bad", 0.01), **subject.embedding, "seed": subject.seed}

        def measured(candidate: Network) -> dict[str, float]:
            return measures(embed_crops(source, candidate, **arguments)[1], subject.seed)

        numbers = measured(network)
        table: list[dict[str, Any]] = []
        if settings.checkpoints and subject.run is not None and has_method(subject.run):
            found = checkpoints_of(subject.run)
            for path in found if len(found) > 1 else ():
                module = trained_method(subject.run, path)[0].exported()
                row = {"step": int(path.name.removeprefix("step-"))}
                table.append(row | measured(dataclasses.replace(network, module=module)))
        return result_of("unlabeled", numbers, subject, settings, table=tuple(table))


def ranked(results: Sequence[Result]) -> Result:
    """Return the results of several runs, and of their checkpoints, as one table with the best first.

    Raises:
        ValueError: the results are of different images.
    """
    sets = {(r.subject["train"], r["images"]) for r in results}
    if len(sets) > 1:
        listed = " and ".join(f"{images} of {train}" for train, images in sorted(sets, key=str))
        raise ValueError(f"the runs were measured on different images ({listed}); name one set with --train")
    rows = []
    for result in results:
        rows.append({"network": result.subject["model"], **result.numbers})
        others = [row for row in result.table if any(row[name] != result[name] for name in MEASURES)]  # not the end
        rows += [{"network": f"{result.subject['model']} step {row['step']}", **row} for row in others]
    rows = [{name: value for name, value in row.items() if name not in ("step", "k", "images")} for row in rows]
    for row, rank in zip(rows, mean_ranks(rows).tolist(), strict=True):
        row["mean_rank"] = rank
    rows.sort(key=lambda row: row["mean_rank"])
    first = results[0]
    notes = (
        "mean_rank is the mean rank over four measures (1: best in all). It predicts 20-NN only weakly: Kendall's tau "
        "was 0.28 on 17 networks of digits, and also on 12 of photographs (docs/LOG.md, 2026-11-27).",
    )
    numbers = {"best": rows[0]["network"], "networks": len(rows), "images": first["images"]}
    return Result("unlabeled", numbers, tuple(rows), first.settings, {"train": first.subject["train"]}, notes)
