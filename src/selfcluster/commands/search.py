"""`selfcluster search`: the images that are most similar to a given image."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from selfcluster.commands.cluster import embed_images
from selfcluster.commands.embed import embed
from selfcluster.commands.flags import add_model_flag, check_run_or_images, names_images
from selfcluster.commands.results import Hits
from selfcluster.data.ranges import ValueRange
from selfcluster.files import make_writable, write_atomically
from selfcluster.randomness import keeps_random_state
from selfcluster.settings.files import run_config

HELP = "find the images most similar to a given image"


@keeps_random_state
def search(
    run: str | os.PathLike[str],
    image: str | os.PathLike[str],
    *,
    k: int = 10,
    device: str = "auto",
    model: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Hits:
    """Return the images that are most similar to a given image.

    Args:
        run: a finished run folder, or images. Images are embedded first, once, as `cluster` embeds them.
        image: an image file, one of those images or any other. `run` and `image` can be swapped.
        k: how many.
        device: as in training.
        model: for images, the network; see `cluster`.
        out: also write the rows to this file: .csv, .parquet or .json.

    Returns:
        One row per image, the most similar first: rank, cosine (of the features), id, path, cluster.
    """
    from selfcluster.runs.tables import table_name

    file = table_name(out, None, ".csv", ".parquet", ".json")
    if file is not None:
        make_writable(file.parent)
    from selfcluster.evaluation.similar import most_similar, read_picture

    if Path(run).is_file() and Path(image).is_dir():
        run, image = image, run
    check_run_or_images(run)
    if names_images(run):
        run = embed_images(run, model, device=device)[0]
    elif model is not None:
        raise ValueError(f"--model has no effect: {run} is embedded already, by its own network")
    config = run_config(Path(run))
    picture = read_picture(Path(image), config["image_size"], ValueRange.of(config.get("range")))
    vector = embed(run, picture, device=device)["vectors"][0]
    hits = Hits(most_similar(Path(run), vector, k))
    if file is not None:
        _write(file, hits)
    return hits


def _write(file: Path, hits: Hits) -> None:
    if file.suffix == ".json":
        write_atomically(file, json.dumps(list(hits), indent=2) + "\n")
        return
    import pyarrow as pa

    from selfcluster.runs.tables import write_table

    write_table(file, pa.Table.from_pylist(list(hits)))


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN|DATA", help="run folder, or images")
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("--k", type=int, metavar="N", default=10, help="number of images to show; default 10")
    parser.add_argument("--out", help="also write the rows to this .csv, .parquet or .json file")
    add_model_flag(parser)
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="cpu, cuda or auto")
    parser.set_defaults(run_command=run_command)


def run_command(**settings: Any) -> tuple[object, str]:
    rows = search(**settings)
    lines = [
        f"{r['rank']:>4}{r['cosine']:>9.4f}  {'-' if r['cluster'] is None else r['cluster']:>7}  {r['path']}"
        for r in rows
    ]
    return rows, "\n".join([f"{'rank':>4}{'cosine':>9}  {'cluster':>7}  path", *lines])
