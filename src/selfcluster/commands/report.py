"""`selfcluster report`: write the page that shows the clusters."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcluster.annotations import Data
from selfcluster.commands.flags import add_model_flag, check_run_or_images, names_images
from selfcluster.data.sources import DataError, Source
from selfcluster.randomness import keeps_random_state
from selfcluster.settings.files import run_source

if TYPE_CHECKING:
    from selfcluster.serve.curation import CurationServer

HELP = "write a page that shows the clusters"


@keeps_random_state
def report(
    run: str | os.PathLike[str],
    data: Data | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    apply: str | os.PathLike[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the page that shows the clusters: one HTML file that opens offline. Return its path.

    Args:
        run: a run folder, or images. Images are embedded and clustered first, see `cluster`.
        data: the images, for the thumbnails; default where the run found them.
        out: default RUN/report.html.
        model: for images, the network; see `cluster`.
        apply: a file of curation rows; those that RUN/curation.jsonl lacks are added to it first.
        metadata: a CSV with a column `id` or `path` and others: the page sorts clusters by agreement with a column.
            Default: camera, day and place of the images' EXIF.

    Raises:
        CurationError: a row of the file does not fit the run's clusters; nothing was added.
        ValueError: the metadata cannot be read, name no image, or have no column that groups images.
    """
    from selfcluster.reporting.page import write_report

    where, source = _prepare(run, data, model, apply)
    known = None if metadata is None else Path(metadata)
    return write_report(where, source, out=None if out is None else Path(out), metadata=known, progress=_say)


def serve(
    run: str | os.PathLike[str],
    data: Data | None = None,
    *,
    port: int = 0,
    model: str | os.PathLike[str] | None = None,
    apply: str | os.PathLike[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
) -> CurationServer:
    """Return a server of the page for this machine's browser.

    Each change made in the browser is written to RUN/curation.jsonl before the server answers. Its `address` opens the
    page, token included; `serve_forever()` answers until another thread calls `shutdown()`.

    Args:
        run, data, model, apply, metadata: as for `report`.
        port: of 127.0.0.1; 0: any free one.

    Raises:
        RunError: the run has no clusters.
        ValueError: the port is taken.
    """
    from selfcluster.reporting.page import render_report
    from selfcluster.serve.curation import CurationServer

    where, source = _prepare(run, data, model, apply)
    known = None if metadata is None else Path(metadata)

    def render(token: str) -> str:
        return render_report(where, source, token=token, metadata=known, progress=_say)

    return CurationServer(where, source, render, port)


def _say(line: str) -> None:
    print(f"selfcluster: {line.strip()}", file=sys.stderr)


def _prepare(
    run: str | os.PathLike[str],
    data: Data | None,
    model: str | os.PathLike[str] | None,
    apply: str | os.PathLike[str] | None,
) -> tuple[Path, Source | None]:
    """The run folder, made first where images are given, with the rows of a file applied; and its images."""
    check_run_or_images(run)
    if names_images(run):
        from selfcluster.commands.cluster import cluster_images

        run = cluster_images(run, model)[0]
    elif model is not None:
        raise ValueError(f"--model has no effect: {run} is embedded already, by its own network")
    where = Path(run)
    if apply is not None:
        apply_rows(where, Path(apply))
    try:
        return where, run_source(where, data)
    except DataError as error:
        if data is not None:
            raise
        print(f"selfcluster: the page has no pictures: {error}", file=sys.stderr)
        return where, None


def apply_rows(run: Path, file: Path) -> int:
    """Add the rows of a file to RUN/curation.jsonl where it lacks them; return how many were new."""
    from selfcluster.runs.curation import merge_rows, parse_rows
    from selfcluster.runs.tables import clusters_of

    start = clusters_of(run).by_id()
    return len(merge_rows(run, parse_rows(file.read_bytes(), str(file)), start, str(file)))


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument(
        "run",
        metavar="RUN|DATA",
        help="run folder, or images: these are embedded and clustered first, as by `selfcluster cluster DATA`, and the "
        "clusters in runs/cluster-DATANAME are replaced",
    )
    parser.add_argument("--data", help="new place of the images, if they have moved")
    parser.add_argument("--out", help="HTML file; default RUN/report.html")
    parser.add_argument(
        "--apply", metavar="FILE", help="apply changes that you made on the page and downloaded as curation.jsonl"
    )
    parser.add_argument(
        "--metadata",
        metavar="FILE.csv",
        help="table with a column id or path and columns of metadata; the page can then sort the clusters by each of "
        "them; the same file as `evaluate metadata --table`; default: EXIF",
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve the page to a browser on this machine, and save edits made there"
    )
    parser.add_argument("--port", type=int, metavar="N", help="with --serve: port on 127.0.0.1; default: any free port")
    add_model_flag(parser)
    parser.set_defaults(run_command=run_command)


def run_command(
    run: str, data: str | None, out: str | None, serve: bool, port: int | None, **settings: Any
) -> tuple[object, str]:
    if serve and out is not None:
        raise ValueError("--out has no effect with --serve, which writes only RUN/curation.jsonl")
    if not serve and port is not None:
        raise ValueError("--port has no effect without --serve")
    if serve:
        return _serve(run, data, port or 0, settings)
    path = report(run, data, out=out, **settings)
    return {"out": str(path)}, f"{path}: open it in a browser"


def _serve(run: str, data: str | None, port: int, settings: dict[str, Any]) -> tuple[object, str]:
    with serve(run, data, port=port, **settings) as server:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it else
        print(f"selfcluster: open {server.address} in a browser of this machine; Ctrl-C stops", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    kept = len(server.rows())
    where = server.run / "curation.jsonl"
    return {"curation": str(where), "rows": kept}, f"{where}: {kept} actions"
