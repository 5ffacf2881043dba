"""`selfcluster cluster`: group images, by a pretrained network or by a run's own."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfcluster.annotations import Data
from selfcluster.commands.flags import add_model_flag, add_network_flags, names_images
from selfcluster.commands.results import Clustered
from selfcluster.data.sources import Source, open_source
from selfcluster.files import make_writable
from selfcluster.randomness import keeps_random_state
from selfcluster.runs.folder import RunError, check_finished, is_run

if TYPE_CHECKING:
    from selfcluster.runs.console import Console

HELP = "group images with a pretrained network or a trained run"
SUBSET = ("limit", "classes", "long_tail", "labels_from", "range", "max_megapixels")


@keeps_random_state
def cluster(
    data: Data,
    *,
    model: str | os.PathLike[str] | None = None,
    k: int | str | None = None,
    algorithm: str = "kmeans",
    whiten: int | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> Clustered:
    """Cluster images.

    Args:
        data: images (for example a folder), a run folder, or an embeddings file (Parquet or .npy). Images are first
            embedded into a new run folder, without training. For a run, the clustering uses the features that its
            method compares, for example those after SwAV's projection. All vectors are scaled to length 1 and, unless
            `whiten` is 0, reduced to whitened principal components.
        model: for images, the network: "starter" (the default), "timm:NAME", a weights file, "NETWORK=FILE", an
            exported backbone or a run.
        k: number of clusters. "auto" recommends a number and a range. None: the trained run's own clusters if its
            method has clusters, else "auto".
        algorithm: kmeans, hierarchical, pic or hdbscan. pic and hdbscan choose the number of clusters
            themselves and take no `k`. hdbscan gives images that belong to no cluster the number -1.
        whiten: number of principal components to keep and whiten before clustering; 0: no whitening. Default: 1.5 k
            (pic: a quarter of the images; hdbscan: n / 20, at most 32), and at most 256.
        out: for images: the run folder, default runs/cluster-DATANAME. Otherwise: the Parquet file (id, path, cluster,
            distance), default clusters.parquet beside the embeddings; a CSV of the same name is written, too.
        seed: of the clustering.
        quiet: print warnings only.
        **settings: for images: image_size, batch_size, workers, device, precision, max_bad, allow_partial, timeout,
            and limit, classes, long_tail, labels_from, range, max_megapixels, as in training.

    Returns:
        out, csv, images, clusters, largest, smallest, none (images in no cluster), for a recommended k its range, and
        for images also run and report (the page).
    """
    from selfcluster.runs import tables

    where = Path(data) if isinstance(data, str | os.PathLike) else None
    if where is not None and (is_run(where) or (where / tables.EMBEDDINGS).is_file() or _holds_vectors(where)):
        if model is not None or settings:
            unused = ["--model"] if model is not None else [f"--{name.replace('_', '-')}" for name in settings]
            raise RunError(f"{unused[0]} has no effect: {data} is embedded already, by its own network")
        return _cluster_table(where, k, algorithm, whiten, out, seed, quiet)
    run, source, result = cluster_images(data, model, k, algorithm, whiten, out, seed, quiet, settings)
    from selfcluster.reporting.page import write_report
    from selfcluster.runs.console import Console

    console = Console(quiet)
    console.say("writing the page")
    page = write_report(run, source, progress=console.say)
    return replace(result, run=str(run), report=str(page))


def cluster_images(
    data: Data,
    model: str | os.PathLike[str] | None = None,
    k: int | str | None = None,
    algorithm: str = "kmeans",
    whiten: int | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    quiet: bool = False,
    settings: dict[str, Any] | None = None,
) -> tuple[Path, Source, Clustered]:
    """Embed images into a run folder and cluster them there; return the folder, the images and the result.

    The arguments are those of `cluster`.
    """
    from selfcluster.evaluation.clustering import check_algorithm

    check_algorithm(algorithm, k, whiten)
    from selfcluster.training.embed_run import keep_command

    run, source = embed_images(data, model, out, seed=seed, quiet=quiet, **(settings or {}))
    result = _cluster_table(run, k, algorithm, whiten, None, seed, quiet)
    keep_command(run)
    return run, source, result


def embed_images(
    data: Data,
    model: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> tuple[Path, Source]:
    """Return a run folder that holds the embeddings of the images, and the images; they are embedded only once.

    The arguments are those of `cluster`.
    """
    subset: dict[str, Any] = {name: settings.pop(name) for name in SUBSET if name in settings} | {"seed": seed}
    is_path = isinstance(data, str | os.PathLike)
    if is_path and not Path(data).exists() and not names_images(data):
        raise RunError(f"there is no {data}; give a folder of images, a run folder or an embeddings file")
    source = open_source(data, **subset)
    from selfcluster.runs.console import Console
    from selfcluster.training.embed_run import EmbedSettings, embed_run

    chosen = EmbedSettings(**({} if model is None else {"model": os.fspath(model)}), **settings)
    return embed_run(None if out is None else Path(out), source, chosen, subset, Console(quiet)), source


def _cluster_table(
    where: Path,
    k: int | str | None,
    algorithm: str,
    whiten: int | None,
    out: str | os.PathLike[str] | None,
    seed: int,
    quiet: bool,
) -> Clustered:
    """Cluster the images of a run folder or an embeddings file."""
    from selfcluster.evaluation.clustering import cluster_vectors
    from selfcluster.runs import tables
    from selfcluster.runs.console import Console
    from selfcluster.training.load import has_method, own_clusters, projected

    file = where / tables.EMBEDDINGS if where.is_dir() else where
    path: Any = tables.table_name(out, file.with_name(tables.CLUSTERS), ".parquet", ".csv")
    path = path.with_suffix(".parquet")  # and a twin
    if not file.is_file():
        check_finished(where)
        raise RunError(
            f"{file}: the file contains no embeddings; make them with: selfcluster embed {where} DATA --out {file}"
        )
    make_writable(path.parent)
    table = tables.read_embeddings(file)
    console = Console(quiet)
    trained = is_run(where) and has_method(where)
    facts: dict[str, Any] = {}
    if trained and k is None and algorithm == "kmeans":
        clusters, distances = own_clusters(where, table.vectors)
    else:
        if k is None and algorithm in ("kmeans", "hierarchical"):
            k = "auto"
        rows = projected(where, table.vectors) if trained else table.vectors
        clusters, distances, facts = cluster_vectors(rows, k, algorithm, seed, whiten, console.say, overwrite=True)
    if path == where / tables.CLUSTERS:
        _keep_decisions(where, table.ids, clusters, console)
    tables.write_clusters(path, tables.ClusterTable(table.ids, table.paths, clusters, distances))
    sizes = np.unique(clusters[clusters >= 0], return_counts=True)[1]
    return Clustered(
        out=str(path),
        csv=str(path.with_suffix(".csv")),
        images=len(clusters),
        clusters=len(sizes),
        largest=int(sizes.max(initial=0)),
        smallest=int(sizes.min()) if len(sizes) else 0,
        none=int((clusters < 0).sum()),
        ids=table.ids,
        labels=clusters,
        distances=distances,
        **facts,
    )


def _keep_decisions(run: Path, ids: list[str], clusters: np.ndarray, console: Console) -> None:
    """Rename `curation.jsonl` where new clusters replace those that its rows speak of."""
    from selfcluster.runs.curation import CURATION, set_aside
    from selfcluster.runs.tables import CLUSTERS, read_clusters

    if not (run / CURATION).exists():
        return
    if (run / CLUSTERS).is_file():
        before = read_clusters(run / CLUSTERS)
        if before.ids == ids and np.array_equal(before.clusters, clusters):
            return
    console.say(f"the clusters are new; {set_aside(run)} keeps the names and merges of the old clusters")


def _holds_vectors(path: Path) -> bool:
    """Whether a file is a table of vectors (Parquet, or an array in a .npy file); a table of images is data."""
    from selfcluster.runs.tables import is_parquet

    if not path.is_file():
        return False
    if not is_parquet(path):
        return path.suffix in (".parquet", ".npy")  # reading it says what is wrong
    import pyarrow.parquet as pq

    return "vector" in pq.read_schema(path).names


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("data", metavar="DATA|RUN|FILE", help="images, a run folder, or an embeddings file")
    add_model_flag(parser)
    parser.add_argument(
        "--k",
        type=_number_or_auto,
        metavar="N|auto",
        help="number of clusters, or auto. Default: auto; for a trained run: the run's own clusters",
    )
    parser.add_argument(
        "--algorithm",
        default="kmeans",
        help="kmeans (default), hierarchical, pic (power iteration) or hdbscan; the last two find the number of "
        "clusters, and take no --k",
    )
    parser.add_argument(
        "--whiten",
        type=int,
        metavar="N",
        help="number of whitened principal components; 0: no whitening; default: 1.5 times k (pic: a quarter of "
        "the number of images; hdbscan: a twentieth, at most 32), and at most 256",
    )
    parser.add_argument(
        "--out",
        help="for images: run folder (default runs/cluster-DATANAME); for a run or embeddings: Parquet file, with a "
        "CSV of the same name (default: clusters.parquet in the same folder; an existing file is replaced)",
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the clustering")
    parser.add_argument("--quiet", action="store_true", help="print warnings only")
    add_network_flags(parser, "labels_from")
    parser.set_defaults(run_command=run_command, batch_size=None)


def _number_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from error


def run_command(**settings: Any) -> tuple[object, str]:
    result = cluster(**{name: value for name, value in settings.items() if value is not None})
    smallest, largest = result["smallest"], result["largest"]
    sizes = f"{smallest} to {largest}" if smallest < largest else f"{largest}"
    inside = result["images"] - result["none"]
    files = f"{result['out']} and {result['csv']}"
    lines = [f"{inside} images in {result['clusters']} clusters of {sizes} images. Written: {files}"]
    if result["none"]:
        few = "image belongs to no cluster; it has" if result["none"] == 1 else "images belong to no cluster; they have"
        lines.append(f"{result['none']} {few} the number -1")
    if "report" in result:
        lines.append(f"{result['report']}: open it in a browser")
    shown = {name: value for name, value in result.items() if isinstance(value, str | int)}
    return shown, "\n".join(lines)
