"""`selfcluster report`: write the page that shows the clusters."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from selfcluster.commands.flags import add_model_flag, names_images
from selfcluster.data.sources import DataError, open_source
from selfcluster.settings.files import part_of, run_config

HELP = "a page that shows the clusters"


def report(
    run: str | os.PathLike[str],
    data: Any = None,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the page that shows the clusters: one HTML file that opens offline. Return its path.

    Args:
        run: a run folder, or images. Images are embedded and clustered first, see `cluster`.
        data: the images, for the thumbnails; default where the run found them.
        out: default RUN/report.html.
        model: for images, the network; see `cluster`.
    """
    from selfcluster.reporting.page import write_report

    if names_images(run):
        from selfcluster.commands.cluster import cluster

        run = cluster(run, model=model)["run"]
    elif model is not None:
        raise ValueError(f"--model has no effect: {run} is embedded already, by its own network")
    where = Path(run)
    config = run_config(where)
    try:
        source = open_source(config["data"] if data is None else data, **part_of(config))
    except DataError as error:
        if data is not None:
            raise
        print(f"selfcluster: the page has no pictures: {error}", file=sys.stderr)
        source = None
    return write_report(where, source, out=None if out is None else Path(out))


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN|DATA", help="run folder, or images")
    parser.add_argument("--data", help="images, if they have moved")
    parser.add_argument("--out", help="HTML file; default RUN/report.html")
    add_model_flag(parser)
    parser.set_defaults(run_command=run_command)


def run_command(run: str, data: str | None, out: str | None, model: str | None) -> tuple[Any, str]:
    path = report(run, data, out=out, model=model)
    return {"out": str(path)}, f"{path}: open it in a browser"
