"""A linear classifier that is trained beside a method, to watch its features: `--probe-labels`.

The features are detached, so the classifier changes neither the method's losses nor its weights. A seeded fifth of the
labeled images is held out; the accuracy on these is logged as `probe_accuracy`. The probe uses the features of the
first view, in training mode. The number shows how a run develops; `evaluate linear` scores its end.
The features of a batch are standardized over the batch; each process does so for its own part. Then they are divided
by the square root of F, which bounds the curvature. So one learning rate (1, with momentum 0.9) suits every network.

N images, B per batch, F features, L classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster.annotations import Data
from selfcluster.data.errors import LabelsError
from selfcluster.data.order import shuffled
from selfcluster.data.sources import Source, open_source
from selfcluster.distributed import all_reduce
from selfcluster.methods.base import Method
from selfcluster.types import Batch, Progress
from selfcluster.views.pretext import CELLS

_RATE, _MOMENTUM, _HELD_OUT = 1.0, 0.9, 0.2


def read_probe_labels(source: Source, data: Data, labels_from: str) -> np.ndarray:
    """Return the labels (N,) of the images of a source, -1 = none.

    Args:
        source: N images.
        data: the data from which `source` was opened.
        labels_from: source of the labels, as for `open_source`. Images without an entry have no label.

    Raises:
        LabelsError: images have several labels, or there are fewer than two classes.
    """
    try:
        known = open_source(data, labels_from=labels_from)
    except LabelsError as error:
        raise LabelsError(f"--probe-labels {labels_from}: {error}") from error
    if known.labels is None or known.labels.ndim != 1:
        raise LabelsError(
            f"--probe-labels {labels_from}: the probe takes one label per image, and these images have several"
        )
    label_of = dict(zip(known.ids, known.labels.tolist(), strict=True))
    labels = np.array([label_of.get(name, -1) for name in source.ids], np.int64)
    classes = np.unique(labels[labels >= 0])
    if len(classes) < 2:
        count = int((labels >= 0).sum())
        raise LabelsError(
            f"--probe-labels {labels_from}: {count} of {len(source)} images have a label, of {len(classes)} class"
            f"{'' if len(classes) == 1 else 'es'}; a classifier needs two classes"
        )
    return np.where(labels >= 0, np.searchsorted(classes, labels), -1)


class OnlineProbe:
    """The classifier, its momentum and its counts since the last report; checkpoints store them.

    Args:
        method: the probe uses its backbone's features.
        labels: (N,), -1 = none; None: there is no probe, and the methods do nothing.
        device: device of the features.
        seed: draws the held-out images.
    """

    def __init__(self, method: Method, labels: np.ndarray | None, device: torch.device, seed: int = 0) -> None:
        self.method, self.labels = method, None if labels is None else torch.as_tensor(labels)
        self.tensors: dict[str, Tensor] = {}
        self._rows: list[Tensor] = []
        self._wanted: tuple[int, int] | None = None  # images and patches an image of the next pass
        if self.labels is None:
            return
        backbone: Any = method.backbone
        classes, width = int(self.labels.max()) + 1, backbone.num_features
        shapes = {"weight": (classes, width), "bias": (classes,), "weight_speed": (classes, width)}
        shapes |= {"bias_speed": (classes,), "hits": (), "seen": ()}
        self.tensors = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        known = np.flatnonzero(self.labels.numpy() >= 0)
        order = known[shuffled(len(known), seed, "online probe")]
        self.held_out = torch.zeros(len(self.labels), dtype=torch.bool)
        self.held_out[torch.as_tensor(order[: max(1, round(_HELD_OUT * len(order)))])] = True
        method.register_forward_pre_hook(self._expect)
        backbone.register_forward_hook(self._keep)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state from a checkpoint."""
        for name, tensor in self.tensors.items():
            if name in tensors:
                tensor.copy_(tensors[name])

    @torch.no_grad()
    def learn(self, index: Tensor) -> None:
        """Score the held-out images of a step (B,) and train on the others; all ranks call it."""
        rows, self._rows = self._rows, []
        if self.labels is None or not rows:
            return
        x, index = torch.cat(rows), index.cpu()
        y, held = self.labels[index].to(x.device), self.held_out[index].to(x.device)
        finite = x.isfinite().all(dim=1)
        x = torch.where(finite[:, None], x, 0)
        x = (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt() / x.shape[1] ** 0.5  # (B, F)
        scores = F.linear(x, self.tensors["weight"], self.tensors["bias"])  # (B, L)
        counts = held & (y >= 0)
        hits = (counts & finite & (scores.argmax(dim=1) == y)).sum()
        trains = ~held & (y >= 0) & finite
        error = scores.softmax(dim=1) - F.one_hot(y.clamp(min=0), scores.shape[1])
        error = error * trains[:, None]
        gradient = torch.cat([(error.t() @ x).flatten(), error.sum(dim=0)])
        flat = torch.cat([gradient, torch.stack([trains.sum(), hits, counts.sum()]).float()])
        flat = all_reduce(flat)
        number, hits, seen = flat[-3:]
        gradient = flat[:-3] / number.clamp(min=1)
        weight, bias = gradient.split([self.tensors["weight"].numel(), len(self.tensors["bias"])])
        for name, part in (("weight", weight), ("bias", bias)):
            speed = self.tensors[f"{name}_speed"].mul_(_MOMENTUM).add_(part.view_as(self.tensors[name]))
            self.tensors[name].sub_(speed, alpha=_RATE)
        self.tensors["hits"] += hits
        self.tensors["seen"] += seen

    def report(self) -> dict[str, float]:
        """Return the accuracy on held-out images since the last call; an empty dict if there was none."""
        if self.labels is None:
            return {}
        hits, seen = (float(self.tensors[name]) for name in ("hits", "seen"))
        self.tensors["hits"].zero_()
        self.tensors["seen"].zero_()
        return {"probe_accuracy": hits / seen} if seen else {}

    def _expect(self, method: nn.Module, given: tuple[Batch, Progress]) -> None:
        batch = given[0]
        self._wanted = len(batch.index), CELLS if batch.views[0].dim() == 5 else 1

    def _keep(self, backbone: nn.Module, given: object, out: Tensor) -> None:
        """Keep the first view's features: the first rows of the first backbone pass within a forward."""
        if self._wanted is None:
            return
        images, patches = self._wanted
        self._wanted = None
        rows = self.method.final_relu(out.detach()[: images * patches]).float()
        self._rows.append(rows.unflatten(0, (images, patches)).mean(dim=1))
