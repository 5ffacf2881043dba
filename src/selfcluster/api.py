"""The public functions: train, embed, cluster, evaluate, search, report, export and demo, composed of the floors below.

torch is imported inside the functions, after the data was scanned: an empty folder is refused at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from selfcluster.data.sources import DataError, check_enough, open_source
from selfcluster.files import make_writable
from selfcluster.methods import canonical
from selfcluster.recipes.needs import check_needs
from selfcluster.recipes.settings import open_for, part_of, read_settings
from selfcluster.training.runs import RunError, RunFolder, check_finished, has_begun, is_run, read_config, read_status


def train(
    method: str,
    data: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Train `method` on the images in `data` and write features and clusters.

    Args:
        method: a name of `METHODS`, hyphens or underscores.
        data: a folder, a .txt, .csv or .parquet list of files, a tar or an array of images, or
            "builtin:digits"; see `open_source`.
        out: the run folder; default runs/METHOD-DATANAME. An unfinished run in it goes on, a finished one is returned.
        recipe: auto (from the data), paper, small or cifar; None: auto, or that of the run that goes on.
        config: a `config.yaml` or a mapping of settings.
        quiet: print nothing but warnings.
        **settings: any flag of `selfcluster train METHOD --help`, with underscores.

    Returns:
        The run's summary: run, method, images, steps, minutes, loss, chance_loss, clusters, bad_images, ...

    Raises:
        RunError: another run lives in `out`; the message names what differs.
        ValueError: an unknown setting or a value out of range.

    >>> train("swav", "photos/", epochs=5)["clusters"]  # doctest: +SKIP
    """
    name = canonical(method)
    from_file = read_settings(config)
    said = {**from_file, **settings}
    source, path = open_for(name, data, said, out)
    if len(source) < 2:
        raise DataError(f"{len(source)} image in {source.where}: training needs at least 2")
    if isinstance(said.get("batch_size"), int):
        check_enough(len(source), said["batch_size"])
    if not has_begun(path):  # a run that goes on has had all it needs
        check_needs(name, said, source)

    from selfcluster import distributed
    from selfcluster.data.loader import Loader
    from selfcluster.recipes.assemble import NORMALIZATION, assemble
    from selfcluster.recipes.opening import open_run
    from selfcluster.recipes.targets import make_targets
    from selfcluster.training.console import Console
    from selfcluster.training.finish import finish
    from selfcluster.training.loop import Preempted, fit
    from selfcluster.training.precision import pick_device
    from selfcluster.training.tracking import tensorboard_rows

    distributed.start(pick_device(said.get("device") or "auto"))
    first = distributed.rank() == 0
    console = Console(quiet or not first)
    folder: RunFolder | None = None
    agreed: Any = None
    if first:
        try:
            folder, resolved = open_run(path, name, source, recipe, from_file, settings, console)
            agreed = resolved, read_status(path)
        except (ValueError, OSError) as error:
            agreed = error
    agreed = distributed.broadcast_object(agreed)  # every rank stops with the first one's reason
    if isinstance(agreed, Exception):
        raise agreed
    resolved, status = agreed
    started = time.monotonic()
    try:
        if status.get("state") == "finished":
            console.say(f"{path} is finished; choose another --out to train again")
            return {**status["summary"], "run": str(path), "embeddings": str(path / "embeddings.parquet")}
        if folder is not None:
            folder.status("running")
        again = partial(train, name, data, recipe=recipe, quiet=quiet)
        make_targets(resolved, source, path, console, again)
        parts = assemble(resolved, len(source), path)
        for note in parts.notes:
            console.say(note)
        mean, std = NORMALIZATION[resolved["channels"]]
        loader = Loader(
            source,
            mean=mean,
            std=std,
            device=parts.loop.device,
            quarantine=path / "quarantine.jsonl",
            rank=distributed.rank(),
            world=distributed.world_size(),
            **{key: resolved[key] for key in ("batch_size", "image_size", "channels", "seed", "workers", "max_bad")},
        )
        with tensorboard_rows(path if first and resolved["tensorboard"] else None) as on_row:
            where = folder, path / "checkpoints"
            state = fit(parts.method, loader, parts.views, parts.loop, console, *where, on_row, source.ids.__getitem__)
        summary = {"run": str(path), "method": name, "images": len(source), "steps": state.step}
        summary |= finish(state, loader, parts.loop, source, mean, std, resolved["image_size"], console)
        summary["minutes"] = round((time.monotonic() - started) / 60, 2)
        if folder is not None:
            folder.status("finished", summary=summary)
        return summary
    except BaseException as error:
        if folder is not None:
            preempted = isinstance(error, Preempted | KeyboardInterrupt)
            folder.status("preempted" if preempted else "failed", message=str(error) or type(error).__name__)
        raise
    finally:
        console.stop()
        if folder is not None:
            folder.close()


def embed(
    run: str | os.PathLike[str],
    data: Any = None,
    *,
    out: str | os.PathLike[str] | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_bad: float | None = None,
    image_size: int | None = None,
    **subset: Any,
) -> dict[str, Any]:
    """Features of images by a trained network, one row an image, in the order of their ids.

    Args:
        run: a run folder, an exported backbone folder or file, or a timm name.
        data: the images; default those the run was trained on.
        out: the Parquet file (id, path, vector), with a .quarantine.jsonl of unreadable images where there are any;
            default RUN/embeddings.parquet for the run's own images, for others none.
        batch_size, workers, device, precision: as in training.
        max_bad: share of the images that may be unreadable; default the run's own, else 0.01.
        image_size: side in pixels for a timm name; a run knows its own.
        **subset: labels_from, limit, classes, long_tail, seed; of the run's own images, too, these go to `out` alone.

    Returns:
        out, ids, paths, vectors (n, F) float32, labels (n,) int64 or None, and class_names.
    """
    where = Path(run)
    trained = read_config(where) if is_run(where) else {}
    if data is None and not trained:
        raise RunError(f"{run} is no run folder, so it names no images: say which")
    chosen = part_of(trained) if data is None else {}
    source = open_source(trained["data"] if data is None else data, **chosen | subset)

    from selfcluster.data.loader import Loader
    from selfcluster.recipes.opening import load_network
    from selfcluster.training.embedding import gather_rows, make_embed
    from selfcluster.training.precision import pick_device, pick_precision
    from selfcluster.training.tables import EMBEDDINGS, image_names, table_name, write_embeddings

    path: Any = table_name(out, where / EMBEDDINGS if trained and data is None and not subset else None, ".parquet")
    bad = path.with_suffix(".quarantine.jsonl") if path is not None else None
    if bad is not None:
        make_writable(bad.parent)
        bad.unlink(missing_ok=True)
    target = pick_device(device)
    module, mean, std, size = load_network(str(run), image_size, source)
    loader = Loader(
        source,
        batch_size=min(batch_size, len(source)),
        image_size=size,
        channels=len(mean),
        mean=mean,
        std=std,
        device=target,
        workers=workers,
        max_bad=trained.get("max_bad", 0.01) if max_bad is None else max_bad,
        quarantine=bad,
    )
    module.to(target).eval()
    embed_all = make_embed(module, loader, None, device=target, precision=pick_precision(precision, target))
    index, vectors = gather_rows(embed_all(lambda views: module(views[0])))
    ids, paths = image_names(source, index)
    if path is not None:
        write_embeddings(path, ids, paths, vectors)
    labels = None if source.labels is None else source.labels[index]
    found = {"ids": ids, "paths": paths, "vectors": vectors, "labels": labels, "class_names": source.class_names}
    return {"out": str(path) if path else None, **found}


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
    from selfcluster.recipes.opening import projected, own_clusters
    from selfcluster.training import tables
    from selfcluster.training.console import Console

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
    data = train if train is not None else read_config(Path(run)).get("data")

    def labeled(images: Any, **subset: Any) -> dict[str, Any]:
        own = "labels" if str(images).startswith("builtin:") else "folders"
        asked: dict[str, Any] = {**subset, "labels_from": labels_from or subset.get("labels_from") or own, **settings}
        return embed(run, images, **asked)

    config = {} if train is not None else read_config(Path(run))
    first = labeled(data, **part_of(config))
    if protocol == "clusters":
        from selfcluster.recipes.opening import projected

        rows = projected(Path(run), first["vectors"]) if k is not None and is_run(Path(run)) else first["vectors"]
        return score_clusters(Path(run), {**first, "vectors": rows}, k, seed)
    if test is not None:
        second = labeled(test, classes=config.get("classes"))  # all of those images: no part of the run's was drawn
        return score(protocol, first["vectors"], first["labels"], second["vectors"], aligned(first, second), k)
    kept, held = held_out(len(first["labels"]), split, seed)
    vectors, labels = first["vectors"], first["labels"]
    return score(protocol, vectors[kept], labels[kept], vectors[held], labels[held], k)


def search(
    run: str | os.PathLike[str], image: str | os.PathLike[str], *, k: int = 10, device: str = "auto"
) -> list[dict[str, Any]]:
    """The images of a run that are most like a given one.

    Args:
        run: a finished run folder.
        image: an image file, one of the run's or any other.
        k: how many.
        device: as in training.

    Returns:
        A row an image, most alike first: rank, cosine (of the features), id, path, cluster.
    """
    from selfcluster.evaluation.similar import most_similar, read_picture

    picture = read_picture(Path(image), read_config(Path(run))["image_size"])
    vector = embed(run, picture, device=device)["vectors"][0]
    return most_similar(Path(run), vector, k)


def report(run: str | os.PathLike[str], data: Any = None, *, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page that shows what a run found: one HTML file that opens offline.

    Args:
        run: a run folder.
        data: the images, for the thumbnails; default where the run found them.
        out: default RUN/report.html.
    """
    from selfcluster.reporting.page import write_report

    where = Path(run)
    config = read_config(where)
    try:
        source = open_source(config["data"] if data is None else data, **part_of(config))
    except DataError as error:
        if data is not None:
            raise
        print(f"selfcluster: the page has no pictures: {error}", file=sys.stderr)
        source = None
    return write_report(where, source, out=None if out is None else Path(out))


def export(
    run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, format: str = "safetensors"
) -> dict[str, Any]:
    """The trained network for other tools: `timm.create_model(**json, checkpoint_path=weights)` rebuilds it.

    Args:
        run: a run folder.
        out: folder for what is written; default RUN/export.
        format: safetensors for `backbone.safetensors` and `backbone.json`; onnx for `backbone.onnx`, which says in its
            metadata how its images are normalized (needs the extra `onnx`).

    Returns:
        weights, architecture, a note ("" but for networks of edges: whether the filters could be folded into the first
        layer, and where that is exact), and the arguments of `create_model`.
    """
    if format not in ("safetensors", "onnx"):
        raise ValueError(f"--format {format}: choose safetensors or onnx")
    from selfcluster.models.backbones import load_backbone, save_backbone
    from selfcluster.models.folding import for_images

    check_finished(Path(run))
    module, mean, std, size = load_backbone(Path(run))
    folder = Path(out) if out is not None else Path(run) / "export"
    make_writable(folder)
    if format == "onnx":
        from selfcluster.models.onnx import export_onnx

        return {"weights": str(folder / "backbone.onnx"), **export_onnx(folder, module, mean, std, size)}
    module, account = for_images(module)
    weights = save_backbone(folder, module, mean, std, size)
    return {"weights": str(weights), "architecture": str(folder / "backbone.json"), "note": account, **module.spec}


def attention(
    run: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    share: float = 0.6,
    image_size: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """What a vision transformer looks at: the attention of its last block, from the class token, as pictures.

    Args:
        run: a run folder, an exported backbone folder or file, or a timm name.
        images: image files; the middle square of each is shown to the network.
        out: folder for NAME-head-1.png and so on, a picture a head, and NAME-mask.png; default RUN/attention.
        share: of the heads' mean attention that the mask holds, in as few patches as do.
        image_size: side in pixels; more than the network was trained on gives finer maps.
        device: cpu, cuda or auto.

    Returns:
        out, heads, grid (patches down and across) and pictures (all files).

    Raises:
        ValueError: the network is no vision transformer, or no image file is given.
    """
    from selfcluster.reporting.attention import write_attention

    return write_attention(Path(run), [Path(i) for i in images], out, share, image_size, device)


def demo(out: str | os.PathLike[str] = "runs", *, seed: int = 0, quiet: bool = False) -> list[dict[str, Any]]:
    """The digits, without their labels: raw pixels, an untrained network, SwAV and DeepCluster-v2, a row each.

    Args:
        out: folder for the two runs, which are made anew.
        seed: of the runs.
        quiet: print nothing.

    Returns:
        Rows of features, knn (accuracy by 20 neighbors, leave one out), matching (of k-means with k = 10 by the best
        matching to the labels), nmi and seconds.
    """
    from selfcluster.evaluation.protocols import score_digits
    from selfcluster.recipes.opening import projected
    from selfcluster.training.tables import EMBEDDINGS, read_embeddings

    source = open_source("builtin:digits", labels_from="labels")
    labels: Any = source.labels
    pixels = np.stack([np.asarray(source.read(i), dtype=np.float32).ravel() for i in range(len(source))])
    rows = [{"features": "raw pixels", **score_digits(pixels, labels, seed), "seconds": 0.0}]
    runs = [("untrained network", "swav", {"images_seen": 1, "learning_rate": 0.0})]
    runs += [("SwAV", "swav", {"epochs": 50, "num_prototypes": 100, "learning_rate": 3e-3})]
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
