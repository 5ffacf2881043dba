"""The command line: parses the arguments, calls one command, prints a table or one JSON object.

Only the command that is called is imported, and no command's help imports torch.
Exit status 0: done; 1: failed or preempted; 2: arguments that make no sense.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from selfcluster import __version__
from selfcluster.allocation import keep_freed_memory
from selfcluster.commands.flags import flag
from selfcluster.files import message_of
from selfcluster.methods import NAMES
from selfcluster.runs.formats import RENAMED
from selfcluster.settings.schema import read_schema
from selfcluster.waiting import let_threads_sleep

COMMANDS = {
    "demo": "train on digits without labels and compare the results in a table",
    "train": "learn features and clusters from images",
    "embed": "compute features of images with a trained network",
    "cluster": "group images with a pretrained network or a trained run",
    "evaluate": "score a network or its clusters, with or without labels",
    "report": "write a page that shows the clusters",
    "compare": "show results of several runs in one table",
    "search": "find the images most similar to a given image",
    "attention": "draw the attention maps of a vision transformer",
    "figures": "draw a network's filters and a map of the classes",
    "audit": "find copies, near copies, dark, blurred, constant and unreadable images, and leaks between two sets",
    "export": "write the network or the clusters for other tools",
    "sort": "put the images into folders, one folder per cluster",
    "sample": "choose a small balanced set of images to label by hand",
    "verify": "check the files of a run for damage",
    "doctor": "show this machine's hardware and packages, and the settings chosen for them",
    "methods": "list the training methods",
    "recipes": "list the recipes: named sets of settings",
}


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Parser(argparse.ArgumentParser):
    """argparse without abbreviations, that answers an unknown flag or name with the nearest one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> object:  # pyright: ignore
        found, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if not word.startswith("-"):
                before = args[args.index(word) - 1] if args and word != args[0] else ""
                if isinstance(self._option_string_actions.get(before), argparse.BooleanOptionalAction):
                    on = before.replace("--no-", "--", 1)
                    self.error(f"{before} takes no value: write {on} or --no-{on.removeprefix('--')}, without {word!r}")
                self.error(
                    f"Unexpected argument {word!r}: expected one path. Pass the folder itself, not a shell glob (*)."
                )
            name = word.split("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else f" in {self.prog}"
            owners = [method for method in NAMES if name in [flag(s.name) for s in read_schema(method).settings]]
            self.error(f"no flag {word}" + (f" here; {', '.join(owners)} takes it" if owners else hint))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{self.prog}: {message}".removeprefix("selfcluster: ").removeprefix("selfcluster "))


class _UsageError(Exception):
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    _prepare_output()
    let_threads_sleep()
    keep_freed_memory()
    words = [_modern(word) for word in (sys.argv[1:] if argv is None else argv)]
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
        return _fail(str(error.args[0]) if isinstance(error, KeyError) else message_of(error), 2, as_json)
    except KeyboardInterrupt:
        return _fail("interrupted", 1, as_json)
    except (RuntimeError, OSError, MemoryError) as error:
        if getattr(error, "told", False):  # another process of the run prints it
            return 1
        return _fail(message_of(error), 1, as_json, getattr(error, "result", None))
    try:
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps({"ok": True, "result": result}, default=str) if as_json else visible(text), flush=True)
    except OSError:  # whoever read our output has gone
        return _closed_pipe()
    return 0


def _prepare_output() -> None:
    """Let every message through: streams that are not UTF-8 get escapes, and a warning is one sentence."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("selfcluster: %(message)s"))
    logging.getLogger("selfcluster").handlers = [handler]  # library code logs; here it is decided what is shown
    shown: set[str] = set()

    def show(message: Warning | str, category: object, filename: str, lineno: int, *more: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f"selfcluster: {visible(str(message))}", file=sys.stderr)

    warnings.showwarning = show


def visible(text: str) -> str:
    """Return the text with control characters escaped: a file's name must not move the cursor."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def _modern(word: str) -> str:
    """The word, or today's name of a flag that was renamed; accepted for one release, with a note."""
    flag_name, equals, value = word.partition("=")
    name = RENAMED.get(flag_name.removeprefix("--").replace("-", "_")) if word.startswith("--") else None
    if name is None:
        return word
    print(
        f"selfcluster: {flag_name} is now called {flag(name)}; the next release removes the old name", file=sys.stderr
    )
    return flag(name) + equals + value


def _fail(message: str, code: int, as_json: bool, result: object = None) -> int:
    if as_json:
        found = {} if result is None else {"result": result}
        print(json.dumps({"ok": False, "error": message, "exit": code, **found}), flush=True)
    print(f"selfcluster: {visible(message)}", file=sys.stderr)
    return code


def _closed_pipe() -> int:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - or the interpreter complains while it ends
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="selfcluster",
        description="Learn visual features from unlabeled images by clustering; get the features and the clusters.",
        epilog="selfcluster COMMAND --help shows the flags; selfcluster train METHOD --help lists a method's settings.",
    )
    parser.add_argument("--version", action="version", version=f"selfcluster {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    parser.set_defaults(run_command=lambda **unused: (None, parser.format_help()))
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if words[:1] == [name]:  # only the command that is called is imported
            importlib.import_module(f"selfcluster.commands.{name}").add_flags(command, words[1:])
        command.add_argument("--json", action="store_true", help="print one JSON object")
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise _UsageError(f"no command named {words[0]!r}: {hint}there are {', '.join(COMMANDS)}")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
