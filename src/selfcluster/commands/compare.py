"""`selfcluster compare`: results of several runs in one table, beside the untrained network and the start."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcluster.annotations import Data
from selfcluster.commands.flags import add_network_flags, add_protocol_settings
from selfcluster.files import make_writable
from selfcluster.randomness import keeps_random_state

if TYPE_CHECKING:
    from selfcluster.evaluation.comparison import Comparison

HELP = "show results of several runs in one table"


@keeps_random_state
def compare(
    *runs: str | os.PathLike[str],
    protocol: str | None = None,
    train: Data | None = None,
    out: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Comparison:
    """Return the stored results of several runs in one table. With `train`, results that a run lacks are made first.

    Runs that differ only in their seed share a row. Results with different settings or images are in different columns.

    Args:
        *runs: run folders.
        protocol: show this protocol only; with `train`, evaluate it where a run, its untrained network or its start
            has no result of it yet.
        train: labeled images to measure on.
        out: an HTML file for the table.
        **settings: the settings of `evaluate`: test, split, labels_from, seed, limit, the protocol's own.

    Raises:
        ValueError: no run, nothing to compare, or settings of a protocol without `protocol`.
    """
    from selfcluster.evaluation.comparison import compare_runs
    from selfcluster.runs.folder import check_run

    folders = [Path(run) for run in runs]
    if not folders:
        raise ValueError("name the run folders to compare: selfcluster compare RUN RUN")
    for folder in folders:
        check_run(folder)
    given = {name: value for name, value in settings.items() if value is not None}
    if train is not None and protocol is None:
        raise ValueError("--train needs a protocol, such as --protocol knn")
    if train is None and given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} has no effect without --protocol and --train")
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: the file name must end in .html")
    if out is not None:
        make_writable(Path(out).parent)
    if protocol is not None:
        from selfcluster.evaluation.protocols import known

        protocol = known(protocol)
        for folder in folders if train is not None else ():
            _measure(folder, protocol, train, given)
    result = compare_runs(folders, protocol)
    if out is not None:
        from selfcluster.reporting.comparison import write_comparison

        write_comparison(result, Path(out))
    return result


def _measure(run: Path, protocol: str, train: Any, settings: dict[str, Any]) -> None:
    """Evaluate the run, its untrained network and its start; keep the three results in its folder."""
    from selfcluster.commands.evaluate import evaluate
    from selfcluster.evaluation.comparison import with_whole_paths
    from selfcluster.evaluation.protocol import read_results
    from selfcluster.models.pretrained import UNTRAINED
    from selfcluster.settings.files import run_config

    config = run_config(run)
    models = {"run": str(run)}
    if config.get("backbone"):
        models["untrained"] = f"{UNTRAINED}{run}"  # with the run's patches, channels, stem and Sobel filters
    if config.get("init"):
        models["start"] = _start_of(config)
        file = Path(models["start"].partition("=")[2] or models["start"])
        if ("/" in models["start"] or file.suffix) and not file.exists():
            print(
                f"selfcluster: {file}, the start network of {run}, does not exist. Its scores are left out",
                file=sys.stderr,
            )
            del models["start"]
    size = {"image_size": config["image_size"]} if config.get("image_size") else {}
    kept = [
        (
            r["protocol"],
            s.get("role", "run"),
            with_whole_paths({**(r.get("settings") or {}), **s, **_own_size(s, size)}),
        )
        for r in read_results(run)
        if isinstance(s := r.get("subject"), dict)
        # an earlier version measured the plain network of that name, which may differ from the run's
        and (s.get("role") != "untrained" or str(s.get("model")).startswith(UNTRAINED))
    ]
    every = {"seed": 0, **size, **settings, "train": str(train)}
    asked = {name: str(every[name]) if name == "test" else every[name] for name in every if name not in _READING}
    asked = with_whole_paths(asked)
    for role, model in models.items():
        if any(p == protocol and r == role and asked.items() <= of.items() for p, r, of in kept):
            continue
        print(f"selfcluster: {protocol} of {model}", file=sys.stderr)
        result = evaluate(protocol, model, train=train, **{**size, **settings})
        subject = {**result.subject, "role": role}
        dataclasses.replace(result, subject=result.subject if role == "run" else subject).write(run)


def _own_size(subject: Mapping[str, Any], size: Mapping[str, Any]) -> Mapping[str, Any]:
    """The run's own image size for a result that was asked for without one."""
    return size if subject.get("image_size") is None else {}


def _start_of(config: Mapping[str, Any]) -> str:
    """The word of the network that a run began with; a bare file of weights has the run's architecture in front."""
    word = str(config["init"])
    bare = Path(word).is_file() and not (Path(word).parent / "backbone.json").is_file()
    return f"{config['backbone']}={word}" if bare else word


_READING = ("batch_size", "workers", "device", "precision", "max_bad", "timeout")


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.usage = "selfcluster compare RUN... [flags]"
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders; runs that differ only in the seed share a row"
    )
    parser.add_argument("--out", help="write the table to this HTML file too")
    parser.add_argument(
        "--protocol",
        metavar="PROTOCOL",
        help="show this protocol only; with --train, evaluate runs that have no such result; "
        "compare --protocol PROTOCOL --help lists its settings",
    )
    parser.add_argument(
        "--train", help="labeled images, on which each run, its start network and its untrained network are evaluated"
    )
    parser.add_argument("--test", help="labeled images for the score; default: a held-out share of --train")
    parser.add_argument(
        "--split", type=float, metavar="X", help="share of --train to hold out if --test is not given; default 0.2"
    )
    parser.add_argument("--layer", help="module of the networks whose output is scored; default: the features")
    parser.add_argument(
        "--labels-from",
        metavar="SOURCE",
        help="folders, voc, column:NAME, columns:A,B, tags:FILE.csv or a CSV file; default: the run's, or folders",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the split and of the protocol")
    parser.add_argument("--test-limit", type=int, metavar="N", help="use N test images only, drawn by the seed")
    add_network_flags(parser)
    protocol = _named_protocol(words)
    if protocol is not None:
        from selfcluster.evaluation.protocols import known

        add_protocol_settings(parser, known(protocol))
    parser.set_defaults(run_command=run_command, batch_size=None)


def _named_protocol(words: list[str]) -> str | None:
    """What stands after --protocol."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--protocol", nargs="?")
    return parser.parse_known_args(words)[0].protocol


def run_command(runs: list[str], **settings: Any) -> tuple[object, str]:
    from selfcluster.reporting.comparison import comparison_text

    result = compare(*runs, **settings)
    out = settings.get("out")
    text = comparison_text(result) + (f"\n{out}: open it in a browser" if out else "")
    return dataclasses.asdict(result), text
