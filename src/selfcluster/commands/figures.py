"""`selfcluster figures`: a network's filters, and the classes on a plane, as pictures."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from selfcluster.annotations import Data
from selfcluster.commands.flags import EMBEDDING, SUBSET, add_network_flags, given
from selfcluster.randomness import keeps_random_state
from selfcluster.setting import Option

HELP = "draw a network's filters and a map of the classes"


@keeps_random_state
def figures(
    run: str | os.PathLike[str],
    *,
    train: Data | None = None,
    labels_from: str | None = None,
    layer: str | None = None,
    filters: int = 8,
    steps: int = 200,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    image_size: int | None = None,
    limit: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Draw a network's first filters, images that activate deeper filters, and a map of the classes.

    Args:
        run: a run folder, or another network, named as for `model` of `cluster`.
        train: images; default: the images of the run. Without images, only the first filters are drawn.
        labels_from: source of the labels, see `open_source`; default as in the run. Without labels, no map of the
            classes is drawn.
        layer: the module whose filters are shown; default: the last convolution. If the network has at most one
            convolution, the default is its features.
        filters: number of filters to show, drawn by the seed.
        steps: steps of gradient ascent.
        out: folder; default RUN/figures, or figures.
        seed: seed of the choice of filters, of the noise at the start of the ascent, and of t-SNE.
        image_size: side of the images; default: the network's.
        limit: use only this many images, drawn by the seed.
        **settings: of `embed`: batch_size, workers, device, precision, max_bad, timeout, classes, long_tail, range,
            max_megapixels.

    Returns:
        out, files (first-filters.png, filters.png, classes.png), layer, filters (their numbers) and strongest (the
        nine images of each, by id).

    Raises:
        ValueError: no such layer, no convolution, or numbers out of range.
    """
    from selfcluster.setting import checked

    for name, value in (("filters", filters), ("steps", steps)):
        checked(Option(name, "int", None, "", least=1), value)
    import torch

    from selfcluster.evaluation.subject import Subject
    from selfcluster.files import make_writable
    from selfcluster.models.filters import ascend, convolutions, first_filters, responses
    from selfcluster.reporting import filters as drawing
    from selfcluster.reporting.thumbnails import read_squares, write_picture
    from selfcluster.runs.folder import is_run
    from selfcluster.training.load import load_network

    has_images = train is not None or is_run(Path(run))
    folder = Path(out) if out is not None else Path(run) / "figures" if is_run(Path(run)) else Path("figures")
    if not has_images:
        module: Any = load_network(str(run), image_size).module
        make_writable(folder)
        write_picture(drawing.filter_grid(first_filters(module).numpy()), folder / "first-filters.png")
        return {"out": str(folder), "files": ["first-filters.png"]}
    subject = Subject(
        model=str(run),
        train=train,
        labels_from=labels_from,
        labeled=False,
        seed=seed,
        image_size=image_size,
        limit=limit,
        embedding=given(settings, EMBEDDING),
        subset=given(settings, SUBSET),
    )
    source = subject.source()
    network = subject.network(source)
    make_writable(folder)
    module = network.module.cpu().eval().requires_grad_(False)
    known = convolutions(module)
    layer = layer or (known[-1] if len(known) > 1 else None)
    with responses(module, layer) as respond:
        shape = (network.preprocessing.channels, network.image_size, network.image_size)
        count = respond(torch.zeros(1, *shape)).shape[1]
        chosen = sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:filters].tolist())
        made = ascend(respond, chosen, shape, steps=steps, seed=seed)
    images = subject.features(layer=layer)
    order = (-images.vectors[:, chosen]).argsort(axis=0, kind="stable")[: drawing.NINE].T  # (n, 9)
    pictures = [read_squares(source, images.rows[row].tolist(), 96) for row in order]
    write_picture(drawing.filter_grid(first_filters(module).numpy()), folder / "first-filters.png")
    write_picture(drawing.ascent_sheet(drawing.stretched(made.numpy()), pictures), folder / "filters.png")
    files = ["first-filters.png", "filters.png"]
    if images.labels is not None and images.labels.ndim == 1 and _draw_classes(subject, folder / "classes.png"):
        files.append("classes.png")
    strongest = [[images.ids[i] for i in row] for row in order]
    return {"out": str(folder), "files": files, "layer": layer, "filters": chosen, "strongest": strongest}


def _draw_classes(subject: Any, path: Path) -> bool:
    """Draw the classes' means of the network's features; False where there are too few classes."""
    from selfcluster.evaluation.class_means import FEWEST, class_means, place_classes
    from selfcluster.reporting.filters import write_class_map

    images = subject.all_features
    classes, means = class_means(images.vectors, images.labels)
    if len(classes) < FEWEST:
        return False
    names = [images.class_names[each] if images.class_names else str(each) for each in classes.tolist()]
    write_class_map(place_classes(means, subject.seed), names, path)
    return True


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, starter, timm:NAME, FILE, NETWORK=FILE or an export")
    parser.add_argument("--train", help="images; default: the images of the run")
    parser.add_argument(
        "--labels-from", metavar="SOURCE", help="labels for the map of the classes: folders, column:NAME or a CSV file"
    )
    parser.add_argument("--layer", help="module whose filters are shown; default the last convolution")
    parser.add_argument(
        "--filters", type=int, default=8, metavar="N", help="filters to show, drawn by the seed; default 8"
    )
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="steps of gradient ascent; default 200")
    parser.add_argument("--out", help="folder for the pictures; default RUN/figures")
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of the choice of filters, the noise and t-SNE"
    )
    add_network_flags(parser)
    parser.set_defaults(run_command=run_command)


def run_command(**settings: Any) -> tuple[object, str]:
    result = figures(**settings)
    return result, "\n".join(f"{Path(result['out'], name)}" for name in result["files"])
