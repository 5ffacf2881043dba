"""Our networks in timm's registry, entered when they are asked for: importing selfcluster changes nothing in timm."""

from __future__ import annotations

import importlib

_FILES = ("classic", "classic_vit", "alexnet_vgg", "folding")


def register_with_timm() -> None:
    """Make `timm.create_model` know the networks of this package; a second call changes nothing.

    `train`, `embed` and all else here call it. Call it before `timm.create_model(**json.load(open("backbone.json")))`
    rebuilds an exported network of ours.
    """
    for name in _FILES:
        importlib.import_module(f"selfcluster.models.{name}")
