"""`selfcluster demo`: the digits, without their labels: raw pixels against SwAV and DeepCluster-v2."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from selfcluster.commands.report import report
from selfcluster.commands.train import train
from selfcluster.data.sources import open_source
from selfcluster.randomness import keeps_random_state
from selfcluster.waiting import one_thread

HELP = "train on digits without labels and compare the results in a table"


@keeps_random_state
@one_thread()
def demo(out: str | os.PathLike[str] = "runs", *, seed: int = 0, quiet: bool = False) -> list[dict[str, Any]]:
    """Train SwAV and DeepCluster-v2 on the digits without labels; compare with raw pixels and an untrained network.

    All of it uses one thread: on images of 8 x 8 pixels that is faster than two, and other programs disturb it less.

    Args:
        out: folder for the two runs; existing runs are replaced.
        seed: of the runs.
        quiet: print no progress.

    Returns:
        Rows of features, knn (accuracy by 20 neighbors, leave one out), matching (of k-means with k = 10 by the best
        matching to the labels), nmi and seconds.
    """
    from selfcluster.evaluation.digits import score_digits
    from selfcluster.runs.tables import EMBEDDINGS, read_embeddings
    from selfcluster.training.load import projected

    source = open_source("builtin:digits", labels_from="labels")
    labels: Any = source.labels
    pixels = np.stack([np.asarray(source.read(i), dtype=np.float32).ravel() for i in range(len(source))])
    rows = [{"features": "raw pixels", **score_digits(pixels, labels, seed), "seconds": 0.0}]
    runs = [("untrained network", "swav", {"images_seen": 1, "learning_rate": 0.0})]
    runs += [("SwAV", "swav", {"epochs": 50, "num_prototypes": 100, "learning_rate": 2e-3})]
    runs += [("DeepCluster-v2", "deepcluster_v2", {"epochs": 16})]
    for title, method, settings in runs:
        run = Path(out) / f"demo-{title.split()[0].lower()}"
        shutil.rmtree(run, ignore_errors=True)
        started = time.monotonic()
        train(method, "builtin:digits", out=run, seed=seed, quiet=quiet or title.startswith("untrained"), **settings)
        seconds = round(time.monotonic() - started, 1)
        vectors = read_embeddings(run / EMBEDDINGS).vectors
        within = vectors if title.startswith("untrained") else projected(run, vectors)
        rows.append({"features": title, **score_digits(vectors, labels, seed, within), "seconds": seconds})
    report(Path(out) / "demo-swav")
    return rows


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("--out", default="runs", help="folder for the runs; existing runs are replaced")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the runs")
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    parser.set_defaults(run_command=run_command)


def run_command(out: str, seed: int, quiet: bool) -> tuple[object, str]:
    rows = demo(out, seed=seed, quiet=quiet)
    head = f"{'features':<20}{'k-NN':>8}{'matching':>10}{'NMI':>8}{'seconds':>10}"
    lines = [
        f"{r['features']:<20}{r['knn']:>8.3f}{r['matching']:>10.3f}{r['nmi']:>8.3f}{r['seconds']:>10.1f}" for r in rows
    ]
    return rows, "\n".join([head, *lines, "", f"{out}/demo-swav/report.html shows the clusters"])
