"""`selfcluster cluster`: clusters of embedded images."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from selfcluster.files import make_writable
from selfcluster.runs.folder import RunError, check_finished, is_run

HELP = "clusters of embedded images"


def cluster(
    run: str | os.PathLike[str],
    *,
    k: int | str | None = None,
    algorithm: str = "kmeans",
    whiten: int | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Clusters of embedded images.

    Args:
        run: a run folder, whose images are compared as its method does (behind SwAV's projection, say), or an
            embeddings file (Parquet), compared as they are.
        k: how many clusters; "auto" recommends a number with its uncertainty; None takes the method's own clusters
            where it has some.
        algorithm: kmeans, hierarchical or pic.
        whiten: principal components that are kept and whitened first; default 3 k / 2 (pic: a quarter of the images),
            at most 256; 0: none.
        out: the Parquet file (id, path, cluster, distance), with a CSV twin of the same name; default clusters.parquet
            beside the embeddings.
        seed: of the clustering.
        quiet: print nothing.

    Returns:
        out, clusters, largest, smallest, and for k="auto" the recommendation's range.
    """
    from selfcluster.evaluation.clustering import cluster_vectors
    from selfcluster.runs import tables
    from selfcluster.runs.console import Console
    from selfcluster.training.load import own_clusters, projected

    where = Path(run)
    file = where / tables.EMBEDDINGS if is_run(where) else where
    path: Any = tables.table_name(out, file.with_name(tables.CLUSTERS), ".parquet", ".csv")
    path = path.with_suffix(".parquet")  # and a twin
    if not file.is_file():
        check_finished(where)
        raise RunError(f"{file}: no embeddings there; make them with: selfcluster embed {run} DATA --out {file}")
    make_writable(path.parent)
    table = tables.read_embeddings(file)
    console = Console(quiet)
    facts: dict[str, Any] = {}
    if k is None and algorithm == "kmeans":
        if not is_run(where):
            raise RunError(f"{run} is a table of embeddings, no run with clusters of its own: say --k, or --k auto")
        clusters, distances = own_clusters(where, table.vectors)
    else:
        rows = projected(where, table.vectors) if is_run(where) else table.vectors
        clusters, distances, facts = cluster_vectors(rows, k, algorithm, seed, whiten, console.say)
    tables.write_clusters(path, tables.ClusterTable(table.ids, table.paths, clusters, distances))
    sizes = np.unique(clusters, return_counts=True)[1]
    return {
        "out": str(path),
        "csv": str(path.with_suffix(".csv")),
        "images": len(clusters),
        "clusters": len(sizes),
        "largest": int(sizes.max()),
        "smallest": int(sizes.min()),
        **facts,
    }


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN|FILE", help="run folder or embeddings file")
    parser.add_argument("--k", type=_number_or_auto, help="number of clusters, or auto; default the method's own")
    parser.add_argument("--algorithm", default="kmeans", help="kmeans, hierarchical or pic")
    parser.add_argument(
        "--whiten", type=int, help="principal components kept and whitened first; default 3 k / 2 (pic: n / 4); 0: none"
    )
    parser.add_argument("--out", help="Parquet file, with a CSV twin; default clusters.parquet beside the embeddings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clustering")
    parser.set_defaults(run_command=run_command)


def _number_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from error


def run_command(**settings: Any) -> tuple[Any, str]:
    result = cluster(**settings)
    text = "{clusters} clusters of {images} images, from {smallest} to {largest}; {out} and {csv}".format(**result)
    return result, text
