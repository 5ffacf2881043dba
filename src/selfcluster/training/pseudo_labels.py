"""Store the labels that a run trains on, one file per epoch, and measure how well successive epochs agree.

Methods that assign offline (DeepCluster, SeLa ...) have new labels at each reassignment. ODC changes its labels at
every step; its labels at the end of an epoch are stored. SwAV and DINO make a code for each view at every step; each
image's last code of its first view is stored. If a method has several heads, the first head's labels are stored. N
images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selfcluster.clustering.scores import nmi
from selfcluster.distributed import all_gather
from selfcluster.methods.base import Method, stability
from selfcluster.runs.folder import RunFolder
from selfcluster.runs.labels import FOLDER, MOST, cut_labels, write_labels
from selfcluster.types import Output, Progress


class PseudoLabels:
    """Stores and scores the labels of a run. Its state is `codes` and `previous`; checkpoints store them.

    `ids`: N ids of the images; `truth`: their classes (N,), -1 = none, or None. Classes are used for the score only.
    """

    def __init__(self, method: Method, ids: Sequence[str], truth: np.ndarray | None, device: torch.device) -> None:
        self.method, self.ids = method, ids
        self.truth = truth if truth is not None and truth.ndim == 1 and (truth >= 0).any() else None
        self.by_codes = method.online and method.pseudo_labels() is None
        self.codes = torch.full((len(ids) if self.by_codes else 0,), -1, dtype=torch.int32, device=device)
        self.previous = torch.full((len(ids) if method.online else 0,), -1, dtype=torch.int32, device=device)

    def load(self, tensors: dict[str, Tensor], folder: RunFolder | None, step: int) -> None:
        """Restore the state from a checkpoint, or begin anew; files with labels of later steps are removed."""
        for name in ("codes", "previous"):
            tensor = getattr(self, name)
            if name in tensors and len(tensors[name]) == len(tensor):
                tensor.copy_(tensors[name])
        if folder is not None:
            cut_labels(folder.path, step)

    def together(self) -> dict[str, Tensor]:
        """Return the merged state of all ranks. All ranks call it."""
        if not self.method.online:
            return {}
        return {"codes": self._merged(), "previous": self.previous}

    @torch.no_grad()
    def begin(self) -> None:
        """Begin an epoch: the labels of a method that assigns at every step become the previous ones."""
        if self.method.online:
            own = self.method.pseudo_labels()
            self.previous.copy_(self._merged() if own is None else own)
            self.codes.fill_(-1)

    @torch.no_grad()
    def see(self, index: Tensor, outputs: Sequence[Output]) -> None:
        """Record the codes of a step that was not skipped. `index` (B,): the images of this rank's outputs."""
        if self.by_codes:
            codes = [output.codes for output in outputs if output.codes is not None]
            self.codes[index.to(self.codes.device)] = torch.cat(codes).to(self.codes)

    def reassigned(self, progress: Progress, folder: RunFolder | None) -> dict[str, float]:
        """Store the labels that a method has made offline; return their NMI with the classes, if there are classes."""
        labels = self.method.pseudo_labels()
        if labels is None or self.method.online or folder is None:
            return {}
        return self._keep(labels, progress, folder)

    @torch.no_grad()
    def epoch(self, progress: Progress, folder: RunFolder | None) -> dict[str, float]:
        """End an epoch: store the labels of a method that assigns at every step; return their scores."""
        if not self.method.online:
            return {}
        own = self.method.pseudo_labels()
        labels = self._merged() if own is None else own.to(torch.int32)
        numbers = stability(self.previous, labels)
        return numbers if folder is None else numbers | self._keep(labels, progress, folder)

    def last(self) -> np.ndarray | None:
        """Return the labels (N,) that the run trained on last, or None if there are none. All ranks call it."""
        labels = self._merged() if self.by_codes else self.method.pseudo_labels()
        return None if labels is None or not (labels >= 0).any() else labels.cpu().numpy()

    def _merged(self) -> Tensor:
        return all_gather(self.codes[None]).max(dim=0).values if self.by_codes else self.codes

    def _keep(self, labels: Tensor, progress: Progress, folder: RunFolder) -> dict[str, float]:
        found = labels.cpu().numpy()
        epochs = -(-progress.total_steps // progress.steps_per_epoch)
        stride = -(-epochs // MOST)
        try:
            write_labels(folder.path, progress.epoch, progress.step, self.ids, found, stride)
        except OSError as error:
            folder.warn_once(FOLDER, error, "training goes on; the labels of this epoch are not stored")
        if self.truth is None or not ((self.truth >= 0) & (found >= 0)).any():
            return {}
        return {"nmi_labels": nmi(self.truth, found)}
