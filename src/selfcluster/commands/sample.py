"""`selfcluster sample`: a small balanced part of the images, to label by hand."""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfcluster.files import make_writable, write_atomically
from selfcluster.randomness import keeps_random_state
from selfcluster.runs.folder import RunError

HELP = "choose images to label by hand: equally many from each cluster, or at random"


@keeps_random_state
def sample(
    run: str | os.PathLike[str],
    n: int,
    *,
    by: str = "clusters",
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Choose images to label: equally many from each cluster, and different from each other within a cluster.

    The first image of a cluster is the one nearest to its center, each next one the farthest from those before
    (Gonzalez 1985). Clusters that are marked as rubbish, and images in no cluster, take no part.

    Args:
        run: a run folder with clusters and embeddings.
        n: number of images, at most as many as the clusters hold.
        by: clusters; random draws from all images alike, to compare with.
        out: a .csv file for the rows, or a .txt file with only the paths. `train` reads such a file, and many labeling
            programs do.
        seed: of the random draw.

    Returns:
        One row per image: id, path, cluster, name; sorted by cluster, and in each cluster in the order of choice.

    Raises:
        ValueError: n is not between 1 and the number of images.
    """
    if by not in ("clusters", "random"):
        raise ValueError(f"--by {by}: choose clusters or random")
    from selfcluster.runs.groups import read_groups
    from selfcluster.runs.tables import table_name

    path = table_name(out, None, ".csv", ".txt")
    if path is not None:
        make_writable(path.parent)
    groups = read_groups(Path(run)).without_rubbish()
    groups = groups.take(np.flatnonzero(groups.clusters >= 0))
    if not 1 <= n <= len(groups):
        raise ValueError(f"--n {n}: must be from 1 to {len(groups)}, the number of images in clusters of {run}")
    if by == "random":
        rows = np.sort(np.random.default_rng(seed).choice(len(groups), n, replace=False))
    else:
        rows = _balanced(Path(run), groups.ids, groups.clusters, groups.distances, n)
    chosen = [
        {
            "id": groups.ids[row],
            "path": groups.paths[row],
            "cluster": int(groups.clusters[row]),
            "name": groups.name_of(int(groups.clusters[row])),
        }
        for row in rows
    ]
    if path is not None:
        write_atomically(path, _text(chosen, path))
    return chosen


def _balanced(run: Path, ids: list[str], clusters: np.ndarray, distances: np.ndarray, n: int) -> np.ndarray:
    import torch

    from selfcluster.clustering.assign import unit_rows
    from selfcluster.clustering.representatives import equal_shares, farthest_points
    from selfcluster.runs.tables import EMBEDDINGS, embeddings_of

    table = embeddings_of(run)
    place = {name: row for row, name in enumerate(table.ids)}
    missing = next((name for name in ids if name not in place), None)
    if missing is not None:
        raise RunError(f"{run / EMBEDDINGS} lacks the image {missing!r}; embed again with: selfcluster embed {run}")
    numbers, sizes = np.unique(clusters, return_counts=True)
    rows = []
    for number, share in zip(numbers, equal_shares(sizes, n), strict=True):
        members = np.flatnonzero(clusters == number)
        vectors = table.vectors[[place[ids[row]] for row in members]]
        unit = unit_rows(torch.from_numpy(vectors)).numpy()  # likeness is the angle, as in `search`
        rows.append(members[farthest_points(unit, int(share), int(distances[members].argmin()))])
    return np.concatenate(rows)


def _text(rows: Sequence[Mapping[str, object]], path: Path) -> str:
    if path.suffix == ".txt":
        return "".join(f"{row['path']}\n" for row in rows)
    text = io.StringIO()
    table = csv.DictWriter(text, ["id", "path", "cluster", "name"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder with clusters and embeddings")
    parser.add_argument("--n", type=int, metavar="N", required=True, help="how many images")
    parser.add_argument("--by", default="clusters", help="clusters (default) or random")
    parser.add_argument("--out", help=".csv file, or .txt file with paths only; default: print only")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the random draw; default 0")
    parser.set_defaults(run_command=run_command)


def run_command(**settings: Any) -> tuple[object, str]:
    rows = sample(**settings)
    if settings["out"] is not None:
        clusters = len({row["cluster"] for row in rows})
        return rows, f"{settings['out']}: {len(rows):,} images of {clusters} clusters"
    return rows, "\n".join(f"{row['cluster']:>7}  {row['path']}" for row in rows)
