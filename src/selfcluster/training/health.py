"""Health of a run: warn, in words, when it collapses or learns nothing.

Each report has: codes in use, effective clusters (the exponential of their entropy), the largest cluster's share,
and the rank of 1,024 projected features (RankMe, Garrido et al. 2023, arXiv 2210.02885). Signs of collapse: the loss
stays within 1 % of the method's chance level for 5 % of the planned steps (at least 200) after warm-up and any
freezing; RankMe below 2 % of the features' dimension, or a logged `spread` below 0.1, twice in a row; nearly all
images in one cluster, or, twice in a row, effective clusters below 2 % of all clusters (counting at most 1,000). In the
last two cases the assignment's entropy is too low. If it is too high, all predictions are the same, and the loss is at
its chance level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor

from selfcluster.clustering.scores import rankme
from selfcluster.distributed import all_gather, all_reduce
from selfcluster.runs.thresholds import AT_CHANCE, THIN
from selfcluster.types import Output

SAMPLE = 1024  # features for RankMe
_PATIENCE, _FEWEST = 0.05, 200  # share of the planned steps, and the fewest steps, before a warning
_ALIKE = 0.1  # spread of unit features around their mean, where a method logs it: 1 = all directions, 0 = one
_ONE = 0.95  # share of images in one cluster
_FEW, _MOST = 0.02, 1000  # share of at most this many clusters: a small data set uses few of 65,536


class HealthState(TypedDict):
    """What a checkpoint's JSON keeps: steps in a row with a bad sign, and sums since the last report."""

    counts: dict[str, float]
    sums: dict[str, float]


class Health:
    """Counts between reports. Its whole state is in `tensors` and `counts`, which a checkpoint carries."""

    def __init__(
        self, num_codes: int | None, chance: float | None, quiet_steps: int, total_steps: int, advice: str = ""
    ) -> None:
        self.chance = chance
        self.advice = advice  # the method's own, for the user
        self.patience = max(_FEWEST, int(_PATIENCE * total_steps))
        self.quiet_steps = quiet_steps
        self.tensors: dict[str, Tensor] = {"codes": torch.zeros(num_codes or 0), "features": torch.zeros(0, 0)}
        self.counts: dict[str, float] = {"at_chance": 0, "thin": 0, "few": 0}
        self._sums: dict[str, float] = {}

    @torch.no_grad()
    def see(self, step: int, values: dict[str, float], outputs: list[Output], sample: bool) -> None:
        """Record a step that was not skipped. `values`: its logged numbers; `sample`: keep its features."""
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._sums["steps"] = self._sums.get("steps", 0.0) + 1
        chance = values.get("chance_loss", self.chance)  # a method whose level depends on the batch logs its own
        near = chance is not None and abs(values["loss"] - chance) <= AT_CHANCE * chance
        self.counts["at_chance"] = self.counts["at_chance"] + 1 if near and step >= self.quiet_steps else 0
        for output in outputs:
            codes = self.tensors["codes"]
            if output.codes is not None and len(codes):
                seen = output.codes.flatten()
                codes = codes.to(seen.device)  # -1 = none; a count by `bincount` would wait for the device
                self.tensors["codes"] = codes.index_add(0, seen.clamp(min=0), (seen >= 0).to(codes))
            if sample and output.features is not None:
                rows = all_gather(output.features.detach().float())
                kept = self.tensors["features"].to(rows.device)
                kept = kept if kept.numel() else rows[:0]
                self.tensors["features"] = torch.cat([kept, rows])[-SAMPLE:]

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """Return the row of numbers since the last report, over all ranks, and reset the counts."""
        steps = self._sums.pop("steps", 0.0)
        row: dict[str, float] = {key: value / steps for key, value in self._sums.items()} if steps else {}
        self._sums = {}
        if self.chance is not None:
            row.setdefault("chance_loss", self.chance)
        codes = all_reduce(self.tensors["codes"])
        if codes.sum() > 0:
            row["used_codes"] = int((codes > 0).sum())
            row["effective_clusters"] = float(torch.special.entr(codes / codes.sum()).sum().exp())
            row["largest_share"] = float(codes.max() / codes.sum())
            few = row["effective_clusters"] < _FEW * min(len(codes), _MOST, float(codes.sum()))
            self.counts["few"] = self.counts["few"] + 1 if few else 0
        features = self.tensors["features"]
        if len(features) > 1:
            row["rankme"] = rankme(features)
            thin = row["rankme"] < max(1.5, THIN * min(features.shape)) or row.get("spread", 1.0) < _ALIKE
            self.counts["thin"] = self.counts["thin"] + 1 if thin else 0
        self.tensors = {"codes": torch.zeros_like(codes), "features": features[:0]}
        return row

    def verdict(self, row: Mapping[str, float]) -> str | None:
        """Return in words what has collapsed and what to try; None if nothing has."""
        if self.counts["at_chance"] >= self.patience:
            return (
                f"collapse: the loss has stayed at its chance level {row['chance_loss']:.3f} for "
                f"{int(self.counts['at_chance'])} steps, so nothing is being learned. {self.advice}"
            )
        if self.counts["thin"] >= 2:
            spread = f" (spread {row['spread']:.2f}; 0: all are equal)" if "spread" in row else ""
            return (
                f"collapse: the features use only {row['rankme']:.1f} dimensions{spread}, so all images look alike. "
                f"{self.advice}"
            )
        if row.get("largest_share", 0.0) > _ONE and len(self.tensors["codes"]) > 2:
            return (
                f"collapse: {row['largest_share']:.0%} of the images share one cluster. {self.advice} A set of "
                "images that really are all alike gives the same message."
            )
        if self.counts["few"] >= 2:
            return (
                f"collapse: nearly all images share {row['effective_clusters']:.1f} of {len(self.tensors['codes'])} "
                f"clusters. {self.advice}"
            )
        return None

    def state(self) -> HealthState:
        """Return the part of the state for a checkpoint's JSON; the tensors are stored separately."""
        return {"counts": self.counts, "sums": self._sums}

    def together(self) -> dict[str, Tensor]:
        """Return `tensors` with the counts of all ranks. All ranks call it together."""
        return {**self.tensors, "codes": all_reduce(self.tensors["codes"])}

    def load(self, state: HealthState, tensors: dict[str, Tensor], mine: bool = True) -> None:
        """Restore `state` and `tensors`. The counts of all ranks go to one rank, for which `mine` is True."""
        self.counts |= state["counts"]
        self._sums, self.tensors = dict(state["sums"]), tensors
        if not mine:
            self.tensors["codes"] = torch.zeros_like(tensors["codes"])
