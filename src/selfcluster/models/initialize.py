"""Weights from a local file into a network, with a report of what matched.

Checkpoints differ in what they wrap: the weights may lie under a key ("state_dict", "teacher", ...) and behind a
prefix ("backbone.", "encoder_q.", ...), with "module." of a parallel wrapper anywhere in a name. Neither is guessed
from a list: of all places in the file, the one is taken that fills the most of the network's numbers. Names of
other libraries are translated (`layouts.py`), and timm's `checkpoint_filter_fn` converts what an architecture needs.
Nothing in the file is executed.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfcluster.models.layouts import LAYOUTS

_PREFERRED = ("teacher", "state_dict_ema", "model_ema")  # where two places fit alike: the averaged weights
_WRAPPERS = {"module", "_orig_mod"}  # of DataParallel and torch.compile: in a name they say nothing
_CLASSIFIER = re.compile(r"(.*\.)?(head|head_dist|fc|classifier|head\.fc|classifier\.1|last_linear)\.(weight|bias)$")
_ENOUGH = 0.5  # of the network's numbers; with fewer the file is another network's


class OtherInput(ValueError):
    """The file's network sees edges and this one colors, or the other way round."""


class PartialWeights(ValueError):
    """The file fills the network in part: some layers would keep random weights, or layers of the file are unused."""


@dataclass
class Match:
    """What a file has for a network: `taken` by the network's names, and what became of the rest."""

    taken: dict[str, Tensor]
    adapted: list[str]  # names, with what was changed
    missing: dict[str, str]  # the network's tensors that the file lacks: name -> description
    skipped: list[str]  # tensors of the file that belong to layers that the network has not
    unused: list[str]  # tensors of the file that belong to no part of the network: heads, queues
    place: str  # where in the file the weights lay, in words
    share: float  # of the network's numbers

    @property
    def has_classifier(self) -> bool:
        """Whether the file's network was trained on labels: it ends in one linear layer."""
        return any(_CLASSIFIER.match(name) for name in self.unused)


def initialize(module: nn.Module, path: str | Path, *, allow_partial: bool = False) -> str:
    """Copy into `module` every tensor of the file that has its name and shape.

    Two shapes are adapted: the first convolution between color and gray images, so that a gray image gives what its
    color copy gave, and position embeddings to the image size, as timm does. Heads in the file are left out: the
    network has none.

    Args:
        module: a backbone; changed in place.
        path: a `.safetensors` file, or one that `torch.save` wrote, whatever its name (`.pt`, `.pth`, `.pth.tar`).
        allow_partial: load the file even where parts of the network keep random weights.

    Returns:
        One line that names what was taken, adapted, left at random and not used.

    Raises:
        FileNotFoundError: no such file.
        OtherInput: between Sobel edges and colors nothing can be adapted.
        PartialWeights: the file lacks parts of the network, or has layers that the network lacks.
        ValueError: no weights in the file, or fewer than half of the network's numbers found in it.
    """
    path = Path(path)
    found = match(module, read_weights(path))
    report = f"weights {path}{found.place}: {found.share:.1%} of the network's weights found ("
    report += f"{len(found.taken)} tensors: {_names(list(found.taken))})"
    report += f"; adapted: {_names(found.adapted)}" if found.adapted else ""
    report += f"; left at random: {_names(list(found.missing.values()))}" if found.missing else ""
    others = found.skipped + found.unused
    report += f"; not used: {_names(others)}" if others else ""
    if found.share < _ENOUGH:
        raise ValueError(f"{report}. That is less than half, so the file is of another network")
    if found.missing and not allow_partial:
        raise PartialWeights(
            f"{report}. A network with random parts gives bad features. Name the network of the file, "
            "or accept random parts with --allow-partial"
        )
    if found.skipped and not allow_partial:
        raise PartialWeights(
            f"{report}. The file has layers that this network lacks ({_names(found.skipped)}), so the file belongs "
            "to a larger network. Name that network (NETWORK=FILE), or load the layers that fit with --allow-partial"
        )
    module.load_state_dict(found.taken, strict=False)
    return report


def match(module: nn.Module, content: object) -> Match:
    """Return what the content of a weights file has for `module`, which is not changed and may be on the meta device.

    Raises:
        OtherInput: the first convolutions take Sobel edges and colors.
    """
    own = module.state_dict()
    found, place, inside, left_out = _best_place(content, own, getattr(module, "released_names", {}))
    result = _matched(module, own, found, place, inside, left_out)
    if result.missing or result.skipped:
        converted = _converted(module, inside)
        if converted is not None:
            # timm resizes a patch embedding, too: that makes another network, so it counts as one of another shape
            resized = {n for n, t in converted.items() if n in inside and inside[n].shape != t.shape}
            refused = {n for n in resized if not _may_be_resized(n)}
            names = {n: inside[n] if n in refused else t for n, t in converted.items() if n in own}
            other = _matched(module, own, names, place, converted, left_out)
            if (other.share, -len(other.skipped)) > (result.share, -len(result.skipped)):
                return other
    return result


def read_classifier(module: Any, path: Path) -> nn.Linear:
    """Return the linear classifier (F to K) that a weights file has for the features of `module`.

    Args:
        module: a backbone; `num_features` is F.
        path: a file of weights, as of `initialize`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no weights in the file, or no classifier, or several.
    """
    own = module.state_dict()
    inside = _best_place(read_weights(path), own, getattr(module, "released_names", {}))[2]
    tensors = {n: t for n, t in inside.items() if n not in own and _CLASSIFIER.match(n)}
    weights = {n: t.flatten(1) for n, t in tensors.items() if n.endswith("weight") and t.dim() > 1}
    fitting = [n for n, t in weights.items() if t.shape[1] == module.num_features]
    if len(fitting) != 1:
        raise ValueError(f"{path} has {len(fitting)} classifiers of {module.num_features} features; needed is one")
    weight = weights[fitting[0]].float()
    bias = tensors.get(fitting[0].removesuffix("weight") + "bias")
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight)) if bias is None else bias.float()})
    return head


def read_weights(path: Path) -> object:
    """Return the content of a weights file; tensors, NumPy scalars and plain containers are all that is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no weights file, or one that holds other objects.
    """
    if not path.is_file():
        unfinished = "; its run has not finished" if (path.parent / "config.yaml").is_file() else ""
        raise FileNotFoundError(f"weights {path}: no such file{unfinished}")
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:] == b"{":  # the length of the JSON that names the tensors, then that JSON
            import safetensors.torch

            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader fed a damaged or foreign file may raise anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds a {foreign[1]}, and nothing but weights is loaded" if foreign else type(error).__name__
        raise ValueError(f"weights {path}: not a .safetensors, .pt or .pth file of weights ({why})") from error


def _harmless() -> list[Any]:
    """What a checkpoint may hold beside tensors: DINO's arguments (a Namespace), and NumPy's scalars and dtypes.

    SwAV and DINO save learning rates as `numpy.float64`. NumPy 1 wrote the same functions under another module name.
    """
    scalar: Any = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    return [Namespace, np.dtype, *dtypes, scalar, (scalar, "numpy.core.multiarray.scalar")]


def _best_place(
    content: object, own: Mapping[str, Tensor], released: Mapping[str, str]
) -> tuple[dict[str, Tensor], str, dict[str, Tensor], list[str]]:
    """Return the file's tensors under the network's names, where they lay, all tensors there, and names elsewhere.

    `released`: the network's modules by the names that its paper's own checkpoints give them, where these differ.
    """
    best: tuple[int, dict[str, Tensor], str, dict[str, Tensor], list[str]] = (0, {}, "", {}, [])
    wrappers = _WRAPPERS - {part for name in own for part in name.split(".")}
    for place, inside, outside in places(content, wrappers):
        inside = {_renamed(name, released): tensor for name, tensor in inside.items()}
        found = {name: tensor for name, tensor in inside.items() if name in own}
        fits = _numbers({name: tensor for name, tensor in found.items() if tensor.shape == own[name].shape})
        if fits > best[0]:
            best = (fits, found, place, inside, outside)
    return best[1:]


def places(content: object, wrappers: set[str] = _WRAPPERS) -> Iterator[tuple[str, dict[str, Tensor], list[str]]]:
    """Yield every place of a file where weights may lie, in words, with its tensors by timm's names and other names."""
    tables = dict(_tables(content))
    for key in sorted(tables, key=lambda k: k.split("/")[-1] not in _PREFERRED):
        table = {".".join(p for p in name.split(".") if p not in wrappers): v for name, v in tables[key].items()}
        for prefix in _prefixes(table):
            inside = {name.removeprefix(prefix): v for name, v in table.items() if name.startswith(prefix)}
            place = "".join(f", {word} {text!r}" for word, text in (("key", key), ("prefix", prefix)) if text)
            outside = [name for name in table if not name.startswith(prefix)]
            yield place, inside, outside
            for words, layout in LAYOUTS:
                renamed = layout(inside)
                if renamed is not None:
                    yield f"{place}, parameter names as in {words}", renamed, outside


def _converted(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors as timm's filter for the architecture converts them, or None where there is no filter."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        return convert(dict(tensors), module)
    except Exception:  # the filter expects its own architecture's tensors, and the file may be any network's
        return None


def _may_be_resized(name: str) -> bool:
    return "pos_embed" in name or "rel_pos" in name or "relative_position" in name


def _matched(
    module: nn.Module,
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    place: str,
    inside: Mapping[str, Tensor],
    outside: Sequence[str],
) -> Match:
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
    parts = {name.split(".")[0] for name in own}
    left = {name: tensor for name, tensor in inside.items() if name not in own}
    skipped = [
        n for n, t in left.items() if n.split(".")[0] in parts and t.is_floating_point() and not _CLASSIFIER.match(n)
    ]
    unused = [name for name in left if name not in skipped] + list(outside)
    share = _numbers(taken) / max(1, _numbers(own))
    return Match(taken, adapted, missing, skipped, unused, place, share)


def _renamed(name: str, released: Mapping[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    return f"{released[module]}.{kind}" if module in released else name


def _tables(content: object, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
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
    """Return the file's tensor in the network's shape, or None, and what had to be changed."""
    if value.shape == own.shape:
        return value, ""
    first = getattr(module, "pretrained_cfg", {}).get("first_conv") or ()
    if name in [f"{n}.weight" for n in ((first,) if isinstance(first, str) else first)]:
        in_file, here = value.shape[1], own.shape[1]
        if {in_file, here} == {1, 3} and (value.shape[0], *value.shape[2:]) == (own.shape[0], *own.shape[2:]):
            gray = value.sum(dim=1, keepdim=True)
            return (gray if here == 1 else (gray / 3).expand_as(own)), f"{in_file} to {here} channels"
        if in_file != here and 2 in (in_file, here):
            sees, way = (
                ("Sobel edges", "train with --sobel, or start from a `selfcluster export` of that network")
                if in_file == 2
                else ("colors", "train with --no-sobel")
            )
            raise OtherInput(f"the network in the file takes {sees}, and this network does not: {way}")
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
    parts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in parts.items())
