"""The methods, one paper a file. `METHODS` maps a name to its class and imports the file on look-up."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

_CLASSES = {
    "byol": "BYOL",
    "clusterfit": "ClusterFit",
    "deepcluster": "DeepCluster",
    "deepcluster_v2": "DeepClusterV2",
    "deepercluster": "DeeperCluster",
    "dino": "DINO",
    "jigsaw": "Jigsaw",
    "moco_v2": "MoCoV2",
    "npid": "NPID",
    "odc": "ODC",
    "rotnet": "RotNet",
    "sela": "SeLa",
    "sela_v2": "SeLaV2",
    "simclr": "SimCLR",
    "supervised": "Supervised",
    "swav": "SwAV",
}
NAMES = tuple(_CLASSES)


def canonical(name: str) -> str:
    """`DeepCluster-v2` and `deepcluster_v2` are one method; an unknown name is answered with the nearest."""
    plain = name.lower().replace("-", "_")
    if plain not in _CLASSES:
        near = difflib.get_close_matches(plain, NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise KeyError(f"no method named {name!r}: {hint}there are {', '.join(NAMES)}")
    return plain


class _Methods(Mapping[str, Any]):
    def __getitem__(self, name: str) -> Any:
        plain = canonical(name)
        return getattr(importlib.import_module(f"selfcluster.methods.{plain}"), _CLASSES[plain])

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


METHODS: Mapping[str, Any] = _Methods()
