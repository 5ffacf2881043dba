"""Imports run downwards: a file imports from its own folder and from the floors below, never from its own floor's
other folders or from above."""

import ast
import re
from pathlib import Path

import selfcluster

ROOT = Path(selfcluster.__file__).parent
FLOORS = (  # from the ground up
    (
        "types",
        "randomness",
        "distributed",
        "heartbeat",
        "files",
        "devices",
        "setting",
        "choice",
        "waiting",
        "allocation",
        "faults",
        "annotations",
        "compiler",
    ),
    ("clustering", "models"),
    ("views",),
    ("methods", "data"),
    ("runs",),
    ("settings",),
    ("training",),
    ("evaluation",),
    ("reporting",),
    ("serve",),
    ("commands",),
    ("api", "cli"),
)
# the package's face: it hands names on lazily, and lets timm know of our networks
FACE = {"__init__", "__main__"}


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file names in an import, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "selfcluster":
            names = [f"selfcluster.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("selfcluster.")}
    return {room for room in found if room != "__version__"}


def test_every_file_stands_on_a_floor():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert rooms - FACE == {room for floor in FLOORS for room in floor}


def test_imports_run_downwards():
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in FACE:
            continue
        for room in imports(path) - {own}:
            if room in FLOORS[0] and own in FLOORS[0]:
                continue  # the ground floor's files may know each other
            if floor_of(room) >= floor_of(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {room}")
    assert not wrong


def test_files_stay_readable():
    """Lines of code without blank ones, comments and docstrings: a method 200, the loop and the base 200, else 300."""
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        documentation = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                documentation |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        code = [
            line
            for number, line in enumerate(text.splitlines(), start=1)
            if number not in documentation and line.strip() and not line.strip().startswith("#")
        ]
        name = path.relative_to(ROOT).as_posix()
        limit = 200 if name.startswith("methods/") else 200 if name == "training/loop.py" else 300
        assert len(code) <= limit, f"{name}: {len(code)} lines of code, the aim is {limit}"


def test_every_public_function_can_be_had_from_the_package():
    from selfcluster import api

    assert not [name for name in api.__all__ if getattr(selfcluster, name) is not getattr(api, name)]


def test_the_readme_maps_every_file_once():
    """Each file has one row, under the row of its folder; a row without a file is an error, too."""
    text = (ROOT.parent.parent / "README.md").read_text().split("## File map")[1]
    mapped, folder = [], ""
    for left in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)[1:]:
        if heading := re.fullmatch(r"\*\*(?:`(\w+/)`|the rest)\*\*", left):
            folder = heading[1] or ""
        else:
            mapped.append(folder + left.strip("`"))
    kinds, unnamed = (".py", ".cpp", ".hpp", ".js", ".css", ".j2"), ("__init__.py", "__main__.py")
    files = [path for path in ROOT.rglob("*") if path.suffix in kinds and path.name not in unnamed]
    assert sorted(mapped) == sorted(path.relative_to(ROOT).as_posix() for path in files)


def any_in_signatures(path: Path) -> tuple[list[str], int]:
    """Functions of a file whose parameters or result name `Any`, at any depth, and how many functions it has."""
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    found = []
    for function in functions:
        a = function.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(v for v in (a.vararg, a.kwarg) if v is not None)]
        written = [n for n in (*(v.annotation for v in arguments), function.returns) if n is not None]
        if any(re.search(r"\bAny\b", ast.unparse(n)) for n in written):
            found.append(f"{path.relative_to(ROOT)}: {function.name}")
    return found, len(functions)


def test_few_signatures_say_any(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "x.py").write_text(
        "def a(x: int) -> str: ...\ndef b(x: 'dict[str, Any]'): ...\ndef c(*, x: list[Any]): ...\n"
        "class D:\n    def d(self, **x: Any): ...\n"
        "    def e(self) -> tuple[int, Any]: ...\n    def f(self): x: Any = 1\n"
    )
    names = ["b", "c", "d", "e"]
    assert any_in_signatures(tmp_path / "x.py") == ([f"x.py: {name}" for name in names], 6)
    monkeypatch.undo()

    found, total = [], 0
    for path in sorted(ROOT.rglob("*.py")):
        some, count = any_in_signatures(path)
        found, total = found + some, total + count
    assert len(found) < 0.1 * total, "\n".join(found)
