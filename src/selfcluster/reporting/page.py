"""The report: one HTML file that says what was found in a run, and opens offline by double click.

No network, no other file: pictures are `data:` URIs, and a Content-Security-Policy lets nothing else in and runs no
script but ours. Names of files, classes and settings are written by strangers: the template escapes them, `visible`
shows what would be invisible, and what goes to the script goes as JSON that cannot close its element.
N images, n on the map.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from selfcluster.clustering.scores import rankme
from selfcluster.data.sources import Source
from selfcluster.data.threads import DaemonThreads, result_of
from selfcluster.evaluation.protocol import read_results
from selfcluster.files import make_writable, write_atomically
from selfcluster.reporting.album import Album, build_album, rows_of
from selfcluster.reporting.assignments import which_clusters
from selfcluster.reporting.attention import is_transformer
from selfcluster.reporting.colors import cluster_colors
from selfcluster.reporting.columns import Columns, exif_columns, table_columns
from selfcluster.reporting.curves import loss_curve, other_curves
from selfcluster.reporting.evaluations import shown_results
from selfcluster.reporting.gallery import Gallery, build_gallery
from selfcluster.reporting.map import LANDMARKS, sample_rows
from selfcluster.reporting.metadata import MarkedColumn, marked_columns
from selfcluster.reporting.reading import read_images
from selfcluster.reporting.suspects import KINDS, find_suspects
from selfcluster.reporting.thumbnails import card_pictures, positions_of
from selfcluster.reporting.verdict import Verdict, judge
from selfcluster.reporting.workbench import build_workbench, place_images
from selfcluster.runs.contents import Contents, is_untrained, method_of, read_contents

_CARDS = 60
_PARTS = ("album", "curation", "subgroups", "work", "map", "suspects")  # of the script, in this order
_MOST_ROWS = 2_000  # clusters without pictures
_MOST_BAD = 500
_ABSOLUTE = re.compile(r"(?<![\w.…/:])(/)((?:[^\s/'\"]+/)+[^\s/'\"]+)")
_HOME = re.compile(r"(?<![\w.])/(?:home/[^\s/'\"]+|Users/[^\s/'\"]+|root)/")  # a shell knows it as ~/
_LONGEST = 300  # characters of a name or a value; file systems allow 4,096
_CARD_PIXELS = 104
_RANKED = 2_000  # embeddings that RankMe is computed from
_INVISIBLE_BUT_MEANT = "\u200d"  # joins emoji


Progress = Callable[[str], None] | None


def write_report(
    run: Path,
    source: Source | None,
    *,
    out: Path | None = None,
    landmarks: int = LANDMARKS,
    title: str | None = None,
    metadata: Path | None = None,
    progress: Progress = None,
) -> Path:
    """Write the page of a run.

    Args:
        run: the run folder. A file that is missing is named on the page, with the command that makes it.
        source: the images: `ids`, `read(i)` and `labels` (None: none appear on the page); None: no pictures.
        out: where to write; default `run/report.html`.
        landmarks: number of images that t-SNE places on the map; each other image is placed beside its nearest
            neighbors; 0: no map. The page holds a small picture of every image; the file stays under 25 MB for 20,000
            of them.
        title: the page's heading; default: the run folder's name.
        metadata: a CSV with a column `id` or `path` and others. Clusters can be sorted by how far they agree with a
            column that has some images of the same value; of several tags `a;b` the rarest counts. None: the columns
            are camera, day and place of the images' EXIF.
        progress: receives lines of text while pictures are read.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: `run` is not a folder.
        ValueError: `landmarks` is negative, the page's folder cannot be written to, or `metadata` cannot be used.

    >>> write_report(Path("runs/swav-photos"), open_source("photos"))  # doctest: +SKIP
    PosixPath('runs/swav-photos/report.html')
    """
    path = Path(run) / "report.html" if out is None else Path(out)
    if landmarks < 0:
        raise ValueError(f"landmarks={landmarks}: give 0 or more")
    if not Path(run).is_dir():
        read_contents(Path(run))  # raises before a folder is made
    make_writable(path.parent)
    # a lone surrogate can reach us in a command line; it is shown as its number
    text = render_report(run, source, landmarks=landmarks, title=title, metadata=metadata, page=path, progress=progress)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))
    return path


def render_report(
    run: Path,
    source: Source | None,
    *,
    landmarks: int = LANDMARKS,
    title: str | None = None,
    metadata: Path | None = None,
    token: str = "",
    page: Path | None = None,
    progress: Progress = None,
) -> str:
    """Return the page of a run as HTML; see `write_report`.

    Args:
        run, source, landmarks, title, metadata, progress: as there.
        token: for a page that is served: what it sends along when it reads and writes the run's curation. Such a page
            may fetch pictures and rows from where it came from, and nothing from elsewhere.
        page: the file that is written, from which the page reaches the images; None: it does not.
    """
    run = Path(run)
    contents = read_contents(run)
    labels = getattr(source, "labels", None)
    album = build_album(contents)
    columns = None if metadata is None else table_columns(contents, metadata)  # its errors come before the work
    pool = DaemonThreads(1, "selfcluster-map")  # t-SNE uses one core; reading and drawing pictures use the others
    try:
        placing = pool.submit(place_images, album, landmarks, progress)
        reading = read_images(album, source, progress, with_exif=columns is None)
        places = result_of(placing)
    finally:  # t-SNE cannot be stopped: Ctrl-C and errors do not wait for it
        pool.shutdown(wait=False)
    if columns is None:
        columns = exif_columns(contents, album, reading)
    gallery = _gallery(contents, source, labels, album, columns, progress)
    verdict = judge(contents, *_rank(contents))
    colors = _colors(gallery)
    results = read_results(run)
    marked = marked_columns(results, contents.clusters)
    about = contents.config.get("about")
    about = about if isinstance(about, dict) else {}
    work, suspects = None, None
    if len(album):
        suspects = find_suspects(album, reading.examined)
        work = build_workbench(contents, album, places, reading.sheets, source, page, progress, colors=colors)
        work.data["suspects"] = {name: getattr(suspects, name) for name in KINDS}
    script = package_file("page.js")
    if work is not None:  # in a block, so that its names are its own
        script += "\n{\n" + "\n".join(package_file(f"{name}.js") for name in _PARTS) + "}\n"
    template = _environment().from_string(package_file("template.html.j2"))
    return template.render(
        title=title or run.resolve().name,
        policy=_policy(script, served=bool(token), has_files=work is not None and work.data["base"] is not None),
        token=token,
        has_attention=bool(token) and is_transformer(run),
        style=Markup(package_file("style.css")),
        script=Markup(script),
        work=work,
        suspects=suspects,
        album=None if work is None else _json_for_script(work.data),
        contents=contents,
        method=method_of(contents.config),
        untrained=is_untrained(contents.config),
        verdict=verdict,
        facts=_facts(contents, gallery, verdict),
        gallery=gallery,
        exif=metadata is None and bool(columns),
        most_rows=_MOST_ROWS,
        colors=colors,
        pictures=_pictures(contents, source, gallery, marked),
        has_source=source is not None,
        on_map=work.placed if work else 0,
        landmarks=landmarks,
        which=which_clusters(contents),
        loss=loss_curve(contents),
        curves=other_curves(contents),
        bad=contents.quarantine[:_MOST_BAD],
        bad_reasons=Counter(str(row.get("reason", "unknown")) for row in contents.quarantine).most_common(20),
        settings=_settings(contents.config),
        about=about,
        about_rows=list(_flat(about)),
        evaluations=shown_results(results),
        marked=marked,
        place=run if not run.is_absolute() else Path(run.name),
        private=any("…/" in shareable(str(text)) for text in _commands(contents, about)),
    )


def _commands(contents: Contents, about: Mapping[str, object]) -> tuple[object, ...]:
    """What the lines under “Do it again” are made of: a run without training has its own command, if it is known."""
    command = about.get("command", "")
    return (command,) if command and is_untrained(contents.config) else (command, contents.data)


def shareable(text: str) -> str:
    """Text in which an absolute path keeps its last two parts only: a page is shared, home folders are private.

    >>> shareable("selfcluster train swav /home/ann/photos/2024")
    'selfcluster train swav …/photos/2024'
    """
    return _ABSOLUTE.sub(lambda found: "…/" + "/".join(found.group(2).split("/")[-2:]), text)


def visible(value: object, longest: int = _LONGEST, *, private: bool = False) -> str:
    """Text with every character to be seen: newlines, controls and direction marks as escapes, long names shortened.

    >>> visible("a" + chr(10) + chr(0x202E) + "gpj.b")
    'a\\\\n\\\\u202egpj.b'
    """
    text = str(value) if private else shareable(str(value))
    if len(text) > longest:
        text = f"{text[: longest // 3]} … {text[-longest * 2 // 3 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _INVISIBLE_BUT_MEANT else repr(c)[1:-1] for c in text)


def _gallery(
    contents: Contents,
    source: Source | None,
    labels: np.ndarray | None,
    album: Album,
    columns: Columns,
    progress: Progress,
) -> Gallery | None:
    clusters = contents.clusters
    if clusters is None or not len(clusters.cluster):
        return None
    copies, stability = None, None
    if contents.vectors is not None:
        at = rows_of(clusters.ids, contents.vectors.ids)  # (N,) rows of the embeddings
        numbers = contents.vectors.copies
        copies = np.where(at >= 0, numbers[at], -1 - np.arange(len(at))) if len(numbers) else None
        stability = _stability(album, progress)
    row_labels = None
    if source is not None and labels is not None:
        names = clusters.ids.to_pylist()
        where = positions_of(source, names)
        row_labels = np.array([labels[where[name]] if name in where else -1 for name in names], np.int64)
    return build_gallery(
        clusters.cluster,
        clusters.distance,
        copies=copies,
        labels=row_labels,
        class_names=getattr(source, "class_names", None),
        stability=stability,
        metadata=columns,
        cards=_CARDS,
    )


def _stability(album: Album, progress: Progress) -> dict[int, float]:
    """The clusters' stability; empty where it would say nothing."""
    from selfcluster.reporting.stability import cluster_stability

    begun = time.monotonic()
    found = cluster_stability(album.reduced, album.cluster) if album.reduced.shape[1] else {}
    if found and progress is not None:
        progress(f"  measured the stability of {len(found):,} clusters in {time.monotonic() - begun:.1f} s")
    return found


def _rank(contents: Contents) -> tuple[float | None, int | None]:
    """RankMe of a sample of the embeddings, and how many those are; None without embeddings."""
    if contents.vectors is None:
        return None, None
    cluster = np.full(len(contents.vectors), -1)
    if contents.clusters is not None and len(contents.clusters.cluster):
        at = rows_of(contents.vectors.ids, contents.clusters.ids)
        cluster = np.where(at >= 0, contents.clusters.cluster[at], -1)
    vectors = contents.vectors.take(sample_rows(len(cluster), _RANKED, cluster))
    vectors = vectors[np.isfinite(vectors).all(axis=1)]
    return (rankme(vectors), len(vectors)) if len(vectors) else (None, None)


def _pictures(
    contents: Contents, source: Source | None, gallery: Gallery | None, marked: list[MarkedColumn]
) -> dict[int, dict[str, object]]:
    """Pictures of the cards and of marked clusters by row of the table of clusters; they need no script."""
    if source is None or gallery is None or contents.clusters is None:
        return {}
    members = [m for card in gallery.cards for m in card.members] + [m for column in marked for m in column.images]
    rows = sorted({m.row for m in members})
    ids = contents.clusters.ids.take(np.array(rows, np.int64)).to_pylist()
    return card_pictures(source, dict(zip(rows, ids, strict=True)), _CARD_PIXELS)


def _colors(gallery: Gallery | None) -> dict[int, str]:
    """The biggest clusters get the colors that are farthest apart."""
    numbers = [c.number for c in gallery.clusters] if gallery else []
    return dict(zip(numbers, cluster_colors(len(numbers)), strict=True))


def _facts(contents: Contents, gallery: Gallery | None, verdict: Verdict) -> dict[str, object]:
    """The key numbers; None where unknown."""
    seconds = contents.metrics.get("seconds", (np.empty(0), np.empty(0)))[1]
    table = contents.clusters.cluster if contents.clusters is not None else contents.vectors
    sizes = [c.size for c in gallery.clusters] if gallery else []
    chance, loss = contents.last("chance_loss"), contents.last("loss")
    return {
        "images": len(table) if table is not None else None,
        "clusters": len(sizes) or None,
        "biggest": sizes[0] if sizes else None,
        "smallest": sizes[-1] if sizes else None,
        "median": float(np.median(sizes)) if sizes else None,
        "minutes": float(np.nansum(seconds)) / 60 if len(seconds) else None,
        "loss": loss,
        "below_chance": 1 - loss / chance if loss is not None and chance else None,
        "epochs": _epochs(contents),
        "bad": len(contents.quarantine),
    }


def _epochs(contents: Contents) -> float | None:
    last = contents.last("epoch")
    return None if last is None else last + 1


def _settings(config: Mapping[str, object]) -> list[tuple[str, list[tuple[str, object]]]]:
    """Groups of settings: what stands at the top level first, then every section by its name."""
    top = [(key, value) for key, value in config.items() if not isinstance(value, dict)]
    sections = [(str(key), list(_flat(value))) for key, value in config.items() if isinstance(value, dict)]
    return [(name, rows) for name, rows in [("run", top), *sections] if rows and name != "about"]


def _flat(section: dict[object, object], before: str = "") -> Iterable[tuple[str, object]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _json_for_script(value: object) -> Markup:
    """JSON that is safe inside <script>: it holds no `<`, `>`, `&` and nothing outside ASCII."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _policy(script: str, served: bool, has_files: bool) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    own = " blob:" + (" 'self'" if served else " file:" if has_files else "")
    # styles may stand inline because the curves carry style attributes; they could load nothing but data: pictures
    return (
        f"default-src 'none'; img-src data:{own}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        + ("connect-src 'self'; " if served else "")
        + "base-uri 'none'; form-action 'none'"
    )


@functools.cache
def package_file(name: str) -> str:
    """Return a file of this folder as text."""
    return resources.files("selfcluster.reporting").joinpath(name).read_text("utf-8")


def _with_flags(text: str) -> Markup:
    """The text, escaped, with what stands in backticks or begins with -- as code: a flag never breaks at a hyphen."""
    safe = str(escape(visible(text, 1 << 12)))
    return Markup(re.sub(r"`([^`]+)`|(?<![\w-])(--[a-z][\w-]*)", lambda m: f"<code>{m[1] or m[2]}</code>", safe))


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    environment.filters["short"] = lambda value: f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    environment.filters["minutes"] = lambda value: f"{value:,.0f} min" if value >= 1.5 else f"{value * 60:,.0f} s"
    environment.filters["flags"] = _with_flags
    whole = environment.filters["whole"] = lambda value: escape(visible(value, 1 << 20))  # to be copied
    environment.filters["copied"] = lambda value: escape(visible(_HOME.sub("~/", value), 1 << 20, private=True))
    environment.filters["sheet"] = Markup  # base64 of our own
    environment.filters["python"] = lambda value: whole(repr(value))
    environment.filters["shell"] = lambda value: whole(shlex.quote(str(value)))
    return environment
