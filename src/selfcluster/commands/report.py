"""`selfcluster report`: write the page that shows the clusters."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from selfcluster.commands.flags import add_model_flag, names_images
from selfcluster.data.sources import DataError
from selfcluster.settings.files import run_source

HELP = "a page that shows the clusters"


def report(
    run: str | os.PathLike[str],
    data: Any = None,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    apply: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the page that shows the clusters: one HTML file that opens offline. Return its path.

    Args:
        run: a run folder, or images. Images are embedded and clustered first, see `cluster`.
        data: the images, for the thumbnails; default where the run found them.
        out: default RUN/report.html.
        model: for images, the network; see `cluster`.
        apply: a file of curation rows; those that RUN/curation.jsonl lacks are added to it first.

    Raises:
        CurationError: a row of the file does not fit the run's clusters; nothing was added.
    """
    from selfcluster.reporting.page import write_report

    if names_images(run):
        from selfcluster.commands.cluster import cluster

        run = cluster(run, model=model)["run"]
    elif model is not None:
        raise ValueError(f"--model has no effect: {run} is embedded already, by its own network")
    where = Path(run)
    if apply is not None:
        apply_rows(where, Path(apply))
    try:
        source = run_source(where, data)
    except DataError as error:
        if data is not None:
            raise
        print(f"selfcluster: the page has no pictures: {error}", file=sys.stderr)
        source = None
    return write_report(where, source, out=None if out is None else Path(out))


def apply_rows(run: Path, file: Path) -> int:
    """Add the rows of a file to RUN/curation.jsonl where it lacks them; return how many were new."""
    from selfcluster.runs.curation import merge_rows, parse_rows
    from selfcluster.runs.tables import clusters_of

    start = clusters_of(run).by_id()
    return len(merge_rows(run, parse_rows(file.read_bytes(), str(file)), start, str(file)))


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN|DATA", help="run folder, or images")
    parser.add_argument("--data", help="images, if they have moved")
    parser.add_argument("--out", help="HTML file; default RUN/report.html")
    parser.add_argument("--apply", metavar="FILE", help="first add the curation rows of this file to the run's")
    add_model_flag(parser)
    parser.set_defaults(run_command=run_command)


def run_command(run: str, data: str | None, **settings: Any) -> tuple[Any, str]:
    path = report(run, data, **settings)
    return {"out": str(path)}, f"{path}: open it in a browser"
