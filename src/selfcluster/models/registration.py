"""Our networks in timm's registry, entered when they are asked for: importing selfcluster changes nothing in timm."""

from __future__ import annotations

import difflib
import importlib

_FILES = ("classic", "classic_vit", "alexnet_vgg", "folding")


def register_with_timm() -> None:
    """Make `timm.create_model` know the networks of this package; a second call changes nothing.

    `train`, `embed` and all else here call it. Call it before `timm.create_model(**json.load(open("backbone.json")))`
    rebuilds an exported network of ours.
    """
    for name in _FILES:
        importlib.import_module(f"selfcluster.models.{name}")


def is_network(name: str) -> bool:
    """Whether timm knows the network, ours included."""
    import timm

    register_with_timm()
    return timm.is_model(_plain(name))


def check_name(name: str) -> None:
    """Raise ValueError for a network that is not known, with the nearest that are."""
    if not is_network(name):
        raise ValueError(f"there is no backbone {_plain(name)!r}{nearest_names(_plain(name))}")


def nearest_names(name: str) -> str:
    """Return "; the nearest are NAME, ..." for a misspelt network, or ""."""
    import timm

    near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
    return f"; the nearest are {', '.join(near)}" if near else ""


def _plain(name: str) -> str:
    """The name of the network that a folded one was made of."""
    from selfcluster.models.folding import parts_of

    return parts_of(name).get("network", name)
