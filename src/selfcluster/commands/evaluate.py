"""`selfcluster evaluate`: score a network, or a run's clusters, by a protocol."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcluster.annotations import Data
from selfcluster.commands.embed import STARTER
from selfcluster.commands.flags import (
    EMBEDDING,
    SUBSET,
    add_model_flag,
    add_network_flags,
    add_protocol_settings,
    check_names_images,
    given,
    names_images,
)
from selfcluster.files import COPY_RUN, make_writable
from selfcluster.randomness import keeps_random_state
from selfcluster.setting import check_names, checked

if TYPE_CHECKING:
    from selfcluster.evaluation.protocol import Result

HELP = "score features or clusters against labels"
_RANKING = "unlabeled"  # the protocol that takes several networks


@keeps_random_state
def evaluate(
    protocol: str,
    run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    train: Any = None,
    test: Data | None = None,
    split: float = 0.2,
    labels_from: str | None = None,
    seed: int = 0,
    layer: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    model: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Result:
    """Score a network's features, or a run's clusters, by a protocol.

    Args:
        protocol: its name; `selfcluster evaluate --help` lists them.
        run: a run folder or another network, named as for `model` of `cluster`. `unlabeled` ranks several of them.
        train, test: labeled images. Without `test`, a share of `train` is held out, drawn by the seed. Without both,
            the run's own images are used.
        split: share of the images to hold out.
        labels_from: source of the labels, see `open_source`. Default: for the run's own images the source that the run
            used. Otherwise folder names; for a VOC list its annotations, for the digits their labels.
        seed: seed of the split and of all random draws of the protocol.
        layer: a module of the network; its output, averaged over positions, replaces the features.
        image_size: side of the images; default: the network's.
        model: the network, if `run` names labeled images instead; see `cluster`. Default: the starter network.
        limit, test_limit: use only this many training and test images, drawn by the seed. Without `test`, `limit`
            counts the images before the split, and `test_limit` counts the images that are held out.
        **settings: settings of the protocol (`selfcluster evaluate PROTOCOL --help`), and these of `embed`: batch_size,
            workers, device, precision, max_bad, timeout, classes, long_tail, range, max_megapixels.

    Returns:
        The result, which reads like a dict of its numbers. A run keeps it in its folder, `evaluations/`.

    Raises:
        ValueError: an unknown protocol or setting, or labels and features that the protocol cannot use.
    """
    from selfcluster.evaluation.protocols import PROTOCOLS, declarations, known

    if isinstance(run, list | tuple):
        return _rank(known(protocol), run, train=train, seed=seed, image_size=image_size, limit=limit, **settings)
    if model is not None or (train is None and names_images(run)):
        if train is not None:
            raise ValueError(f"evaluate: {run} and --train both name the labeled images; leave one of them out")
        check_names_images(run, model)
        run, train = STARTER if model is None else model, run
    name = known(protocol)
    options = declarations(name)[1]
    own = {key: value for key, value in settings.items() if key not in (*EMBEDDING, *SUBSET)}
    own = {key: value for key, value in own.items() if value is not None or key in options}
    check_names(own, options)
    chosen = {key: checked(options[key], own[key]) for key in own if own[key] is not None}

    from selfcluster.evaluation.subject import Subject

    method = PROTOCOLS[name]
    subject = Subject(
        model=str(run),
        train=train,
        test=test,
        split=split,
        labels_from=labels_from,
        labeled=method.labels != "none",
        several=method.labels != "single",
        seed=seed,
        layer=layer,
        image_size=image_size,
        limit=limit,
        test_limit=test_limit,
        embedding=given(settings, EMBEDDING),
        subset=given(settings, SUBSET),
    )
    if subject.run is not None:
        make_writable(subject.run, COPY_RUN)
    result = method().run(subject, method.Settings(**chosen))
    if subject.run is not None:
        result.write(subject.run)
    return result


def _rank(protocol: str, runs: Sequence[Any], **settings: Any) -> Result:
    """Measure each network, and return them ranked; runs keep their own results."""
    from selfcluster.evaluation.protocols.unlabeled import ranked
    from selfcluster.runs.folder import is_run
    from selfcluster.settings.files import run_config

    if protocol != _RANKING:
        raise ValueError(
            f"evaluate {protocol} takes one run, not {len(runs)}; compare several with: selfcluster compare"
        )
    if len({os.fspath(run) for run in runs}) < 2:
        raise ValueError(f"evaluate {protocol}: name at least two different runs to rank")
    if settings["train"] is None:
        for run in runs:
            if names_images(run):
                raise ValueError(f"evaluate {protocol}: {run} is not a run or network; name images with --train")
        places = {str(run_config(Path(run))["data"]) for run in runs if is_run(Path(run))}
        if len(places) > 1:
            raise ValueError(
                f"the runs have different images ({' and '.join(sorted(places))}); name one set with --train"
            )
    return ranked([evaluate(protocol, run, **settings) for run in runs])


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    from selfcluster.evaluation.protocols import declarations, known, protocol_names

    parser.add_argument("protocol", metavar="PROTOCOL", help=", ".join(protocol_names()))
    name = next((word for word in words if not word.startswith("-")), None)
    several: dict[str, Any] = {"nargs": "+"} if name is not None and known(name) == _RANKING else {}
    parser.usage = f"selfcluster evaluate PROTOCOL RUN {'RUN ... ' if several else ''}[flags]"
    what = "run folder, images, or a network as for --model; unlabeled takes several"
    parser.add_argument("run", metavar="RUN", help=what, **several)
    if name is None:
        lines = [f"  {each:<12} {declarations(each)[0]}" for each in protocol_names()]
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "\n".join(["protocols (selfcluster evaluate PROTOCOL --help lists their settings):", *lines])
    else:
        parser.description = declarations(known(name))[0]
        add_protocol_settings(parser, known(name))
    parser.add_argument("--train", help="labeled images; default: the images of the run")
    parser.add_argument("--test", help="labeled images for the score; default: a held-out share of --train")
    parser.add_argument(
        "--split",
        type=float,
        metavar="X",
        default=0.2,
        help="share of the images to hold out if --test is not given; default 0.2",
    )
    parser.add_argument(
        "--labels-from",
        metavar="SOURCE",
        help="folders, voc, column:NAME, columns:A,B, tags:FILE.csv or a CSV file; default: the run's, or folders",
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the split and of the protocol")
    parser.add_argument("--layer", help="module of the network whose output is scored; default: the features")
    parser.add_argument("--test-limit", type=int, metavar="N", help="use N test images only, drawn by the seed")
    add_model_flag(parser)
    add_network_flags(parser)
    parser.set_defaults(run_command=run_command)


def run_command(**settings: Any) -> tuple[object, str]:
    print(f"selfcluster: evaluating by {settings['protocol']}", file=sys.stderr)
    run = settings.pop("run")
    result = evaluate(run=run[0] if isinstance(run, list) and len(run) == 1 else run, **settings)
    parts = ["\n".join(f"{name:>16}  {_cell(value)}" for name, value in result.items()), _table(result.table)]
    parts.append("\n".join(result.notes))
    shown = dict(result) | ({"table": [dict(row) for row in result.table]} if result.table else {})
    return shown, "\n\n".join(part for part in parts if part)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as aligned text below the names of their columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) for line in cells if names)
