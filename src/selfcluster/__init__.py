"""selfcluster: visual features from unlabeled images by clustering, and the clusters themselves.

Names are imported when first used, so that `import selfcluster` costs nothing and a help text never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "train": "api",
    "embed": "api",
    "cluster": "api",
    "evaluate": "api",
    "search": "api",
    "report": "api",
    "compare": "api",
    "attention": "api",
    "figures": "api",
    "audit": "api",
    "export": "api",
    "sort": "api",
    "sample": "api",
    "demo": "api",
    "doctor": "api",
    "verify": "api",
    "METHODS": "methods",
    "KMeans": "clustering.kmeans",
    "HierarchicalKMeans": "clustering.hierarchical",
    "PowerIterationClustering": "clustering.pic",
    "Whitening": "clustering.whitening",
    "sinkhorn": "clustering.sinkhorn",
    "balanced_assignment": "clustering.balanced",
    "nearest": "clustering.neighbors",
    "choose_k": "clustering.selection",
    "consensus": "clustering.consensus",
    "register_with_timm": "models.registration",
    "load_network": "models.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'selfcluster' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"selfcluster.{_HOME[name]}"), name)
    globals()[name] = value  # once: later look-ups never come here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
