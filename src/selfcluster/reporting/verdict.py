"""What was checked of a run, and what came out: in words, from the numbers that the run left behind.

The verdict never says more than was checked. Without a comparison with the start it says that no collapse was seen.
With one (`evaluation/judgement.py`) it says whether the trained network is better than the start, and whether the
clusters follow color, file size or aspect ratio. Color may be content, as in stained cells, so that no fixed amount of
agreement is a fault. An adjusted mutual information (AMI) of 0.2 or more counts where training has raised it. In
training from nothing it counts where it is no lower than an untrained network's. On 600 photographs of clothes, an
untrained network's clusters and those of one trained from nothing have 0.24 with color, a pretrained one's 0.06.

The thresholds are those at which training speaks of collapse: a loss within 1 % of chance, or above it at the end,
features that use less than 2 % of their dimensions (RankMe, Garrido et al. 2023, arXiv 2210.02885), one cluster that
holds most images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from selfcluster.clustering.scores import effective_clusters
from selfcluster.runs.contents import Contents, is_untrained, method_of
from selfcluster.runs.thresholds import AT_CHANCE, FEW_EFFECTIVE, GIANT, THIN
from selfcluster.settings.schema import read_schema

_FOLLOWS = 0.2  # adjusted mutual information of clusters and a grouping by something else
_ROSE = 0.05  # by which a trained network's exceeds that of a pretrained start
_SURFACE = {"by_color": "color", "by_file_size": "file size", "by_aspect": "aspect ratio"}


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
        rank_text = f"the features use about {rank:,.0f} of {dim:,} dimensions (RankMe)"
        most = dim if rows is None else min(dim, rows)
        limit = max(1.5, THIN * most)
        if dim > 1 and rank < limit:
            bad.append(f"The features have collapsed: {rank_text}. Try stronger crops or a lower learning rate.")
        else:
            good.append(f"{_capital(rank_text)}; fewer than {limit:,.0f} would be a collapse.")
    if contents.clusters is not None:
        _judge_clusters(contents.clusters.cluster, bad, look, good)
    headline = _judge_start(contents, look, good)
    if bad:
        return Verdict("bad", "Something went wrong", (*bad, *look))
    if look:
        return Verdict("look", headline or "Worth a closer look", (*look, *good))
    if good:
        return Verdict("good", headline or "No collapse was seen", tuple(good))
    return Verdict("unknown", "Nothing was checked", ("The folder has no losses, embeddings or clusters.",))


def _judge_start(contents: Contents, look: list[str], good: list[str]) -> str | None:
    """Add what the comparison with the start says; returns the headline, or None where nothing was compared."""
    summary = contents.status.get("summary")
    judgement = summary.get("judgement") if isinstance(summary, dict) else None
    if not isinstance(judgement, dict) or not isinstance(judgement.get("start"), dict):
        if good and is_untrained(contents.config):
            good.append("Nothing was trained: the network was used as it was given.")
        elif good:
            good.append("The network was not compared with the one that training began with.")
        return None
    kept = str(judgement.get("kept", "end"))
    compared = str(judgement.get("compared", "end"))
    start, end = judgement["start"], judgement.get(compared, {})
    measures = judgement.get(kept, start)
    surface = _followed(start, measures, contents.config.get("init") is not None) if kept != "start" else []
    for words in surface:
        look.append(
            f"The clusters agree with {words[0]} {words[1]} (AMI {words[2]:.2f}, before {words[3]:.2f}; 0: no "
            "agreement, 1: full)."
        )
    better, unclear = judgement.get("better") is True, judgement.get("verdict") == "unclear"
    which = "The mean of start and trained weights" if compared == "half" else "The trained network"
    now, before = f"{end.get('retrieval', 0.0):.1%}", f"{start['retrieval']:.1%}"
    smaller = ""
    if "small_retrieval" in start and "small_retrieval" in end:
        smaller = f", and with a smaller crop in {end['small_retrieval']:.1%} ({start['small_retrieval']:.1%} before)"
    finds = (
        f"an image is matched with a crop of itself in {now} of the searches ({before} before){smaller}, among "
        f"{judgement.get('images', 0):,} images"
    )
    ending = ", so the start network was kept" if kept == "start" else ""
    if better:
        good.append(f"{which} is clearly better than the start network: {finds}.")
    elif unclear:
        look.append(f"{which} does not differ clearly from the start network{ending}: {finds}.")
    else:
        look.append(f"{which} is worse than the start network{ending}: {finds}.")
    if "knn" in start and "knn" in end:
        name = "mean" if compared == "half" else "trained"
        good.append(
            f"20-NN accuracy: {start['knn']:.1%} for the start network, {end['knn']:.1%} for the {name} network."
        )
    if surface:
        return f"The clusters agree with {surface[0][0]}"
    if better:
        return f"Better than the start network: {now} of images matched with their own crops, {before} before"
    return "No clear difference from the start network" if unclear else "Worse than the start network"


def _followed(
    start: Mapping[str, float], end: Mapping[str, float], pretrained: bool
) -> list[tuple[str, str, float, float]]:
    """What the clusters agree with more than they should: words, comparison, and the AMI now and at the start."""
    found = []
    for name, words in _SURFACE.items():
        now, before = end.get(name, 0.0), start.get(name, 0.0)
        if now < _FOLLOWS:
            continue
        if pretrained and now >= before + _ROSE:
            found.append((words, "more than before training", now, before))
        elif not pretrained and now >= before:
            found.append((words, "no less than those of an untrained network", now, before))
    return found


def _judge_state(contents: Contents, bad: list[str], look: list[str]) -> None:
    state = str(contents.status.get("state", ""))
    message = str(contents.status.get("message") or "")
    detail = f": {message}" if message else ""
    if state in ("failed", "collapsed", "diverged"):
        bad.append(f"The run {state if state != 'failed' else 'has failed'}{detail}")
    elif contents.is_unfinished:
        about = contents.config.get("about")
        command = about.get("command") if isinstance(about, dict) else None
        resume = f". Resume it with: `{command}`" if command else ""
        look.append(f"The run has not finished (state “{state}”){detail}{resume}")


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
    elif contents.is_unfinished:
        good.append(
            f"At the last logged step the loss was {end:.3g}. A network that has learned nothing has {chance:.3g}."
        )
    elif end >= (1 - AT_CHANCE) * chance:
        bad.append(
            f"The loss ended at {end:.3g} and chance is {chance:.3g}: the training task was not learned. Train longer. "
            f"{_advice(contents)}"
        )
    else:
        good.append(f"The loss ended at {end:.3g}. A network that has learned nothing has {chance:.3g}.")


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
        look.append(
            f"Most images are in a few clusters: the sizes of the {len(sizes):,} clusters have the entropy of "
            f"{effective:.1f} clusters of equal size."
        )
    else:
        good.append(
            f"The largest cluster holds {share.max():.0%} of the images. The sizes of the {len(share):,} "
            f"clusters have the entropy of {effective:,.0f} clusters of equal size."
        )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
