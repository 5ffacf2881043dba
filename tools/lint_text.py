"""Plain English, checked: `python tools/lint_text.py`. Prints each fault with its file and line; exit status 1 if any.

Sentences of more than 35 words in documents, docstrings, help texts and messages; phrases that make a reader stop; and
British spelling in identifiers. The log of experiments is left out: it is a diary.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORDS = 35
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**/*.md", "examples/*.md")
LEFT_OUT = {"docs/LOG.md", "docs/reproduce.md"}
CODE = ("src/**/*.py", "tools/*.py", "examples/*.py")
RIDDLES = (
    r"what is there",
    r"is (?:said|told)\b",
    r"\bwhatever is\b",
    r"\bis one too many\b",
    r"\blet the name\b",
    r"\bnobody\b",
    r"\bit goes on\b",
    r"\bthose of the others\b",
    r"\bhas those\b",
)
BRITISH = re.compile(
    r"colour|neighbour|normalis|initialis|centr(?:e|ing)\b|optimis|behaviour|labelled|recognis|synchronis|minimis|"
    r"maximis|standardis|learnt|grey"
)
ALLOWED = {"RENAMED", "RENAMED_VALUES", "_RENAMED_TENSORS"}  # the old names themselves
ABBREVIATIONS = re.compile(r"\b(?:e\.g|i\.e|eq|cf|vs|et al|fig|No)\.")


def main() -> int:
    faults = [*documents(), *code()]
    for where, line, text in sorted(faults):
        print(f"{where}:{line}: {text}")
    return 1 if faults else 0


def documents() -> Iterator[tuple[str, int, str]]:
    """Faults of the documents, code blocks and tables left out."""
    for path in sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)}):
        name = path.relative_to(ROOT).as_posix()
        if name in LEFT_OUT:
            continue
        paragraph, first, fenced = "", 1, False
        for number, line in enumerate([*path.read_text("utf-8").split("\n"), ""], start=1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            ends = (
                fenced or not line.strip() or line.lstrip().startswith(("#", "|", "- ", "* ", "```", "!", "1.", ":::"))
            )
            if ends:
                yield from ((name, first, fault) for fault in of_text(paragraph))
                paragraph, first = "", number
            if not fenced and line.strip() and not line.lstrip().startswith(("|", "```", "!", ":::")):
                first = first if paragraph else number
                paragraph += " " + line.strip().lstrip("#-* ")
    return


def code() -> Iterator[tuple[str, int, str]]:
    """Faults of docstrings, comments, strings and identifiers."""
    for path in sorted({path for pattern in CODE for path in ROOT.glob(pattern)}):
        name, source = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
        if name == "tools/lint_text.py":
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                for part in re.split(r"\n\s*\n|\n\s*(?:- |[A-Za-z_, *]+: )|>>>.*", node.value):
                    yield from ((name, node.lineno, fault) for fault in of_text(part))
        previous = ""
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield from ((name, token.start[0], fault) for fault in of_text(token.string.lstrip("# ")))
            elif token.type == tokenize.NAME and BRITISH.search(token.string.lower()) and previous not in ALLOWED:
                yield name, token.start[0], f"British spelling in an identifier: {token.string}"
            previous = token.string if token.type == tokenize.NAME else previous


def of_text(text: str) -> Iterator[str]:
    """Faults of a paragraph."""
    text = re.sub(r"`[^`]*`", "Code", " ".join(text.split()))
    for riddle in RIDDLES:
        found = re.search(riddle, text)
        if found:
            yield f"read this once more: {found.group()!r} in {text[max(0, found.start() - 30) : found.end() + 30]!r}"
    plain = ABBREVIATIONS.sub("abbr", text)
    for sentence in re.split(r"(?<=[.;:!?])\s+(?=[A-Z`\"'(\d])|(?<=;)\s|:\s", plain):
        words = re.findall(r"[A-Za-z][\w'-]*", sentence)
        if len(words) > WORDS:
            yield f"a sentence of {len(words)} words: {sentence[:80]!r}"


if __name__ == "__main__":
    sys.exit(main())
