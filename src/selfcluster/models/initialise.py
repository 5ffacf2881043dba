"""Weights from a local file into a network, with an account of what matched.

Checkpoints differ in what they wrap: the weights may lie under a key ("state_dict", "teacher", ...) and behind a
prefix ("module.", "encoder_q.", ...). Neither is guessed from a list: of all that the file contains, the place is
taken from which the most of the network's numbers can be filled. Nothing in the file is executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_PREFERRED = ("teacher", "state_dict_ema", "model_ema")  # where two places fit alike: the averaged weights
_ENOUGH = 0.5  # of the network's numbers; with fewer the file is another network's


def initialise(module: nn.Module, path: str | Path) -> str:
    """Copy into `module` every tensor of the file that has its name and shape.

    Two shapes are adapted as timm does: the first convolution to the number of channels, and position embeddings to
    the image size. A classifier in the file is left out without a word of warning: the network has none.

    Args:
        module: a backbone; changed in place.
        path: a `.safetensors` file, or a `.pt` or `.pth` file (read with `weights_only=True`).

    Returns:
        One line that says what was taken, adapted, left as it was and left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no weights in the file, or fewer than half of the network's numbers found in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--init {path}: no such file")
    own = module.state_dict()
    found, place, left_out = _best_place(_read(path), own)
    taken, adapted = {}, []
    for name, value in found.items():
        fitting = _fit(name, value, own[name], module)
        if fitting is not None:
            taken[name] = fitting
            if fitting is not value:
                adapted.append(name)
    share = _numbers(taken) / max(1, _numbers(own))
    missing = [name for name in own if name not in taken and not name.endswith("num_batches_tracked")]
    account = f"{path.name}{place}: {share:.1%} of the network's numbers taken ({len(taken)} tensors"
    account += f", adapted {_names(adapted)})" if adapted else ")"
    account += f"; left at random: {_names(missing)}" if missing else ""
    account += f"; not used: {_names(left_out)}" if left_out else ""
    if share < _ENOUGH:
        raise ValueError(f"these are another network's weights. {account}")
    module.load_state_dict(taken, strict=False)
    return account


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        import safetensors.torch

        return safetensors.torch.load_file(path)
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"--init {path}: expected a .safetensors, .pt or .pth file")
    return torch.load(path, map_location="cpu", weights_only=True)


def _best_place(content: Any, own: dict[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    """The tensors of the file under the network's names, where they lay, and the names of the others there."""
    best: tuple[int, dict[str, Tensor], str, list[str]] = (0, {}, "", [])
    tables = dict(_tables(content))
    for key in sorted(tables, key=lambda k: k.split("/")[-1] not in _PREFERRED):
        table = tables[key]
        for prefix in _prefixes(table):
            inside = {name[len(prefix) :]: value for name, value in table.items() if name.startswith(prefix)}
            found = {name: value for name, value in inside.items() if name in own}
            fits = _numbers({n: v for n, v in found.items() if v.shape == own[n].shape})
            if fits > best[0]:
                place = "".join(f", {word} {text!r}" for word, text in (("key", key), ("prefix", prefix)) if text)
                best = (fits, found, place, [name for name in inside if name not in own])
    return best[1:]


def _tables(content: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping inside the file that holds tensors, by the path of keys that leads to it."""
    if not isinstance(content, Mapping):
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        yield from _tables(value, f"{key}/{name}" if key else str(name))


def _prefixes(table: dict[str, Tensor]) -> list[str]:
    """'' and every dotted beginning of at most three parts, in order of appearance."""
    prefixes = {"": None}
    for name in table:
        parts = name.split(".")
        for depth in range(1, min(4, len(parts))):
            prefixes[".".join(parts[:depth]) + "."] = None
    return list(prefixes)


def _fit(name: str, value: Tensor, own: Tensor, module: nn.Module) -> Tensor | None:
    """The file's tensor in the network's shape, or None."""
    if value.shape == own.shape:
        return value
    config = getattr(module, "pretrained_cfg", {})
    first = config.get("first_conv") or ()
    if name in [f"{n}.weight" for n in ((first,) if isinstance(first, str) else first)]:
        from timm.models import adapt_input_conv

        if value.shape[1] == 3 and (value.shape[0], *value.shape[2:]) == (own.shape[0], *own.shape[2:]):
            return adapt_input_conv(own.shape[1], value)
    if name == "pos_embed" and value.dim() == 3 and value.shape[::2] == own.shape[::2]:
        from timm.layers.pos_embed import resample_abs_pos_embed

        grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
        extra = own.shape[1] - grid[0] * grid[1] if grid else -1
        if grid and extra >= 0:
            return resample_abs_pos_embed(value, new_size=list(grid), num_prefix_tokens=extra)
    return None


def _numbers(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _names(names: list[str], most: int = 4) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
