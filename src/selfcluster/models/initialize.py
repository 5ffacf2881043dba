"""Weights from a local file into a network, with an account of what matched.

Checkpoints differ in what they wrap: the weights may lie under a key ("state_dict", "teacher", ...) and behind a
prefix ("backbone.", "encoder_q.", ...), with "module." of a parallel wrapper anywhere in a name. Neither is guessed
from a list: of all that the file contains, the place is taken from which the most of the network's numbers can be
filled. So a run's own file and those of DINO, SwAV, DeepCluster, MoCo, VISSL, OpenSelfSup, torchvision and timm are
told by their keys alone. Nothing in the file is executed.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_PREFERRED = ("teacher", "state_dict_ema", "model_ema")  # where two places fit alike: the averaged weights
_WRAPPERS = {"module", "_orig_mod"}  # of DataParallel and torch.compile: in a name they say nothing
_ENOUGH = 0.5  # of the network's numbers; with fewer the file is another network's


class OtherInput(ValueError):
    """The file's network sees edges and this one colors, or the other way round."""


def initialize(module: nn.Module, path: str | Path) -> str:
    """Copy into `module` every tensor of the file that has its name and shape.

    Two shapes are adapted: the first convolution between color and gray images, so that a gray image gives what its
    color copy gave, and position embeddings to the image size, as timm does. Heads in the file are left out: the
    network has none.

    Args:
        module: a backbone; changed in place.
        path: a `.safetensors` file, or one that `torch.save` wrote, whatever its name (`.pt`, `.pth`, `.pth.tar`).

    Returns:
        One line that says what was taken, adapted, left as it was and left out.

    Raises:
        FileNotFoundError: no such file.
        OtherInput: between Sobel edges and colors nothing can be adapted.
        ValueError: no weights in the file, or fewer than half of the network's numbers found in it.
    """
    path = Path(path)
    own = module.state_dict()
    found, place, left_out = _best_place(_read(path), own, getattr(module, "released_names", {}))
    taken, adapted = {}, []
    missing = {name: name for name in own if not name.endswith("num_batches_tracked")}
    for name, value in found.items():
        fitting, change = _fit(name, value, own[name], module)
        if fitting is None:
            missing[name] = f"{name} ({_shape(value)} in the file, {_shape(own[name])} here)"
            continue
        taken[name] = fitting
        missing.pop(name, None)
        if change:
            adapted.append(f"{name} ({change})")
    share = _numbers(taken) / max(1, _numbers(own))
    matched = f"{len(taken)} tensors: {_names(list(taken))}"
    account = f"weights {path}{place}: {share:.1%} of the network's numbers taken ({matched})"
    account += f"; adapted: {_names(adapted)}" if adapted else ""
    account += f"; left at random: {_names(list(missing.values()))}" if missing else ""
    account += f"; not used: {_names(left_out)}" if left_out else ""
    if share < _ENOUGH:
        raise ValueError(f"another network's {account}")
    module.load_state_dict(taken, strict=False)
    return account


def _read(path: Path) -> Any:
    if not path.is_file():
        unfinished = "; its run has not finished" if (path.parent / "config.yaml").is_file() else ""
        raise FileNotFoundError(f"weights {path}: no such file{unfinished}")
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:] == b"{":  # the length of the JSON that names the tensors, then that JSON
            import safetensors.torch

            return safetensors.torch.load_file(path)
        # DINO saves its arguments beside its weights; a Namespace is a bag of attributes and runs nothing
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader fed a damaged or foreign file may raise anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds a {foreign[1]}, and nothing but weights is loaded" if foreign else type(error).__name__
        raise ValueError(f"weights {path}: not a .safetensors, .pt or .pth file of weights ({why})") from error


def _best_place(
    content: Any, own: dict[str, Tensor], released: Mapping[str, str]
) -> tuple[dict[str, Tensor], str, list[str]]:
    """The tensors of the file under the network's names, where they lay, and the names of the others there.

    `released`: the network's modules by the names that its paper's own checkpoints give them, where these differ.
    """
    best: tuple[int, dict[str, Tensor], str, list[str]] = (0, {}, "", [])
    tables = dict(_tables(content))
    wrappers = _WRAPPERS - {part for name in own for part in name.split(".")}
    for key in sorted(tables, key=lambda k: k.split("/")[-1] not in _PREFERRED):
        table = {".".join(p for p in name.split(".") if p not in wrappers): v for name, v in tables[key].items()}
        for prefix in _prefixes(table):
            inside = ((name.removeprefix(prefix), name) for name in table if name.startswith(prefix))
            names = {_renamed(name, released): full for name, full in inside}
            found = {name: table[full] for name, full in names.items() if name in own}
            fits = _numbers({n: v for n, v in found.items() if v.shape == own[n].shape})
            if fits > best[0]:
                place = "".join(f", {word} {text!r}" for word, text in (("key", key), ("prefix", prefix)) if text)
                others = [name for name in names if name not in own]
                best = (fits, found, place, others + [name for name in table if not name.startswith(prefix)])
    return best[1:]


def _renamed(name: str, released: Mapping[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    return f"{released[module]}.{kind}" if module in released else name


def _tables(content: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping inside the file that holds tensors, by the path of keys that leads to it."""
    if not isinstance(content, Mapping):
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        yield from _tables(value, f"{key}/{name}" if key else str(name))


def _prefixes(table: Mapping[str, Tensor]) -> list[str]:
    """'' and every dotted beginning of at most three parts, in order of appearance."""
    prefixes = {"": None}
    for name in table:
        parts = name.split(".")
        for depth in range(1, min(4, len(parts))):
            prefixes[".".join(parts[:depth]) + "."] = None
    return list(prefixes)


def _fit(name: str, value: Tensor, own: Tensor, module: nn.Module) -> tuple[Tensor | None, str]:
    """The file's tensor in the network's shape, or None, and what had to be changed."""
    if value.shape == own.shape:
        return value, ""
    first = getattr(module, "pretrained_cfg", {}).get("first_conv") or ()
    if name in [f"{n}.weight" for n in ((first,) if isinstance(first, str) else first)]:
        there, here = value.shape[1], own.shape[1]
        if {there, here} == {1, 3} and (value.shape[0], *value.shape[2:]) == (own.shape[0], *own.shape[2:]):
            gray = value.sum(dim=1, keepdim=True)
            return (gray if here == 1 else (gray / 3).expand_as(own)), f"{there} to {here} channels"
        if there != here and 2 in (there, here):
            sees, way = (
                ("Sobel edges", "train with --sobel, or start from what `selfcluster export` makes of it")
                if there == 2
                else ("colors", "train with --no-sobel")
            )
            raise OtherInput(f"the network in the file sees {sees}, two channels or not: {way}")
    if name == "pos_embed" and value.dim() == 3 and value.shape[::2] == own.shape[::2]:
        from timm.layers.pos_embed import resample_abs_pos_embed

        grid = getattr(getattr(module, "patch_embed", None), "grid_size", (0, 0))
        extra = own.shape[1] - grid[0] * grid[1]  # class and register tokens
        side = isqrt(max(0, value.shape[1] - extra))
        if grid[0] and side and side**2 == value.shape[1] - extra:
            resized = resample_abs_pos_embed(value, new_size=list(grid), num_prefix_tokens=extra)
            return resized, f"{side} x {side} to {grid[0]} x {grid[1]} patches"
    return None, ""


def _numbers(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _names(names: Sequence[str], most: int = 4) -> str:
    """The names, or where they are many the modules that they belong to, with their counts."""
    if len(names) <= most:
        return ", ".join(names)
    rooms = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{room} ({count})" for room, count in rooms.items())
