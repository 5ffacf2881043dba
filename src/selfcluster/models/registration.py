"""Our networks join timm's registry as soon as timm is imported, and nothing is imported for it before.

`import selfcluster` must stay free of torch and timm (a help text answers in under a second), yet
`timm.create_model("resnet18_small")` must work after it, whichever of the two was imported first. So where timm is
not there yet, a finder at the head of `sys.meta_path` waits for it and lets our files register right behind it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_timm() -> None:
    """Make `timm.create_model` know the networks of our files, now or when timm comes. Calling it again is free."""
    if "timm" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _register() -> None:
    importlib.import_module("selfcluster.models.classic")
    importlib.import_module("selfcluster.models.classic_vit")
    importlib.import_module("selfcluster.models.alexnet_vgg")
    importlib.import_module("selfcluster.models.folding")


class _AfterTimm(MetaPathFinder):
    """Finds timm as everybody else does, and adds one act to its loader: register our networks afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        # merely asking whether timm exists must not use this finder up, so it leaves only once timm has run
        others = (f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self)
        spec = next((s for s in others if s is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = execute_and_register
        return spec
