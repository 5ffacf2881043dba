"""The command line: arguments in, one function of `api.py` called, a table or one JSON object out.

No command's help imports torch: flags come from `recipes/options.py` and the methods' sources.
Exit 0: done; 1: failed or preempted; 2: arguments that make no sense.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from selfcluster import __version__
from selfcluster.methods import NAMES, canonical
from selfcluster.methods.schema import read_schema
from selfcluster.recipes.named import RECIPES
from selfcluster.recipes.options import SHARED, Option, options_for
from selfcluster.recipes.resolve import SCALED, images_per_rate, paper_values

_EMBEDDING = "selfcluster: embedding the images"  # what takes long is said before it begins
_TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}


class _Parser(argparse.ArgumentParser):
    """argparse without abbreviations, that answers an unknown flag or name with the nearest one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore
        found, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if not word.startswith("-"):
                self.error(f"{word} is one too many: one is expected there, a folder rather than *")
            flag = word.split("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else f" in {self.prog}"
            owners = [name for name in NAMES if flag in [_flag(s.name) for s in read_schema(name).settings]]
            self.error(f"no flag {word}" + (f" here; {', '.join(owners)} takes it" if owners else hint))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{self.prog}: {message}".removeprefix("selfcluster: ").removeprefix("selfcluster "))


class _UsageError(Exception):
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        arguments = vars(_parse(words))
        arguments.pop("json", None)
        run: Callable[..., tuple[Any, str]] = arguments.pop("run_command")
        result, text = run(**arguments)
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)
    except BrokenPipeError:
        return _closed_pipe()
    except (_UsageError, ValueError, KeyError, FileNotFoundError) as error:
        return _fail(str(error.args[0] if isinstance(error, KeyError) else error), 2, as_json)
    except KeyboardInterrupt:
        return _fail("interrupted", 1, as_json)
    except (RuntimeError, OSError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__, 1, as_json)
    try:
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps({"ok": True, "result": result}, default=str) if as_json else text, flush=True)
    except OSError:  # whoever read our output has gone
        return _closed_pipe()
    return 0


def _fail(message: str, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"ok": False, "error": message, "exit": code}), flush=True)
    print(f"selfcluster: {message}", file=sys.stderr)
    return code


def _closed_pipe() -> int:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - or the interpreter complains while it ends
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="selfcluster",
        description="Learn visual features from unlabeled images by clustering; get the features and the clusters.",
        epilog="selfcluster COMMAND --help tells more; selfcluster train METHOD --help lists a method's settings.",
    )
    parser.add_argument("--version", action="version", version=f"selfcluster {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    parser.set_defaults(run_command=lambda **unused: (None, parser.format_help()))
    for name, add in _COMMANDS.items():
        help_text, build = add
        command = commands.add_parser(name, help=help_text, description=help_text)
        build(command, words[1:] if words[:1] == [name] else [])
        command.add_argument("--json", action="store_true", help="print one JSON object")
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        near = difflib.get_close_matches(words[0], _COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise _UsageError(f"no command named {words[0]!r}: {hint}there are {', '.join(_COMMANDS)}")
    return parser.parse_args(words)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add(parser: argparse._ActionsContainer, option: Option, shown: str = "") -> None:
    text = (option.help + shown).replace("%", "%%")
    if option.kind == "switch":
        parser.add_argument(
            _flag(option.name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
        return
    kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text, "dest": option.name}
    if option.kind in ("pair", "numbers"):
        kwargs |= {"nargs": 2 if option.kind == "pair" else "+", "type": float, "metavar": "X"}
    else:
        kwargs |= {"type": _TYPES[option.kind], "metavar": {"int": "N", "float": "X", "str": "TEXT"}[option.kind]}
    if option.name == "teacher":  # may be given several times
        kwargs["action"] = "append"
    if option.choices:
        kwargs["metavar"] = "{" + ",".join(option.choices) + "}"
    parser.add_argument(_flag(option.name), **kwargs)


def _build_train(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.usage = "selfcluster train METHOD DATA [--out RUN] [flags]"
    parser.add_argument("method", metavar="METHOD", help=", ".join(NAMES))
    parser.add_argument("data", metavar="DATA", help="folder, list of paths, folder of tars, or builtin:digits")
    parser.add_argument("--out", help="run folder; default runs/METHOD-DATANAME; an unfinished run in it goes on")
    recipes = "{" + ",".join(RECIPES) + "}"
    parser.add_argument("--recipe", metavar=recipes, help="named settings; default auto, from the data")
    parser.add_argument("--config", help="settings from a file; a run's config.yaml is one")
    parser.add_argument("--quiet", action="store_true", help="print warnings only")
    parser.set_defaults(run_command=_train)
    method = next((word for word in words if not word.startswith("-")), None)
    if method is not None and words[0] != method:
        parser.error("METHOD and DATA come first: selfcluster train METHOD DATA [flags]")
    if method is None:
        parser.epilog = "selfcluster train METHOD --help lists the method's own settings and the paper's values."
        for option in SHARED:
            _add(parser, option)
        return
    schema = read_schema(method)
    paper = paper_values(schema)
    parser.description = schema.summary
    shared, own = {option.name for option in SHARED}, parser.add_argument_group(f"settings of {schema.name}")
    common = parser.add_argument_group("shared settings")
    automatic = {option.name for option in SHARED if option.auto} | {"num_prototypes", "queue_length", "hidden"}
    automatic |= {"queue_from_epoch", "freeze_epochs"}
    for name, option in options_for(schema).items():
        value = paper.get(name, option.default)
        value = " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        per = f" for {images_per_rate(schema)} images, in proportion" if name in SCALED and value else ""
        chosen = "; auto: from the data" if name in automatic else ""
        shown = "" if value is None or value == "" else f" (paper: {value}{per}{chosen})"
        _add(common if name in shared else own, option, shown)


def _train(method: str, data: str, **settings: Any) -> tuple[Any, str]:
    from selfcluster import api

    summary = api.train(canonical(method), data, **settings)
    lines = [f"{key:>20}  {value}" for key, value in summary.items()]
    run = shlex.quote(summary["run"])
    lines += ["", f"selfcluster report {run}    shows the clusters"]
    lines += [f"selfcluster search {run} IMAGE    finds the images most like one"]
    return summary, "\n".join(lines)


def _build_embed(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, exported backbone, or timm name (not trained)")
    parser.add_argument("data", metavar="DATA", nargs="?", help="images; default those of the run")
    parser.add_argument("--out", help="Parquet file; default RUN/embeddings.parquet")
    _add_network_flags(parser, "labels_from", "seed")
    parser.set_defaults(run_command=_embed)


def _add_network_flags(parser: argparse.ArgumentParser, *more: str) -> None:
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time")
    parser.add_argument("--image-size", type=int, help="side in pixels, for a timm name")
    wanted = {"workers", "device", "precision", "max_bad", "limit", "classes", "long_tail", *more}
    for option in SHARED:
        if option.name in wanted:
            _add(parser, option)


def _embed(run: str, data: str | None, out: str | None, **settings: Any) -> tuple[Any, str]:
    from selfcluster import api

    if out is None and (data is not None or settings.keys() & {"limit", "classes", "long_tail", "labels_from", "seed"}):
        raise _UsageError("embed: say with --out FILE where the embeddings go")
    print(_EMBEDDING, file=sys.stderr)
    result = api.embed(run, data, out=out, **settings)
    rows, width = result["vectors"].shape
    told = {"out": result["out"], "images": rows, "features": width}
    return told, f"{result['out']}: {rows} images, {width} features"


def _build_cluster(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN|FILE", help="run folder or embeddings file")
    parser.add_argument("--k", type=_number_or_auto, help="number of clusters, or auto; default the method's own")
    parser.add_argument("--algorithm", default="kmeans", help="kmeans, hierarchical or pic")
    parser.add_argument(
        "--whiten", type=int, help="principal components kept and whitened first; default 3 k / 2 (pic: n / 4); 0: none"
    )
    parser.add_argument("--out", help="Parquet file, with a CSV twin; default clusters.parquet beside the embeddings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clustering")
    parser.set_defaults(run_command=_cluster)


def _number_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from error


def _cluster(**settings: Any) -> tuple[Any, str]:
    from selfcluster import api

    result = api.cluster(**settings)
    text = "{clusters} clusters of {images} images, from {smallest} to {largest}; {out} and {csv}".format(**result)
    return result, text


def _build_evaluate(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("protocol", metavar="PROTOCOL", help="knn, linear or clusters")
    parser.add_argument("run", metavar="RUN", help="run folder, exported backbone, or timm name")
    parser.add_argument("--train", help="labeled images; default those of the run")
    parser.add_argument("--test", help="labeled images to score on; default a held-out share of --train")
    parser.add_argument("--split", type=float, default=0.2, help="share held out where there is no --test")
    parser.add_argument("--labels-from", help="folders, column:NAME or a CSV file; default folders")
    parser.add_argument("--k", type=int, help="neighbors (knn), or number of clusters to make anew (clusters)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and the clustering")
    _add_network_flags(parser)
    parser.set_defaults(run_command=_evaluate)


def _evaluate(**settings: Any) -> tuple[Any, str]:
    from selfcluster import api

    print(_EMBEDDING, file=sys.stderr)
    numbers = api.evaluate(**settings)
    lines = [f"{k:>16}  {v:.4f}" if isinstance(v, float) else f"{k:>16}  {v}" for k, v in numbers.items()]
    if numbers.get("clusters", 0) > (classes := numbers.get("classes", 0)):
        lines += ["", "accuracy gives each class one cluster and takes the images of all other clusters for wrong;"]
        lines += [
            f"--k {classes} makes as many clusters as classes. purity gives each cluster its most frequent class."
        ]
    return numbers, "\n".join(lines)


def _build_report(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--data", help="images, if they have moved")
    parser.add_argument("--out", help="HTML file; default RUN/report.html")
    parser.set_defaults(run_command=_report)


def _report(run: str, data: str | None, out: str | None) -> tuple[Any, str]:
    from selfcluster import api

    path = api.report(run, data, out=out)
    return {"out": str(path)}, f"{path}: open it in a browser"


def _build_attention(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, exported backbone, or timm name")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--out", help="folder for the pictures; default RUN/attention")
    parser.add_argument("--share", type=float, default=0.6, help="share of the attention that the mask holds")
    parser.add_argument("--image-size", type=int, help="side in pixels; larger gives finer maps")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.set_defaults(run_command=_attention)


def _attention(**settings: Any) -> tuple[Any, str]:
    from selfcluster import api

    result = api.attention(**settings)
    down, across = result["grid"]
    return result, f"{result['out']}: {result['heads']} heads of {down} x {across} patches, and the mask, of each image"


def _build_export(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--out", help="folder; default RUN/export")
    parser.add_argument("--format", default="safetensors", help="safetensors (default) or onnx")
    parser.set_defaults(run_command=_export)


def _export(run: str, out: str | None, format: str) -> tuple[Any, str]:
    from selfcluster import api

    result = api.export(run, out, format=format)
    return result, "\n".join(result[name] for name in ("weights", "architecture", "note") if result.get(name))


def _build_search(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("--k", type=int, default=10, help="how many images; default 10")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.set_defaults(run_command=_search)


def _search(**settings: Any) -> tuple[Any, str]:
    from selfcluster import api

    rows = api.search(**settings)
    lines = [
        f"{r['rank']:>4}{r['cosine']:>9.4f}  {'-' if r['cluster'] is None else r['cluster']:>7}  {r['path']}"
        for r in rows
    ]
    return rows, "\n".join([f"{'rank':>4}{'cosine':>9}  {'cluster':>7}  path", *lines])


def _build_demo(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("--out", default="runs", help="folder for the runs, which are made anew")
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs")
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    parser.set_defaults(run_command=_demo)


def _demo(out: str, seed: int, quiet: bool) -> tuple[Any, str]:
    from selfcluster import api

    rows = api.demo(out, seed=seed, quiet=quiet)
    head = f"{'features':<20}{'k-NN':>8}{'matching':>10}{'NMI':>8}{'seconds':>10}"
    lines = [
        f"{r['features']:<20}{r['knn']:>8.3f}{r['matching']:>10.3f}{r['nmi']:>8.3f}{r['seconds']:>10.1f}" for r in rows
    ]
    return rows, "\n".join([head, *lines, "", f"{out}/demo-swav/report.html shows the clusters"])


def _build_methods(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.set_defaults(run_command=_methods)


def _methods() -> tuple[Any, str]:
    found = {name: read_schema(name).summary for name in NAMES}
    return found, "\n".join(f"{name:<16} {summary}" for name, summary in found.items())


def _build_recipes(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.set_defaults(run_command=_recipes)


def _recipes() -> tuple[Any, str]:
    import inspect

    found = {name: inspect.getdoc(recipe) or "" for name, recipe in RECIPES.items()}
    return found, "\n\n".join(f"{name}: {text}" for name, text in found.items())


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser, list[str]], None]]] = {
    "demo": ("the digits, without their labels, in a table", _build_demo),
    "train": ("learn features and clusters from images", _build_train),
    "embed": ("features of images by a trained network", _build_embed),
    "cluster": ("clusters of embedded images", _build_cluster),
    "evaluate": ("score features or clusters against labels", _build_evaluate),
    "report": ("a page that shows what was found", _build_report),
    "search": ("images of a run that are most like a given one", _build_search),
    "attention": ("what a vision transformer looks at", _build_attention),
    "export": ("the trained network for other tools", _build_export),
    "methods": ("what can be trained", _build_methods),
    "recipes": ("named settings", _build_recipes),
}

if __name__ == "__main__":
    sys.exit(main())
