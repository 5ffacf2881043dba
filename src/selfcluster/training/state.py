"""The state of a run at a step, and how it is saved and loaded. Everything else depends on the step only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcluster import distributed
from selfcluster.data.sources import Source
from selfcluster.files import message_of
from selfcluster.methods.base import Method
from selfcluster.models.convolution import uses_tiles
from selfcluster.runs import checkpoint
from selfcluster.runs.console import Console
from selfcluster.runs.folder import RunError, RunFolder
from selfcluster.training.health import Health
from selfcluster.training.online_probe import OnlineProbe
from selfcluster.training.optim import load_optimizer_tensors, optimizer_tensors
from selfcluster.training.pseudo_labels import PseudoLabels
from selfcluster.training.shards import Shards

DIVERGED = "diverged"  # folder of the weights and images of a run that ended because its loss was not finite
log = logging.getLogger("selfcluster.training")
_META_KEYS = {"step", "skipped", "reassignment", "health", "metrics_rows", "layout", "shards"}


@dataclass(frozen=True)
class Skipped:
    """A step that was skipped because its loss or gradient norm is not finite. `index`: this rank's images."""

    step: int
    loss: float
    gradient_norm: float
    index: Tensor


@dataclass
class RunState:
    """`step`: steps done; `skipped`: how many of them were skipped; `reassignment`: its last numbers."""

    method: Method
    optimizer: torch.optim.Optimizer
    health: Health
    labels: PseudoLabels
    folder: RunFolder | None  # None on all ranks but the first, and if nothing is written
    layout: dict[str, Any]
    probe: OnlineProbe
    source: Source
    steps_per_epoch: int
    step: int = 0
    skipped: int = 0
    reassignment: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shards = Shards(self.method)
        self.checkpoints: Path | None = None  # all ranks read checkpoints there and save their shards there

    def save(self, replace: bool = False) -> None:
        """Write a checkpoint. All ranks call it, and rank 0 writes what is the same on all ranks.

        `replace`: overwrite a whole checkpoint of this step, because it was made with other data.
        """
        health, labels = self.health.together(), self.labels.together()
        if self.folder is None and not self.shards.names:
            return
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        optimizer = optimizer_tensors(self.optimizer, self.method)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}
        self.shards.save(self.checkpoints, self.step, tensors)
        if self.folder is None:
            return
        tensors |= {f"health.{name}": tensor for name, tensor in health.items()}
        tensors |= {f"labels.{name}": tensor for name, tensor in labels.items()}
        tensors |= {f"probe.{name}": tensor for name, tensor in self.probe.tensors.items()}
        meta = {
            "step": self.step,
            "skipped": self.skipped,
            "reassignment": self.reassignment,
            "health": self.health.state(),
            "metrics_rows": self.folder.rows,
            "layout": self.layout,
            "shards": self.shards.files,
            "settings": self.folder.settings,
            "data": self.source.summary(),
            "steps_per_epoch": self.steps_per_epoch,
        }
        checkpoint.save(self.folder.checkpoints, self.step, tensors, meta, replace=replace)

    def dump(self, skipped: Sequence[Skipped], name_of: Callable[[int], str]) -> Path | None:
        """Write the weights and the images of the skipped steps, with which these steps can be repeated.

        A skipped step does not change the weights, so they are the same for all these steps. All ranks call it.

        Returns:
            The folder `RUN/diverged/step-*`, a checkpoint with the method's tensors. Its `meta.json` lists the steps
            with loss, gradient norm and images. None if the run has no folder or the disk is full.
        """
        images = [distributed.gather_objects(each.index.tolist()) for each in skipped]
        if self.checkpoints is None:
            return None
        folder = self.checkpoints.parent / DIVERGED
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        steps = [
            {"step": each.step, "loss": str(each.loss), "gradient_norm": str(each.gradient_norm)}
            | {"images": [name_of(i) for part in parts for i in part]}
            for each, parts in zip(skipped, images, strict=True)
        ]
        try:
            self.shards.save(folder, self.step, tensors)
            if self.folder is not None:
                meta = {"step": self.step, "skipped": steps, "shards": self.shards.files}
                return checkpoint.save(folder, self.step, tensors, meta, keep=1, replace=True)
        except OSError as error:  # it must not hide why the run ended
            log.warning("the weights and images of the skipped steps are not stored: %s", message_of(error))
        return None

    def load(self, checkpoints: Path | None, console: Console) -> None:
        """Load the newest whole checkpoint, if there is one; warn about newer ones that are damaged."""
        self.checkpoints = checkpoints
        loaded, complaints = checkpoint.load_newest(checkpoints) if checkpoints is not None else (None, [])
        if loaded is not None and (missing := _META_KEYS - loaded.meta.keys()):
            raise checkpoint.BrokenCheckpoint(f"{loaded.path}: meta.json has no {', '.join(sorted(missing))}")
        for complaint in complaints:
            console.warn(
                f"{complaint}; {'using the checkpoint before it' if loaded else 'the run starts from the beginning'}"
            )
        steps = distributed.gather_objects(loaded.meta["step"] if loaded else 0)
        if len(set(steps)) > 1:
            raise checkpoint.BrokenCheckpoint(
                f"{checkpoints}: the processes see different checkpoints, of the steps {steps}. All of them need "
                "the same run folder: check that --out is on storage that they share"
            )
        if self.folder is not None:
            checkpoint.clean(self.folder.checkpoints, steps[0])
            self.folder.cut_metrics(loaded.meta["metrics_rows"] if loaded else 0)
        self.labels.load(section(loaded.tensors, "labels.") if loaded else {}, self.folder, steps[0])
        if loaded is None:
            return
        device = next(self.method.parameters()).device
        own = self.method.state_dict()
        tensors = self.shards.load(loaded, {f"method.{name}" for name in own})
        stored = section(tensors, "method.")
        different = own.keys() - stored.keys() if self.shards.names else own.keys() ^ stored.keys()
        if different:  # a shard reads more than it holds if fewer processes wrote the checkpoint
            raise checkpoint.BrokenCheckpoint(
                f"{loaded.path}: the checkpoint has other tensors than this method: {sorted(different)}"
            )
        change = self.source.difference(loaded.meta["data"]) if "data" in loaded.meta else ""
        if change:
            self._check_change(loaded.meta["data"], change)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(stored[name])  # in place, because others may hold a reference to the tensor
        load_optimizer_tensors(self.optimizer, self.method, section(tensors, "optimizer."))
        seen = {k: v.to(device) for k, v in section(loaded.tensors, "health.").items()}
        self.health.load(loaded.meta["health"], seen, mine=distributed.rank() == 0)
        self.probe.load(section(loaded.tensors, "probe."))
        self.step, self.skipped = loaded.meta["step"], loaded.meta["skipped"]
        self.reassignment = loaded.meta["reassignment"]
        earlier = loaded.meta["layout"]
        for key in {**earlier, **self.layout}:  # of either
            before = earlier.get(key)
            if self.layout.get(key) != before:
                console.warn(
                    f"{key} was {before} and is {self.layout.get(key)}: "
                    "the run continues, but its result is no longer bit-exact"
                )
        if change:
            epochs = self.step // loaded.meta["steps_per_epoch"]
            self.step = epochs * self.steps_per_epoch
            console.say(f"the data has changed ({change}): epoch {epochs} begins again")
            self.save(replace=True)
        console.say(f"resuming at step {self.step}")

    def _check_change(self, then: Mapping[str, object], change: str) -> None:
        """Raise RunError if the method keeps a value for each image, and the images are no longer the same."""
        kind = type(self.method)
        if kind.per_image and self.source.summary()["ids"] != then.get("ids"):
            raise RunError(
                f"{change}. {kind.__name__} stores a value for each image, so this run cannot resume with other "
                "images. Restore the data, or choose another --out for a new run"
            )


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under names without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def layout_of(
    method: Method, device: torch.device, precision: str, in_memory: bool, compiled: bool, products: bool
) -> dict[str, str | int]:
    """Return what must be the same so that a resumed run equals an uninterrupted one bit for bit."""
    return {
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "precision": precision,
        "in_memory": in_memory,
        **({"compiled": True} if compiled else {}),
        **({"weight_gradients": "products"} if products else {}),
        **({"convolutions": "by tiles"} if products and precision == "fp32" and uses_tiles(method) else {}),
        "torch": str(torch.__version__),
    }
