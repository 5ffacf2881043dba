"""`selfcluster embed`: features of images by a trained network."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from selfcluster.commands.flags import add_model_flag, add_network_flags, check_names_images, names_images
from selfcluster.commands.results import Embedded
from selfcluster.data.sources import open_source
from selfcluster.files import make_writable
from selfcluster.randomness import keeps_random_state
from selfcluster.runs.folder import RunError, is_run
from selfcluster.settings.files import part_of, reading_of, run_config

HELP = "compute features of images with a trained network"
STARTER = "starter"  # the word of `selfcluster.models.origin`, which would bring torch
_EMBEDDING = "selfcluster: embedding the images"


@keeps_random_state
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
    model: str | os.PathLike[str] | None = None,
    timeout: float = 600.0,
    **subset: Any,
) -> Embedded:
    """Features of images by a trained network, one row per image, in the order of their ids.

    Args:
        run: a run folder, or another network, named as for `model` of `cluster` (a plain timm name gives random
            weights); or images, to which `model` is applied.
        data: the images; default those the run was trained on.
        out: the Parquet file (id, path, vector), with a .quarantine.jsonl of unreadable images where there are any;
            default RUN/embeddings.parquet for the run's own images, for others none.
        batch_size, workers, device, precision: as in training.
        max_bad: share of the images that may be unreadable; default the run's own, else 0.01.
        image_size: side of the images in pixels; default the network's own.
        model: the network, where `run` names the images instead; see `cluster`. Without it images are embedded by
            the starter network.
        timeout: seconds after which a read that hangs ends the command.
        **subset: labels_from, limit, classes, long_tail, seed, range, max_megapixels. With any
            of these, features of the run's own images are written to `out` only.

    Returns:
        out, ids, paths, vectors (n, F) float32, labels (n,) int64 or None, and class_names.
    """
    if data is None and (model is not None or names_images(run)):
        check_names_images(run, model)
        run, data = STARTER if model is None else model, run
    elif model is not None:
        raise ValueError(f"embed: {run} and --model {model} both name the network; give one of them")
    where = Path(run)
    trained = run_config(where) if is_run(where) else {}
    if data is None and not trained:
        from selfcluster.models.origin import check_word

        check_word(str(run), "images, ")
        raise RunError(f"{run} is not a run folder, so it has no images of its own: selfcluster embed {run} IMAGES")
    chosen = part_of(trained) if data is None else reading_of(trained)
    source = open_source(trained["data"] if data is None else data, **chosen | subset)

    from selfcluster.runs.tables import EMBEDDINGS, image_names, table_name, write_embeddings
    from selfcluster.training.features import embed_source
    from selfcluster.training.load import load_network

    path: Any = table_name(out, where / EMBEDDINGS if trained and data is None and not subset else None, ".parquet")
    bad = path.with_suffix(".quarantine.jsonl") if path is not None else None
    if bad is not None:
        make_writable(bad.parent)
        bad.unlink(missing_ok=True)
    index, vectors = embed_source(
        source,
        load_network(str(run), image_size, source),
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        max_bad=trained.get("max_bad", 0.01) if max_bad is None else max_bad,
        quarantine=bad,
        timeout=timeout,
    )
    ids, paths = image_names(source, index)
    if path is not None:
        write_embeddings(path, ids, paths, vectors)
    labels = None if source.labels is None else source.labels[index]
    return Embedded(str(path) if path else None, ids, paths, vectors, labels, source.class_names)


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, images, or a network as for --model")
    parser.add_argument("data", metavar="DATA", nargs="?", help="images; default: the images of the run")
    parser.add_argument(
        "--out", help="Parquet file; default for all images of a run: RUN/embeddings.parquet; needed in all other cases"
    )
    add_model_flag(parser)
    add_network_flags(parser, "labels_from", "seed")
    parser.set_defaults(run_command=run_command)


def run_command(run: str, data: str | None, out: str | None, **settings: Any) -> tuple[object, str]:
    if out is None and (
        data is not None
        or settings.get("model") is not None
        or names_images(run)
        or settings.keys() & {"limit", "classes", "long_tail", "labels_from", "seed", "range", "max_megapixels"}
    ):
        raise ValueError(
            "embed: name the output file with --out FILE; only the embeddings of all images of a run have a default "
            "file, RUN/embeddings.parquet"
        )
    print(_EMBEDDING, file=sys.stderr)
    result = embed(run, data, out=out, **settings)
    rows, width = result["vectors"].shape
    told = {"out": result["out"], "images": rows, "features": width}
    return told, f"{result['out']}: {rows} images, {width} features"
