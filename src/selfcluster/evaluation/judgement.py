"""Training against its start: is the trained network better than the one that training began with?

A run embeds a seeded sample of its images before the first step and again at the end, and compares the two by measures
that need no labels (`unlabeled.py`). The sample's features and, with `--init`, the start network are kept in
`RUN/start/`, so that a resumed run compares with the same start. Labels, where there are any, only add a number to the
report: the choice never depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfcluster import distributed
from selfcluster.data.loader import Loader
from selfcluster.data.order import shuffled
from selfcluster.data.sources import Source
from selfcluster.evaluation import unlabeled
from selfcluster.evaluation.unlabeled import Crops
from selfcluster.files import write_atomically
from selfcluster.methods.base import Method
from selfcluster.models.backbones import WEIGHTS, save_backbone
from selfcluster.models.preprocessing import Preprocessing
from selfcluster.runs.console import Console
from selfcluster.training.build import Parts, has_start
from selfcluster.training.embedding import gather_rows, make_embed
from selfcluster.training.loop import LoopSettings
from selfcluster.views.plans import ViewGroup, ViewPlan

START, END = "start", "end"  # folders of the two networks
_SAMPLE = "sample.safetensors"
_CROP = (0.25, 0.75)  # share of the image's area in the crop that is compared with the center view
_FEWEST = 16  # images
_REMEMBERED = 0.65  # share of neighbors below which a pretrained network has been damaged


@dataclass
class Judge:
    """Compares the networks of one run on a sample of its images. All ranks call the same methods.

    Attributes:
        method: whose `encode` is compared.
        loader: of the sample.
        loop: device, precision and seed.
        images: how the network's images are prepared.
        run: the run folder.
        pretrained: whether training began with given weights.
        writes: whether this process writes to the run folder.
        console: where the result is printed.
    """

    method: Method
    loader: Loader
    loop: LoopSettings
    images: Preprocessing
    run: Path
    pretrained: bool
    writes: bool
    console: Console

    def before(self) -> None:
        """Embed the sample with the start network and keep the result; nothing is done where it is there already."""
        import safetensors.torch

        if distributed.broadcast_object((self.run / START / _SAMPLE).is_file()):
            return
        index, views = self._embed()
        if not self.writes:
            return
        if self.pretrained:
            self._save(START)
        tensors = {"index": index, "center": views.center, "crop": views.crop}
        (self.run / START).mkdir(exist_ok=True)
        content = safetensors.torch.save({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()})
        write_atomically(self.run / START / _SAMPLE, content)

    def epoch(self) -> dict[str, float]:
        """Measure the network as it is now; returns numbers for a row of metrics."""
        index, views = self._embed()
        start = self._start(index)
        measured: dict[str, float] = {}
        if self.writes:
            with distributed.alone():  # the other ranks do not measure
                measured = unlabeled.measure(views, None, start, self._labels(index), self.loop.seed)
        return {f"judge_{name}": value for name, value in measured.items() if name not in ("images", "clusters")}

    def after(self, keep: str | None) -> dict[str, Any]:
        """Compare the network with the start, and put the start's weights back where they are to be kept.

        Args:
            keep: "start", "end" or "best" (the better of the two); None: best where training began with given weights,
                else end.

        Returns:
            The judgement for the run's summary: images, kept, better (True, False, or None where nothing was
            compared), reason, start and end (the measures of both).
        """
        if keep is None:
            keep = "best" if self.pretrained else END
        index, views = self._embed()
        judgement: dict[str, Any] = {}
        if self.writes:
            with distributed.alone():  # the other ranks do not measure
                judgement = self._compare(index, views)
            judgement["kept"] = keep if keep != "best" else END if judgement["better"] is not False else START
            judgement["rule"] = keep
        judgement = distributed.broadcast_object(judgement)
        if judgement["kept"] == START:
            if self.writes:
                self._save(END)
            self._restore()
        self.console.say(describe(judgement))
        return judgement

    def _compare(self, index: np.ndarray, views: Crops) -> dict[str, Any]:
        start = self._start(index)
        if start is None:
            return {"images": 0, "better": None, "reason": "the start was not embedded, so nothing was compared"}
        rows, surface = unlabeled.read_surface(self.loader.source, index)
        if len(rows) < len(index):  # an image vanished between the two readings
            keep = np.isin(index, rows)
            index = index[keep]
            views, start = (Crops(v.center[keep], v.crop[keep]) for v in (views, start))
        labels, seed = self._labels(index), self.loop.seed
        first = unlabeled.measure(start, surface, None, labels, seed)
        last = unlabeled.measure(views, surface, start, labels, seed)
        better, reason = decide(first, last, self.pretrained)
        return {
            "images": len(index),
            "better": better,
            "reason": reason,
            "start": _rounded(first),
            "end": _rounded(last),
        }

    def _embed(self) -> tuple[np.ndarray, Crops]:
        embed = make_embed(
            self.method, self.loader, _plan(self.images), device=self.loop.device, precision=self.loop.precision
        )
        index, center = gather_rows(embed(lambda views: self.method.encode(views[0])))
        _, crop = gather_rows(embed(lambda views: self.method.encode(views[0]), view="train"))
        return index, Crops(center, crop)

    def _start(self, index: np.ndarray) -> Crops | None:
        """The start's features of the images `index`; None where they were not kept or an image is not among them."""
        import safetensors.numpy

        path = self.run / START / _SAMPLE
        if not path.is_file():
            return None
        kept = safetensors.numpy.load(path.read_bytes())
        place = {int(row): at for at, row in enumerate(kept["index"])}
        rows = [place[int(row)] for row in index if int(row) in place]
        return Crops(kept["center"][rows], kept["crop"][rows]) if len(rows) == len(index) else None

    def _labels(self, index: np.ndarray) -> np.ndarray | None:
        labels = self.loader.source.labels
        return None if labels is None or labels.ndim != 1 else labels[index]

    def _save(self, folder: str) -> None:
        images = self.images
        save_backbone(self.run / folder, self.method.exported(), images.mean, images.std, images.image_size)

    def _restore(self) -> None:
        """Load the start's weights into the network that is exported. All ranks can read the run folder."""
        import safetensors.torch

        path = self.run / START / WEIGHTS
        if not path.is_file():
            raise ValueError(f"--keep start: {path} does not exist; the start's weights are kept with --init only")
        self.method.exported().load_state_dict(safetensors.torch.load_file(path))


def make_judge(config: Mapping[str, Any], source: Source, parts: Parts, run: Path, console: Console) -> Judge | None:
    """Return the judge of a run, or None where there are too few images or `--judge-sample` is 0.

    Args:
        config: the run's whole configuration.
        source: the run's images.
        parts: of the run.
        run: the run folder.
        console: where the result is printed.
    """
    count = min(config.get("judge_sample", 0), len(source))
    if count < _FEWEST:
        return None
    world, loop = distributed.world_size(), parts.loop
    rows = np.sort(shuffled(len(source), loop.seed, "judge")[:count])
    loader = Loader(
        source.take(rows),
        **parts.images.loader_arguments(),
        batch_size=max(world, min(config["batch_size"], count) // world * world),
        seed=loop.seed,
        device=loop.device,
        workers=config["workers"],
        max_bad=1.0,
        rank=distributed.rank(),
        world=world,
    )
    pretrained, writes = config.get("init") is not None or has_start(config), distributed.rank() == 0
    return Judge(parts.method, loader, loop, parts.images, run, pretrained, writes, console)


def decide(start: Mapping[str, float], end: Mapping[str, float], pretrained: bool) -> tuple[bool, str]:
    """Return whether the end is better than the start, and why, in words.

    The rule: the trained network is better if more images find their own other crop than at the start. A pretrained
    network must also keep most of what it knew: an image's neighbors must share at least 0.65 with the start's. No
    difference is no gain. In `docs/pretrained.md` the rule is compared with the change of 20-NN.
    """
    first, last = start["retrieval"], end["retrieval"]
    told = f"{last:.1%} of the images find their own other crop, {first:.1%} did at the start"
    overlap = end.get("start_overlap", 1.0)
    if last <= first:
        return False, f"not better than the start: {told}"
    if pretrained and overlap < _REMEMBERED:
        return False, f"not better than the start: only {overlap:.0%} of the images' neighbors are those of the start"
    return True, f"better than the start: {told}"


def describe(judgement: Mapping[str, Any]) -> str:
    """Return the judgement as lines for the console."""
    kept = {START: "the start network is kept", END: "the trained network is kept"}[judgement["kept"]]
    lines = [f"{judgement['reason']}; {kept}"]
    if "start" in judgement:
        first, last = judgement["start"], judgement["end"]
        names = [name for name in _SHOWN if name in first and name in last]
        lines += [f"  {_SHOWN[name]:<46}{first[name]:>8.3f} -> {last[name]:.3f}" for name in names]
        if "start_overlap" in last:
            lines.append(f"  {'neighbors shared with the start':<46}{'':>8}    {last['start_overlap']:.3f}")
    return "\n".join(lines)


_SHOWN = {
    "retrieval": "images that find their own other crop",
    "crop_overlap": "neighbors shared by two crops of an image",
    "rankme": "dimensions in use (RankMe)",
    "agreement": "agreement of clusterings over seeds (AMI)",
    "by_color": "clusters explained by color (AMI)",
    "by_file_size": "clusters explained by file size (AMI)",
    "by_aspect": "clusters explained by aspect ratio (AMI)",
    "knn": "20-NN on the labels",
}


def _plan(images: Preprocessing) -> ViewPlan:
    """One crop of the image, without flip or color: what is left of the content must do."""
    group = ViewGroup(count=1, size=images.image_size, scale=_CROP, flip_p=0.0, interpolation=images.interpolation)
    return ViewPlan(groups=(group,))


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
