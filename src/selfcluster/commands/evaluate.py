"""`selfcluster evaluate`: score features or clusters against labels."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from selfcluster.commands.embed import embed
from selfcluster.commands.flags import add_network_flags
from selfcluster.runs.folder import is_run
from selfcluster.settings.files import part_of, run_config

HELP = "score features or clusters against labels"
_EMBEDDING = "selfcluster: embedding the images"


def evaluate(
    protocol: str,
    run: str | os.PathLike[str],
    *,
    train: Any = None,
    test: Any = None,
    split: float = 0.2,
    labels_from: str | None = None,
    k: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Score a network's features, or a run's clusters, against labels.

    Args:
        protocol: knn (temperature 0.07), linear (logistic probe on frozen features) or clusters (NMI, ARI, accuracy
            by matching, purity).
        run: a run folder, an exported backbone or a timm name.
        train, test: labeled images; without `test` a seeded share of `train` is held out; without either the run's
            own images are used.
        split: share held out for the test.
        labels_from: where the labels are, see `open_source`; default the folders' names (the digits' own for those).
        k: neighbors (knn; default 20), or how many clusters to make anew (clusters; default those of the run).
        seed: of the split and the clustering.
        **settings: of `embed`.

    Returns:
        The protocol's numbers.
    """
    from selfcluster.evaluation.protocols import PROTOCOLS, aligned, held_out, score, score_clusters

    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol named {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if not 0 < split < 1:
        raise ValueError(f"--split {split}: must be a share between 0 and 1")
    data = train if train is not None else run_config(Path(run)).get("data")

    def labeled(images: Any, **subset: Any) -> dict[str, Any]:
        own = "labels" if str(images).startswith("builtin:") else "folders"
        asked: dict[str, Any] = {**subset, "labels_from": labels_from or subset.get("labels_from") or own, **settings}
        return embed(run, images, **asked)

    config = {} if train is not None else run_config(Path(run))
    first = labeled(data, **part_of(config))
    if protocol == "clusters":
        from selfcluster.training.load import projected

        rows = projected(Path(run), first["vectors"]) if k is not None and is_run(Path(run)) else first["vectors"]
        return score_clusters(Path(run), {**first, "vectors": rows}, k, seed)
    if test is not None:
        second = labeled(test, classes=config.get("classes"))  # all of those images: no part of the run's was drawn
        return score(protocol, first["vectors"], first["labels"], second["vectors"], aligned(first, second), k)
    kept, held = held_out(len(first["labels"]), split, seed)
    vectors, labels = first["vectors"], first["labels"]
    return score(protocol, vectors[kept], labels[kept], vectors[held], labels[held], k)


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("protocol", metavar="PROTOCOL", help="knn, linear or clusters")
    parser.add_argument("run", metavar="RUN", help="run folder, exported backbone, or timm name")
    parser.add_argument("--train", help="labeled images; default those of the run")
    parser.add_argument("--test", help="labeled images to score on; default a held-out share of --train")
    parser.add_argument("--split", type=float, default=0.2, help="share held out where there is no --test")
    parser.add_argument("--labels-from", help="folders, column:NAME or a CSV file; default folders")
    parser.add_argument("--k", type=int, help="neighbors (knn), or number of clusters to make anew (clusters)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and the clustering")
    add_network_flags(parser)
    parser.set_defaults(run_command=run_command)


def run_command(**settings: Any) -> tuple[Any, str]:
    print(_EMBEDDING, file=sys.stderr)
    numbers = evaluate(**settings)
    lines = [f"{k:>16}  {v:.4f}" if isinstance(v, float) else f"{k:>16}  {v}" for k, v in numbers.items()]
    if numbers.get("clusters", 0) > (classes := numbers.get("classes", 0)):
        lines += ["", "accuracy gives each class one cluster and takes the images of all other clusters for wrong;"]
        lines += [
            f"--k {classes} makes as many clusters as classes. purity gives each cluster its most frequent class."
        ]
    return numbers, "\n".join(lines)
