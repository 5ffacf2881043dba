"""Is the run healthy? The answer in words, from the numbers that the run left behind.

The thresholds are those at which training speaks of collapse: a loss within 1 % of chance, or above it at the end,
features that use less than 2 % of their dimensions (RankMe, Garrido et al. 2023, arXiv 2210.02885), one cluster that
holds most images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from selfcluster.clustering.scores import effective_clusters
from selfcluster.runs.contents import Contents, method_of
from selfcluster.runs.thresholds import AT_CHANCE, FEW_EFFECTIVE, GIANT, THIN
from selfcluster.settings.schema import read_schema


@dataclass(frozen=True)
class Verdict:
    """`level` picks the color, `headline` says it in a few words, `reasons` are whole sentences."""

    level: Literal["good", "look", "bad", "unknown"]
    headline: str
    reasons: tuple[str, ...]


def judge(contents: Contents, rank: float | None = None, rows: int | None = None) -> Verdict:
    """Weigh the loss, the features and the clusters.

    Args:
        contents: what the run folder holds.
        rank: RankMe of the embeddings shown on the map; None: there are none.
        rows: how many those are, which bounds the rank; None: enough.
    """
    bad, look, good = [], [], []
    _judge_state(contents, bad, look)
    _judge_loss(contents, bad, look, good)
    if rank is not None and contents.vectors is not None:
        dim = contents.vectors.dim
        told = f"the embeddings use {rank:,.0f} of {dim:,} dimensions (RankMe)"
        most = dim if rows is None else min(dim, rows)
        if dim > 1 and rank < max(1.5, THIN * most):
            bad.append(f"The features have collapsed: {told}. Try stronger crops or a lower learning rate.")
        else:
            good.append(_sentence(told))
    if contents.clusters is not None:
        _judge_clusters(contents.clusters.cluster, bad, look, good)
    if bad:
        return Verdict("bad", "Something went wrong", (*bad, *look))
    if look:
        return Verdict("look", "Worth a closer look", (*look, *good))
    if good:
        return Verdict("good", "Healthy", tuple(good))
    return Verdict("unknown", "Health unknown", ("There is nothing here to judge it by.",))


def _judge_state(contents: Contents, bad: list[str], look: list[str]) -> None:
    state = str(contents.status.get("state", ""))
    message = str(contents.status.get("message") or "")
    told = f": {message}" if message else ""
    if state in ("failed", "collapsed", "diverged"):
        bad.append(f"The run {state if state != 'failed' else 'has failed'}{told}")
    elif state and state not in ("finished", "done", "complete", "completed"):
        look.append(f"The run has not finished (state “{state}”){told}")


def _judge_loss(contents: Contents, bad: list[str], look: list[str], good: list[str]) -> None:
    if "loss" not in contents.metrics:
        return
    losses = contents.metrics["loss"][1]
    wild = int((~np.isfinite(losses)).sum())
    tail = losses[-max(1, len(losses) // 20) :]
    if not np.isfinite(tail).any():
        bad.append("The loss is not a finite number at the end. Try a lower learning rate or `--precision fp32`.")
        return
    if wild:
        look.append(f"The loss was not finite in {wild:,} of {len(losses):,} logged steps; those steps were skipped.")
    end, chance = float(np.nanmean(np.where(np.isfinite(tail), tail, np.nan))), contents.last("chance_loss")
    if chance is None or chance <= 0:
        good.append(f"The loss ended at {end:.3g}.")
    elif end >= (1 - AT_CHANCE) * chance:
        bad.append(
            f"The loss ended at {end:.3g} and chance is {chance:.3g}: nothing was learned. Train longer. "
            f"{_advice(contents)}"
        )
    else:
        good.append(f"The loss ended at {end:.3g}, {1 - end / chance:.0%} below chance ({chance:.3g}).")


def _advice(contents: Contents) -> str:
    try:
        advice = read_schema(method_of(contents.config) or "").advice
    except KeyError:  # a folder of another origin
        advice = None
    return advice or "Try a lower --learning-rate, or larger batches."


def _judge_clusters(cluster: np.ndarray, bad: list[str], look: list[str], good: list[str]) -> None:
    sizes = np.bincount(cluster[cluster >= 0]) if (cluster >= 0).any() else np.zeros(0, int)
    if not sizes.sum():
        bad.append("No image has a cluster.")
        return
    share = sizes[sizes > 0] / sizes.sum()
    effective = effective_clusters(cluster)
    if len(share) == 1:
        bad.append("All images are in one cluster.")
    elif share.max() > GIANT:
        look.append(f"One cluster holds {share.max():.0%} of the images.")
    elif effective < FEW_EFFECTIVE * len(sizes):
        look.append(f"The images sit in few clusters: {len(sizes):,} count as {effective:.1f} of equal size.")
    else:
        good.append(
            f"The largest cluster holds {share.max():.0%}; {len(share):,} are as even as {effective:,.0f} equal ones."
        )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
