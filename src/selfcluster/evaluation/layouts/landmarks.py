"""Sets of landmarks with queries, in the layouts of Oxford and Paris Buildings, original or revisited.

The images are in `jpg/`. The ground truth of a revisited set is a file `gnd_*.json` or `gnd_*.pkl` with imlist,
qimlist, and gnd with easy, hard, junk and bbx. That of an original set is text files `*_query.txt`, `*_good.txt`,
`*_ok.txt` and `*_junk.txt`. They are in a folder `gt` or `gt_files`, or beside `jpg/`. A pickle is read without running
code from it: only lists, texts, numbers and NumPy arrays are allowed.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Query:
    """An image to search with, its box (left, top, right, bottom) in pixels, and database images by kind."""

    file: Path
    box: tuple[float, float, float, float] | None
    images: Mapping[str, np.ndarray]  # easy, hard, junk; or ok, junk


@dataclass(frozen=True)
class Landmarks:
    """`database` are N files; `is_revisited` says which kinds of images the queries have."""

    database: list[Path]
    queries: list[Query]
    is_revisited: bool


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_landmarks(root: Path) -> Landmarks:
    """Return a set of landmarks.

    Raises:
        ValueError: the folder has another layout, an image is missing, or the ground truth cannot be used.
    """
    if not (root / "jpg").is_dir():
        raise ValueError(f"{root} has no folder jpg/; expected a set of landmarks, such as Oxford or Paris")
    files = sorted([*root.glob("gnd_*.json"), *root.glob("gnd_*.pkl")])
    if files:
        return _revisited(root, files[0])
    folder = next((root / name for name in ("gt", "gt_files", ".") if list((root / name).glob("*_query.txt"))), None)
    if folder is None:
        raise ValueError(f"{root} has neither a gnd_*.json or gnd_*.pkl nor text files *_query.txt")
    return _original(root, folder)


def _revisited(root: Path, file: Path) -> Landmarks:
    try:
        content = file.read_bytes()
        truth = json.loads(content) if file.suffix == ".json" else _Plain(io.BytesIO(content)).load()
        names, queries, rows = truth["imlist"], truth["qimlist"], truth["gnd"]
        kinds = ("easy", "hard", "junk") if "easy" in rows[0] else ("ok", "junk")
        found = [
            Query(
                _file(root, str(name)),
                None if row.get("bbx") is None else _box(np.asarray(row["bbx"]).ravel().tolist(), str(name)),
                {kind: np.asarray(row[kind], np.int64).ravel() for kind in kinds},
            )
            for name, row in zip(queries, rows, strict=True)
        ]
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as e:
        why = f"no {e}" if isinstance(e, KeyError) else e
        raise ValueError(f"{file}: not the ground truth of a set of landmarks ({why})") from e
    database = [_file(root, str(name)) for name in names]
    for query in found:
        for kind, images in query.images.items():
            if len(images) and not 0 <= images.min() <= images.max() < len(database):
                raise ValueError(
                    f"{file}: the list {kind!r} of {query.file.name} has a number outside of imlist, "
                    f"which has {len(database)} images"
                )
    return Landmarks(database, found, "easy" in kinds)


def _original(root: Path, folder: Path) -> Landmarks:
    database = sorted(path for path in (root / "jpg").iterdir() if path.suffix.lower() in _SUFFIXES)
    number = {path.stem: row for row, path in enumerate(database)}

    def listed(query: Path, kind: str) -> list[int]:
        file = query.with_name(query.name.replace("_query.txt", f"_{kind}.txt"))
        if not file.is_file():
            raise ValueError(f"{file} is missing; {query.name} needs it")
        names = file.read_text("utf-8", errors="replace").split()
        lacking = next((name for name in names if name not in number), None)
        if lacking is not None:
            raise ValueError(f"{file} names {lacking}, which is not in {root / 'jpg'}")
        return [number[name] for name in names]

    queries = []
    for file in sorted(folder.glob("*_query.txt")):
        words = file.read_text("utf-8", errors="replace").split()
        if len(words) != 5:
            raise ValueError(f"{file} has {len(words)} words; expected a name and the four numbers of a box")
        box = _box(words[1:], str(file))
        images = {"ok": np.array(listed(file, "good") + listed(file, "ok"), np.int64)}
        images["junk"] = np.array(listed(file, "junk"), np.int64)
        queries.append(Query(_file(root, words[0].removeprefix("oxc1_")), box, images))
    return Landmarks(database, queries, False)


def _box(values: Sequence[object], where: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in pixels; raises ValueError for anything else, naming `where` it stands."""
    try:
        left, top, right, bottom = (float(str(value)) for value in values)
    except ValueError:
        left = top = right = bottom = math.nan
    if not (left < right and top < bottom and all(map(math.isfinite, (left, top, right, bottom)))):
        shown = " ".join(map(str, values))
        raise ValueError(f"{where}: {shown!r} is not a box; it must be the numbers left, top, right and bottom")
    return left, top, right, bottom


def _file(root: Path, name: str) -> Path:
    for suffix in ("", *_SUFFIXES):
        if (path := root / "jpg" / f"{name}{suffix}").is_file():
            return path
    raise ValueError(f"there is no image {name} in {root / 'jpg'}")
