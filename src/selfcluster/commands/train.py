"""`selfcluster train`: learn features and clusters from images."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from selfcluster.annotations import Data
from selfcluster.commands.flags import add_option
from selfcluster.commands.results import Trained
from selfcluster.data.listing import left_out
from selfcluster.data.sources import DataError, Source, check_enough
from selfcluster.files import message_of
from selfcluster.methods import NAMES, canonical
from selfcluster.randomness import keeps_random_state
from selfcluster.runs.folder import CHECKPOINTS, RunFolder, has_begun, read_status
from selfcluster.setting import in_words
from selfcluster.settings.files import open_for, read_settings
from selfcluster.settings.options import SHARED, options_for
from selfcluster.settings.recipes import RECIPES
from selfcluster.settings.requirements import check_needs
from selfcluster.settings.resolve import SCALED, images_per_rate, paper_values, validated
from selfcluster.settings.schema import read_schema

HELP = "learn features and clusters from images"


@keeps_random_state
def train(
    method: str,
    data: Data,
    *,
    out: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, object] | None = None,
    quiet: bool = False,
    accept_data_change: bool = False,
    **settings: Any,
) -> Trained:
    """Train `method` on the images in `data` and write features and clusters.

    Args:
        method: a name of `METHODS`, hyphens or underscores.
        data: a folder, a .txt, .csv or .parquet list of files, a tar or an array of images, or
            "builtin:digits"; see `open_source`.
        out: the run folder; default runs/METHOD-DATANAME. An unfinished run in it resumes. If the run in it is
            finished, its summary is returned.
        recipe: a name that `selfcluster recipes` lists; None: auto, or the recipe of the run that resumes.
        config: a `config.yaml` or a mapping of settings.
        quiet: print nothing but warnings.
        accept_data_change: resume an unfinished run although its data has changed, and repeat the current epoch.
        **settings: any flag of `selfcluster train METHOD --help`, with underscores.

    Returns:
        The run's summary: run, method, images, steps, minutes, loss, chance_loss, clusters, bad_images, ...

    Raises:
        RunError: `out` holds another run; the message names what differs.
        ValueError: an unknown setting or a value out of range.

    >>> train("swav", "photos/", epochs=5)["clusters"]  # doctest: +SKIP
    """
    name = canonical(method)
    from_file = read_settings(config)
    said = validated(name, settings, from_file)
    _check_words(said, recipe)
    source, path = open_for(name, data, said, out)
    if len(source) < 2:
        raise DataError(f"{len(source)} image in {source.where}: training needs at least 2{left_out(source.passed)}")
    if isinstance(said.get("batch_size"), int):
        check_enough(len(source), said["batch_size"])
    if not has_begun(path):  # a run that goes on has had all it needs
        check_needs(name, said, source)
        if said.get("probe_labels") is not None:
            from selfcluster.training.online_probe import read_probe_labels

            read_probe_labels(source, data, said["probe_labels"])  # refused before a folder is made

    from selfcluster import distributed
    from selfcluster.data.loader import Loader
    from selfcluster.data.threads import TIMEOUT
    from selfcluster.evaluation.judgement import make_judge
    from selfcluster.runs.console import Console
    from selfcluster.training.build import assemble
    from selfcluster.training.duration import plan_duration
    from selfcluster.training.finish import finish
    from selfcluster.training.loop import Preempted, fit
    from selfcluster.training.online_probe import OnlineProbe, read_probe_labels
    from selfcluster.training.precision import pick_device
    from selfcluster.training.space import check_space
    from selfcluster.training.start import open_run
    from selfcluster.training.targets import make_targets
    from selfcluster.training.tracking import tensorboard_rows

    distributed.start(pick_device(said.get("device") or "auto"), said.get("timeout") or TIMEOUT)
    first = distributed.rank() == 0
    console = Console(quiet or not first)
    folder: RunFolder | None = None
    agreed: Any = None
    if first:
        try:
            folder, resolved = open_run(path, name, source, recipe, from_file, settings, console, accept_data_change)
            agreed = resolved, read_status(path)
        except (ValueError, OSError) as error:
            agreed = error
    resolved, status = distributed.agree(agreed)  # every rank stops with the first one's reason
    if folder is not None:
        write_status = folder.status
        distributed.on_end(lambda message: write_status("failed", message=message))
    started = time.monotonic()
    try:
        _check_same_data(source, resolved)
        if status.get("state") == "finished":
            console.say(f"{path} is finished; choose another --out to train again")
            return Trained(status["summary"], run=str(path), embeddings=str(path / "embeddings.parquet"))
        if folder is not None:
            folder.status("running")
        again = partial(train, name, data, recipe=recipe, quiet=quiet)
        make_targets(resolved, source, path, console, again)
        parts = assemble(resolved, len(source), path)
        for note in parts.notes:
            console.say(note)
        loader = Loader(
            source,
            **parts.images.loader_arguments(),
            device=parts.loop.device,
            quarantine=path / "quarantine.jsonl",
            timeout=resolved.get("timeout", 600.0),
            rank=distributed.rank(),
            world=distributed.world_size(),
            **{key: resolved[key] for key in ("batch_size", "seed", "workers", "max_bad")},
        )
        if not any((path / CHECKPOINTS).glob("step-*")):
            if folder is not None:
                check_space(path, parts.method, parts.loop.training.optimizer, len(source))
            loop = plan_duration(parts, loader, resolved, console)
            if loop is not parts.loop:
                parts = replace(parts, loop=loop)
                if folder is not None:
                    folder.write_config(resolved)
        judge = make_judge(resolved, source, parts, path, console)
        if judge is not None:
            judge.before()
        every, watched = resolved.get("judge_every", 0), resolved.get("probe_labels")
        labels = None if watched is None else read_probe_labels(source, data, watched)
        probe = OnlineProbe(parts.method, labels, parts.loop.device, resolved["seed"])

        def on_epoch(epochs: int) -> dict[str, float]:
            return judge.epoch() if judge is not None and every and epochs % every == 0 else {}

        on_row = tensorboard_rows(path if first and resolved["tensorboard"] else None)
        where = probe, folder, path / CHECKPOINTS
        shown = on_row, source.ids.__getitem__, on_epoch
        state = fit(parts.method, loader, parts.views, parts.loop, console, *where, *shown)
        judgement = judge.after(resolved.get("keep")) if judge is not None else {}
        summary = {"run": str(path), "method": name, "images": len(source), "steps": state.step}
        own_clusters = judgement.get("kept", "end") == "end"
        summary |= finish(state, loader, parts.loop, source, parts.images, console, own_clusters)
        summary |= {"judgement": judgement} if judgement else {}
        summary |= {name: count for name, count in loader.reading_report().items() if count and name not in summary}
        if source.passed:
            summary["passed_over"] = dict(source.passed)
        summary["minutes"] = round((time.monotonic() - started) / 60, 2)
        if folder is not None:
            folder.status("finished", summary=summary)
        return Trained(summary)
    except BaseException as error:
        first_error = distributed.cause(error)
        if folder is not None:
            kind = getattr(first_error, "kind", type(first_error).__name__)
            preempted = kind in (Preempted.__name__, KeyboardInterrupt.__name__)
            folder.status("preempted" if preempted else "failed", message=message_of(first_error))
        if first_error is error:
            raise
        raise first_error from error
    finally:
        console.stop()
        if folder is not None:
            folder.close()


def _check_same_data(source: Source, resolved: Mapping[str, Any]) -> None:
    """Raise DataError where a process sees other images than the first one: the folder of another machine, say."""
    from selfcluster import distributed

    change = source.difference(resolved["about"]["summary"]) if distributed.rank() else ""
    for number, words in enumerate(distributed.gather_objects(change)):
        if words:
            raise DataError(f"process {number} reads other images in {source.where} than process 0: {words}")


def _check_words(said: Mapping[str, Any], recipe: str | None) -> None:
    """Raise ValueError for names that are unknown, before the images are looked at and a folder is made."""
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"no recipe named {recipe!r}; there are {', '.join(RECIPES)}")
    if said.get("augment") is not None:  # other packages may add names, so the set itself is asked
        from selfcluster.views.augmentations import check_augmentation

        check_augmentation(said["augment"])
    if said.get("backbone") is not None:
        from selfcluster.models.registration import check_name

        check_name(said["backbone"])


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.usage = "selfcluster train METHOD DATA [--out RUN] [flags]"
    parser.add_argument("method", metavar="METHOD", help=", ".join(NAMES))
    parser.add_argument("data", metavar="DATA", help="folder, list of paths, tar, folder of tars, or builtin:digits")
    parser.add_argument("--out", help="run folder, default runs/METHOD-DATANAME; resumes an unfinished run in it")
    recipes = "{" + ",".join(RECIPES) + "}"
    parser.add_argument(
        "--recipe",
        metavar=recipes,
        help="named set of settings; default: auto, which chooses from the images, the device and the start network",
    )
    parser.add_argument("--config", help="file of settings, such as a run's config.yaml")
    parser.add_argument("--quiet", action="store_true", help="print warnings only")
    words_of = (
        "resume although the images have changed, and repeat the current epoch; methods that store a value for each "
        "image refuse"
    )
    parser.add_argument("--accept-data-change", action="store_true", help=words_of)
    parser.set_defaults(run_command=run_command)
    method = next((word for word in words if not word.startswith("-")), None)
    if method is not None and words[0] != method:
        parser.error("METHOD and DATA come first: selfcluster train METHOD DATA [flags]")
    if method is None:
        parser.epilog = "selfcluster train METHOD --help lists the method's own settings and the paper's values."
        for option in SHARED:
            add_option(parser, option)
        return
    schema = read_schema(method)
    paper = paper_values(schema)
    parser.description = schema.summary
    parser.epilog = (
        "(paper: X): the value with --recipe paper. (auto chooses): the default recipe, auto, may choose another."
    )
    shared, own = {option.name for option in SHARED}, parser.add_argument_group(f"settings of {schema.name}")
    common = parser.add_argument_group("shared settings")
    for name, option in options_for(schema).items():
        value = paper.get(name, option.default)
        text = "" if value is None or value == () else in_words(value)
        per = f" per {images_per_rate(schema)} images of the batch" if name in SCALED and value else ""
        whose = [f"{'paper' if name in paper else 'default'}: {text}{per}"] if text else []
        whose += ["auto chooses"] if option.auto or name in schema.small else []
        add_option(common if name in shared else own, option, f" ({'; '.join(whose)})" if whose else "")


_TOLD = ("judgement", "rankme")  # values of the summary that the console has printed before, in words


def run_command(method: str, data: str, **settings: Any) -> tuple[object, str]:
    summary = train(canonical(method), data, **settings)
    lines = [f"{key:>20}  {value}" for key, value in summary.items() if key not in _TOLD]
    run = shlex.quote(summary["run"])
    lines += ["", f"selfcluster report {run}    shows the clusters"]
    lines += [f"selfcluster search {run} IMAGE    finds the images most similar to IMAGE"]
    return summary, "\n".join(lines)
