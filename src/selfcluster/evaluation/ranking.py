"""Rank networks without labels: by the mean of their ranks in four measures on the same images.

The measures are RankMe (Garrido et al. 2023, arXiv 2210.02885), agreement of clusterings over seeds, silhouette, and
how often an image finds its own crops. `benchmarks/ranking.py` says how well each agrees with k-NN on labels.
N images, F features, R networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.stats import rankdata

from selfcluster.clustering.scores import rankme, silhouette
from selfcluster.data.sources import Source
from selfcluster.evaluation import unlabeled
from selfcluster.evaluation.judgement import CROPS, crop_plan
from selfcluster.evaluation.unlabeled import Crops
from selfcluster.models.pretrained import Network
from selfcluster.training.embedding import gather_rows, make_embed
from selfcluster.training.features import network_loader, on_device, run_network
from selfcluster.training.precision import pick_device, pick_precision

MEASURES: tuple[str, ...] = ("retrieval", "agreement", "silhouette", "rankme")  # of each, more is better


def embed_crops(
    source: Source,
    network: Network,
    *,
    seed: int = 0,
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_bad: float = 0.01,
    timeout: float = 600.0,
) -> tuple[np.ndarray, Crops]:
    """Return the positions (n,) of the images that could be read, and features of their center views and crops.

    The arguments are those of `embed_source`.
    """
    target = pick_device(device)
    reading = {"workers": workers, "max_bad": max_bad, "seed": seed, "timeout": timeout}
    loader, module = network_loader(source, network, batch_size, target, **reading), on_device(network, target)
    picked = pick_precision(precision, target)
    embed = make_embed(module, loader, crop_plan(network.preprocessing), device=target, precision=picked, on_host=True)
    try:
        index, center = gather_rows(embed(lambda views: run_network(module, views[0])))
        crops = embed(lambda views: torch.cat([run_network(module, view) for view in views], dim=1), view="train")
        rows = gather_rows(crops)[1].reshape(len(index), 2 * CROPS, -1).swapaxes(0, 1)
    finally:
        loader.close()
    return index, Crops(center, rows[:CROPS], rows[CROPS:])


def check_count(n: int) -> None:
    """Raise ValueError if n images are too few for the measures."""
    if n < unlabeled.FEWEST:
        raise ValueError(f"{n} images: at least {unlabeled.FEWEST} are needed to measure features without labels")


def measures(views: Crops, seed: int = 0) -> dict[str, float]:
    """Return the four measures of a network's features of N images, and the number of clusters that they use.

    Raises:
        ValueError: fewer than 8 images, or features that are not finite.
    """
    n = len(views.center)
    check_count(n)
    bad = int((~np.isfinite(views.center)).any(axis=1).sum())
    if bad:
        raise ValueError(f"the features of {bad} of {n} images are not finite, so they cannot be ranked")
    k = unlabeled.number_of_clusters(n)
    labelings = unlabeled.clusterings(views.center, k, seed=seed)
    found = {
        "retrieval": float(unlabeled.retrieval_hits(views.center, views.crop).mean()),
        "agreement": unlabeled.agreement(labelings),
        "silhouette": float(np.mean([silhouette(views.center, each, metric="cosine") for each in labelings])),
        "rankme": rankme(views.center),
    }
    return {**found, "k": k, "images": n}


def mean_ranks(rows: Sequence[Mapping[str, object]]) -> np.ndarray:
    """Return the mean over the measures of each network's rank (R,): 1 = best in all. Equal values share a rank.

    A measure that is not finite counts as the worst.

    >>> mean_ranks([dict.fromkeys(MEASURES, 0.1), dict.fromkeys(MEASURES, 0.3)]).tolist()
    [2.0, 1.0]
    """
    values = np.array([[row[name] for name in MEASURES] for row in rows], np.float64)
    values = np.where(np.isfinite(values), values, -np.inf)
    return np.mean([rankdata(-column, method="average") for column in values.T], axis=0)
