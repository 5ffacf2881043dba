"""Pages of the documentation that are made from the code: one a method, one a protocol, and the command line.

MkDocs calls `on_files`. Nothing here imports torch: declarations are read from the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from mkdocs.structure.files import File, Files

from selfcluster.evaluation.protocols import declarations, protocol_names
from selfcluster.methods import NAMES
from selfcluster.setting import Option
from selfcluster.settings.options import SHARED
from selfcluster.settings.resolve import paper_values
from selfcluster.settings.schema import read_schema

SOURCE = Path(__file__).parent.parent / "src" / "selfcluster"


def on_files(files: Files, config) -> Files:
    """Add the generated pages."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Return the generated pages by path."""
    methods = {f"methods/{name}.md": method_page(name) for name in NAMES}
    index = ["# Methods", "", "| method | what it learns from |", "|---|---|"]
    index += [f"| [`{name}`]({name}.md) | {read_schema(name).summary.partition(': ')[2]} |" for name in NAMES]
    return {
        **methods,
        "methods/index.md": "\n".join(index) + "\n",
        "settings.md": settings_page(),
        "evaluation.md": evaluation_page(),
    }


def method_page(name: str) -> str:
    """Return the page of a method: its docstring, its settings with the paper's values, and its class."""
    schema = read_schema(name)
    docstring = ast.get_docstring(ast.parse((SOURCE / "methods" / f"{name}.py").read_text("utf-8"))) or ""
    title, _, rest = schema.summary.partition(": ")
    lines = [f"# {title}", "", rest[:1].upper() + rest[1:], "", *docstring.split("\n")[1:], ""]
    lines += ["```", f"selfcluster train {name} photos/", f"selfcluster train {name} --help", "```", ""]
    if schema.settings:
        lines += ["## Settings of its own", "", *table(schema.settings)]
    paper = {k: v for k, v in paper_values(schema).items() if k in {option.name for option in SHARED}}
    lines += ["## The paper's training", "", "`--recipe paper` takes these values; `auto` takes others from the data."]
    lines += ["", "| flag | value |", "|---|---|"]
    lines += [f"| `{flag(k)}` | {shown(v)} |" for k, v in paper.items() if v not in (None, False, ())]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return the page of the flags that all methods share."""
    text = "A value comes from the flag, then from `--config`, then from the recipe, then from the paper."
    return "\n".join(["# Settings of training", "", text, "", *table(SHARED)]) + "\n"


def evaluation_page() -> str:
    """Return the page of the protocols."""
    lines = ["# Evaluation", "", "`selfcluster evaluate PROTOCOL MODEL` scores any network: a run, an export, a file"]
    lines += ["of weights, `starter`, or `timm:NAME`. A run keeps its results in `RUN/evaluations/`.", ""]
    for name in protocol_names():
        summary, options = declarations(name)
        lines += [f"## {name}", "", summary, "", *(table(options.values()) if options else [])]
    return "\n".join(lines) + "\n"


def table(options: Iterable[Option]) -> list[str]:
    """Return a table of options in Markdown."""
    lines = ["| flag | default | values | meaning |", "|---|---|---|---|"]
    for option in options:
        meaning = option.help.replace("|", "\\|")
        lines.append(f"| `{option.flag}` | {shown(option.default)} | {bounds(option)} | {meaning} |")
    return [*lines, ""]


def bounds(option: Option) -> str:
    """Return the values that an option takes, in words."""
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    low = "" if option.least is None else f"from {option.least:g}"
    high = "" if option.most is None else f"to {option.most:g}"
    return " ".join(part for part in (low, high) if part)


def shown(value: object) -> str:
    """Return a value as a user types it."""
    if value is None or value == () or value == "":
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")
