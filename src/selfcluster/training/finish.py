"""The end of a run: embed every image once more, and write the network, the embeddings and the clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from selfcluster import distributed
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.scores import effective_clusters
from selfcluster.data.loader import Loader
from selfcluster.data.sources import Source
from selfcluster.methods.base import Method
from selfcluster.models.backbones import save_backbone
from selfcluster.models.preprocessing import Preprocessing
from selfcluster.runs.console import Console
from selfcluster.runs.folder import read_metrics
from selfcluster.runs.tables import (
    CLUSTERS,
    EMBEDDINGS,
    ClusterTable,
    image_names,
    write_clusters,
    write_embeddings,
)
from selfcluster.runs.thresholds import AT_CHANCE
from selfcluster.training.embedding import gather_rows, make_embed
from selfcluster.training.loop import LoopSettings
from selfcluster.training.state import RunState

T = TypeVar("T")


def finish(
    state: RunState,
    loader: Loader,
    settings: LoopSettings,
    source: Source,
    images: Preprocessing,
    console: Console,
    own_clusters: bool = True,
) -> dict[str, Any]:
    """Write backbone, embeddings and clusters to the run folder; return the run's numbers. All ranks take part.

    `own_clusters`: the method's clusters fit the network; False if another network than the trained one was kept.
    """
    method, folder, device = state.method, state.folder, settings.device
    console.say("embedding all images")
    embed = make_embed(method, loader, None, device=device, precision=settings.precision, on_host=True)
    index, vectors = gather_rows(embed(lambda views: method.encode(views[0])))
    clusters, distances = assign(method if own_clusters else None, vectors, device)
    trained = state.labels.last()
    if folder is None:
        return {}
    ids, paths = image_names(source, index)
    save_backbone(folder.path, method.exported(), images.mean, images.std, images.image_size)
    write_embeddings(folder.path / EMBEDDINGS, ids, paths, vectors)
    write_clusters(folder.path / CLUSTERS, ClusterTable(ids, paths, clusters, distances))
    rows = read_metrics(folder.path)
    last = rows[-1] if rows else {}
    if state.step > 1 and last.get("loss", 0) >= (1 - AT_CHANCE) * last.get("chance_loss", float("inf")):
        console.warn(
            f"The loss ended at {last['loss']:.3f}, and chance is {last['chance_loss']:.3f}. The loss does not show "
            f"that the training task was learned. Train longer. {method.advice}"
        )
    if folder.lost_rows:
        console.warn(f"{folder.lost_rows} rows of metrics could not be written to {folder.path}")
    agreement = {}
    if own_clusters and trained is not None and method.assign(torch.from_numpy(vectors[:1]).to(device)) is not None:
        both = trained[index] >= 0
        agreement = {"same_as_trained": round(float((trained[index] == clusters)[both].mean()), 4)}
    kept = ("loss", "chance_loss", "rankme", "skipped_steps")
    return {
        **{key: last[key] for key in kept if key in last},
        "clusters": len(np.unique(clusters)),
        "effective_clusters": round(effective_clusters(clusters), 1),
        **agreement,
        "bad_images": len(source) - len(index),
        "embeddings": str(folder.path / EMBEDDINGS),
    }


@torch.no_grad()
def assign(method: Method | None, vectors: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Return clusters (n,) int64 and distances (n,) float32 of encoded images, by the method.

    If the method is None or has no clusters, k-means makes them. All ranks call it, each with all images.
    """
    parts: list[Any] = [None]
    if method is not None:
        parts = in_parts(method.eval().assign, vectors, device)
    if parts[0] is None:
        mine = vectors[distributed.share(len(vectors))]
        kmeans: Any = KMeans(max(2, round((2 * len(vectors)) ** 0.5)), random_state=0).fit(mine)
        labels = kmeans.predict(vectors)
        distances = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), 4096):  # blocks bound the memory of the differences
            rows = slice(start, start + 4096)
            distances[rows] = np.linalg.norm(vectors[rows] - kmeans.cluster_centers_[labels[rows]], axis=1)
        return labels, distances
    cluster, distance = (torch.cat([getattr(p, name) for p in parts]).cpu().numpy() for name in ("cluster", "distance"))
    return cluster, distance


def in_parts(function: Callable[[torch.Tensor], T], vectors: np.ndarray, device: torch.device) -> list[T]:
    """Apply `function` on the device to a few thousand rows of `vectors` (n, F) at a time; return the results."""
    return [function(torch.from_numpy(part).to(device)) for part in np.array_split(vectors, len(vectors) // 4096 + 1)]
