"""Training against its start: is the trained network better than the one that training began with?

A run embeds a seeded sample of its images before the first step and again at the end, and compares the two by measures
that need no labels (`unlabeled.py`). If training began with given weights, the network that is compared and kept is the
mean of the weights of start and end (Wortsman et al. 2022, arXiv 2109.01903). The sample's features and, with `--init`,
the start network are kept in `RUN/start/`, so that a resumed run compares with the same start. If there are
labels, they only add a number to the report: the choice never depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfcluster import distributed
from selfcluster.choice import RunSettings
from selfcluster.data.loader import Loader
from selfcluster.data.order import shuffled
from selfcluster.data.sources import Source
from selfcluster.evaluation import unlabeled
from selfcluster.evaluation.unlabeled import Crops
from selfcluster.files import make_writable, write_atomically
from selfcluster.methods.base import Method
from selfcluster.models.backbones import WEIGHTS, save_backbone
from selfcluster.models.preprocessing import Preprocessing
from selfcluster.runs.console import Console
from selfcluster.runs.folder import END, START, START_SAMPLE
from selfcluster.training.build import Parts, has_start
from selfcluster.training.embedding import gather_rows, make_embed
from selfcluster.training.loop import LoopSettings
from selfcluster.views.plans import ViewGroup, ViewPlan

HALF = "half"
_CROP = (0.25, 0.75)  # share of the image's area in the crops that are compared with the center view
_SMALL = (0.1, 0.25)  # the same for the smaller crops, smaller than the training views of `auto`
CROPS = 2  # crops of each kind
_FEWEST = 16  # images


@dataclass
class Judge:
    """Compares the networks of one run on a sample of its images. All ranks call the same methods.

    Attributes:
        method: its `encode` is compared.
        loader: of the sample; None if nothing is compared.
        count: images in the sample that were asked for; below 16 nothing is compared.
        loop: device, precision and seed.
        images: how the network's images are prepared.
        run: the run folder.
        pretrained: whether training began with given weights.
        writes: whether this process writes to the run folder.
        console: where the result is printed.
    """

    method: Method
    loader: Loader | None
    count: int
    loop: LoopSettings
    images: Preprocessing
    run: Path
    pretrained: bool
    writes: bool
    console: Console

    def before(self) -> None:
        """Embed the sample with the start network and store the result, unless it is stored already.

        A run that began with given weights also stores the start network.
        """
        import safetensors.torch

        done = START_SAMPLE if self.loader is not None else Path(START, WEIGHTS)
        if distributed.broadcast_object((self.run / done).is_file()):
            return
        if self.loader is None:
            if self.writes:
                self._save(START)
            return
        index, views = self._embed(self.loader)
        if not self.writes:
            return
        if self.pretrained:
            self._save(START)
        tensors = {"index": index, "center": views.center, "crop": views.crop, "small": views.small}
        make_writable(self.run / START)
        content = safetensors.torch.save({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()})
        write_atomically(self.run / START_SAMPLE, content)

    def epoch(self) -> dict[str, float]:
        """Measure the network in its present state; return numbers for a row of metrics, none without a sample."""
        if self.loader is None:
            return {}
        index, views = self._embed(self.loader)
        start = self._start(index)
        measured: dict[str, float] = {}
        if self.writes:
            with distributed.alone():  # the other ranks do not measure
                measured = unlabeled.measure(views, None, start, _labels(self.loader, index), self.loop.seed)
        return {f"judge_{name}": value for name, value in measured.items() if name not in ("images", "clusters")}

    def after(self, keep: str | None) -> dict[str, Any]:
        """Compare the network with the start, and load the weights to keep.

        Args:
            keep: "start", "half" (the mean of the weights of start and end), "end", or "best": half if it is better
                than the start beyond noise, else the start, also if nothing could be compared. Without given weights
                "best" is the end, and the comparison is only reported. None: best if training began with given
                weights, else end.

        Returns:
            The judgement for the run's summary. images: how many; kept; compared: "half" or "end". verdict: "better",
            "worse" or "unclear", or None if nothing was compared; better: whether it is "better", or None. reason:
            in words. start, end and, if it was compared, half: the measures of each.
        """
        if keep is None:
            keep = "best" if self.pretrained else END
        index, found = np.zeros(0, np.int64), {}
        if self.loader is not None:
            index, found[END] = self._embed(self.loader)
        weights: dict[str, dict[str, torch.Tensor]] = {}  # of the networks that may replace the trained one
        if self.pretrained and keep != END:
            end = {name: tensor.cpu().clone() for name, tensor in self.method.exported().state_dict().items()}
            start = self._start_weights()
            weights = {START: start, HALF: mixed(start, end)}
            if self.loader is not None:
                self._load(weights[HALF])
                halfway, found[HALF] = self._embed(self.loader)
                self._load(end)
                both, at_end, at_half = np.intersect1d(index, halfway, assume_unique=True, return_indices=True)
                index, found = both, {END: found[END].take(at_end), HALF: found[HALF].take(at_half)}
        judgement: dict[str, Any] = {}
        if self.writes:
            with distributed.alone():  # the other ranks do not measure
                judgement = self._compare(self.loader, index, found)
            best = END if not self.pretrained else HALF if judgement["better"] else START
            judgement["kept"] = best if keep == "best" else keep
            judgement["rule"] = keep
        judgement = distributed.broadcast_object(judgement)
        if judgement["kept"] != END:
            if self.writes:
                self._save(END)
            self._load(weights[judgement["kept"]] if weights else self._start_weights())
        self.console.say(describe(judgement))
        return judgement

    def _compare(self, loader: Loader | None, index: np.ndarray, found: dict[str, Crops]) -> dict[str, object]:
        if loader is None:
            return _nothing(f"{self.count} images are fewer than {_FEWEST}" if self.count else "--judge-sample is 0")
        start = self._start(index)
        if start is None:
            return _nothing("the start was not embedded")
        rows, surface = unlabeled.read_surface(loader.source, index)
        if len(rows) < _FEWEST:
            return _nothing(f"only {len(rows)} images of the sample can still be read", len(rows))
        if len(rows) < len(index):  # an image vanished between the two readings
            keep = np.flatnonzero(np.isin(index, rows))
            index, start, found = index[keep], start.take(keep), {name: v.take(keep) for name, v in found.items()}
        labels, seed = _labels(loader, index), self.loop.seed
        compared = HALF if HALF in found else END
        name = "mean network" if compared == HALF else "trained network"
        verdict, reason = decide(start, found[compared], self.pretrained, name)
        measured = {name: unlabeled.measure(v, surface, start, labels, seed) for name, v in found.items()}
        return {
            "images": len(index),
            "compared": compared,
            "verdict": verdict,
            "better": verdict == "better",
            "reason": reason,
            "start": _rounded(unlabeled.measure(start, surface, None, labels, seed)),
            **{name: _rounded(values) for name, values in measured.items()},
        }

    def _embed(self, loader: Loader) -> tuple[np.ndarray, Crops]:
        encode = self.method.encode
        embed = make_embed(
            self.method, loader, crop_plan(self.images), device=self.loop.device, precision=self.loop.precision
        )
        index, center = gather_rows(embed(lambda views: encode(views[0])))
        crops = embed(lambda views: torch.cat([encode(view) for view in views], dim=1), view="train")  # one decode
        second, rows = gather_rows(crops)
        rows = rows.reshape(len(second), 2 * CROPS, -1).swapaxes(0, 1)
        # an image may become bad between the two passes
        both, first_at, second_at = np.intersect1d(index, second, assume_unique=True, return_indices=True)
        return both, Crops(center[first_at], rows[:CROPS, second_at], rows[CROPS:, second_at])

    def _start(self, index: np.ndarray) -> Crops | None:
        """Return the start's features of the images `index`; None if they were not stored or an image is missing."""
        import safetensors.numpy

        path = self.run / START_SAMPLE
        if not path.is_file():
            return None
        kept = safetensors.numpy.load(path.read_bytes())
        place = {int(row): at for at, row in enumerate(kept["index"])}
        rows = [place[int(row)] for row in index if int(row) in place]
        if len(rows) < len(index) or "small" not in kept:  # a run of an older release has no smaller crops
            return None
        return Crops(kept["center"], kept["crop"], kept["small"]).take(rows)

    def _save(self, folder: str) -> None:
        images = self.images
        save_backbone(self.run / folder, self.method.exported(), images.mean, images.std, images.image_size)

    def _start_weights(self) -> dict[str, torch.Tensor]:
        """The start's weights. All ranks can read the run folder."""
        import safetensors.torch

        path = self.run / START / WEIGHTS
        if not path.is_file():
            raise ValueError(f"{path} does not exist, so the start network cannot be kept; use --keep end")
        return safetensors.torch.load_file(path)

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.method.exported().load_state_dict(weights)


def _nothing(why: str, images: int = 0) -> dict[str, object]:
    return {"images": images, "verdict": None, "better": None, "reason": f"{why}, so nothing was compared"}


def _labels(loader: Loader, index: np.ndarray) -> np.ndarray | None:
    labels = loader.source.labels
    return None if labels is None or labels.ndim != 1 else labels[index]


def mixed(start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the network half-way: the mean of the weights of two networks, by name; counters are those of `end`.

    >>> mixed({"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])})["w"]
    tensor([0.5000])
    """
    return {
        name: start[name].to(last).lerp(last, 0.5) if last.is_floating_point() else last for name, last in end.items()
    }


def make_judge(config: RunSettings, source: Source, parts: Parts, run: Path, console: Console) -> Judge | None:
    """Return the judge of a run. None: with too few images or `--judge-sample 0`, if no start network was given.

    Args:
        config: the run's whole configuration.
        source: the run's images.
        parts: of the run.
        run: the run folder.
        console: where the result is printed.
    """
    count = min(config.get("judge_sample", 0), len(source))
    pretrained, writes = config.get("init") is not None or has_start(config), distributed.rank() == 0
    world, loop = distributed.world_size(), parts.loop
    if count < _FEWEST:
        alone = Judge(parts.method, None, count, loop, parts.images, run, pretrained, writes, console)
        return alone if pretrained else None
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
    return Judge(parts.method, loader, count, loop, parts.images, run, pretrained, writes, console)


def decide(start: Crops, end: Crops, pretrained: bool, network: str = "trained network") -> tuple[str, str]:
    """Return the verdict "better", "worse" or "unclear", and the reason in words, in which `network` names the end.

    Better: more images find their own crops than at the start, and the 95 % interval of the paired difference lies
    above zero. Against a pretrained network the smaller crops must agree: more images must find them, too. Worse: the
    interval of either lies below zero. All else is unclear: the difference is within the noise, or the two disagree.
    `docs/pretrained.md` compares the verdict with the change of 20-NN.
    """
    measures = [("crops", start.crops, end.crops)]
    if pretrained and start.small is not None and end.small is not None:
        measures.append(("smaller crops", start.small, end.small))
    changes, told = [], []
    for name, before, after in measures:
        hits = [unlabeled.retrieval_hits(v.center, crops) for v, crops in ((start, before), (end, after))]
        change = unlabeled.paired_change(*hits)
        changes.append(change)
        told.append(
            f"images matched with their own {name}: start network {hits[0].mean():.1%}, {network} {hits[1].mean():.1%} "
            f"({100 * change.mean:+.1f} points, 95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f})"
        )
    if changes[0].low > 0 and all(change.mean > 0 for change in changes):
        verdict, words = "better", "better than the start"
    elif any(change.high < 0 for change in changes):
        verdict, words = "worse", "worse than the start"
    else:
        verdict, words = "unclear", "no clear difference from the start"
    return verdict, f"{words}; {'; '.join(told)}"


def describe(judgement: Mapping[str, Any]) -> str:
    """Return the judgement as lines for the console."""
    kept = {
        START: "the start network is kept",
        HALF: "the mean network is kept",
        END: "the trained network is kept",
    }[judgement["kept"]]
    lines = [f"{judgement['reason']}; {kept}"]
    if "start" in judgement:
        first, last = judgement["start"], judgement[judgement["compared"]]
        names = [name for name in _SHOWN if name in first and name in last]
        lines += [f"  {_SHOWN[name]:<46}{first[name]:>8.3f} -> {last[name]:.3f}" for name in names]
        if "start_overlap" in last:
            lines.append(f"  {'neighbors shared with the start':<46}{'':>8}    {last['start_overlap']:.3f}")
    return "\n".join(lines)


_SHOWN = {
    "retrieval": "images matched with their own crops",
    "small_retrieval": "images matched with their own smaller crops",
    "crop_overlap": "neighbors shared by an image and its crop",
    "rankme": "dimensions in use, center views (RankMe)",
    "agreement": "agreement of clusterings over seeds (AMI)",
    "by_color": "clusters explained by color (AMI)",
    "by_file_size": "clusters explained by file size (AMI)",
    "by_aspect": "clusters explained by aspect ratio (AMI)",
    "knn": "20-NN on the labels",
}


def crop_plan(images: Preprocessing) -> ViewPlan:
    """Return a plan of crops without flips or color changes, so that only the content of an image is compared."""
    shared = {"count": CROPS, "size": images.image_size, "flip_p": 0.0, "interpolation": images.interpolation}
    return ViewPlan(groups=tuple(ViewGroup(scale=scale, **shared) for scale in (_CROP, _SMALL)))


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
