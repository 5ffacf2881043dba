"""Finds images of the same building, in the Oxford and Paris sets, original or revisited.

Radenović et al. 2018, arXiv 1803.11285 (easy, medium and hard, with junk) and Philbin et al. 2007 (the original). The
settings are those of DeeperCluster (R-MAC of 3 levels at 1,024 px, whitening learned on the other set) or DINO (the
class token).
Departs: Paris's corrupted images are not left out by name. A file that cannot be read ends the evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from selfcluster.clustering.whitening import Whitening
from selfcluster.evaluation.descriptors import describe_all, fit_whitening, map_of, token_of
from selfcluster.evaluation.layouts.landmarks import Landmarks, Query, read_landmarks
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.retrieval import retrieval_scores
from selfcluster.evaluation.subject import Subject
from selfcluster.models.descriptors import gem, region_maxima, rmac
from selfcluster.models.maps import Maps
from selfcluster.setting import setting

_SETUPS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    pooling: Literal["token", "gem", "rmac"] = setting(
        "rmac", "token (class token of a transformer, else the mean of the feature map), gem or rmac"
    )
    side: int = setting(1024, "longer side of the images in pixels", least=16)
    levels: int = setting(3, "L, levels of R-MAC's grid of regions", least=1)
    gem_power: float = setting(3.0, "p, power of gem", least=1)
    whiten: int = setting(
        512, "dimensions to keep in a whitening learned on --train; 0: no whitening, no --train needed", least=0
    )
    crop_queries: bool = setting(
        True, "search with the query's box only, as the data sets define; DINO's code does not"
    )


class Retrieval(Protocol):
    Settings = RetrievalSettings
    needs = ("network",)
    labels = "none"

    def run(self, subject: Subject, settings: RetrievalSettings) -> Result:
        if subject.test is None:
            raise ValueError("retrieval: name the set of landmarks with --test, and the other set with --train")
        if settings.whiten and subject.train is None:
            raise ValueError("retrieval: the whitening is learned on another set; name it with --train, or --whiten 0")
        landmarks = read_landmarks(Path(subject.test))
        others = read_landmarks(Path(subject.train)).database if settings.whiten else []
        network, device = subject.network_on_device()

        def maps(file: Path, query: Query | None = None) -> Maps:
            box = query.box if query is not None and settings.crop_queries else None
            return map_of(file, network, settings.side, box=box, layer=subject.layer, device=device)

        def pooled(file: Path, whitening: Whitening | None, query: Query | None = None) -> Tensor:
            found = maps(file, query)
            if settings.pooling == "rmac":
                return rmac(found.places[0], settings.levels, None if whitening is None else whitening.transform)
            vector = token_of(found) if settings.pooling == "token" else gem(found.places, settings.gem_power)[0]
            unit = torch.nn.functional.normalize(vector, dim=0)
            return unit if whitening is None else whitening.transform(unit[None])[0]

        whitening = None
        if settings.whiten:
            if settings.pooling == "rmac":
                rows = torch.cat([region_maxima(maps(file).places[0], settings.levels).cpu() for file in others])
            else:
                rows = torch.from_numpy(describe_all(others, lambda file: pooled(file, None)))
            whitening = fit_whitening(rows, settings.whiten)
        database = describe_all(landmarks.database, lambda file: pooled(file, whitening))
        searched = describe_all(landmarks.queries, lambda query: pooled(query.file, whitening, query))
        numbers = score(landmarks, searched @ database.T)
        counts = {"queries": len(landmarks.queries), "images": len(landmarks.database)}
        return result_of("retrieval", {**numbers, **counts}, subject, settings)


def score(landmarks: Landmarks, similarity: np.ndarray) -> dict[str, float]:
    """Return mean average precisions of similarities (Q, N).

    For a revisited set they are `map_easy`, `map_medium` and `map_hard`, each with mp@1, mp@5 and mp@10; for an
    original set `map` with mp@1, mp@5 and mp@10. A setup without a positive image is left out.
    """
    queries = [query.images for query in landmarks.queries]
    if not landmarks.is_revisited:
        return retrieval_scores(similarity, [q["ok"] for q in queries], [q["junk"] for q in queries])
    numbers = {}
    for name, (right, ignored) in _SETUPS.items():
        positives = [np.concatenate([q[kind] for kind in right]) for q in queries]
        if not any(map(len, positives)):
            continue
        junk = [np.concatenate([q[kind] for kind in ignored]) for q in queries]
        for measure, value in retrieval_scores(similarity, positives, junk).items():
            word, at, depth = measure.partition("@")
            numbers[f"{word}_{name}{at}{depth}"] = value
    return numbers
