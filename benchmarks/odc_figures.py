"""ODC's own figures on a set of labeled images: steadiness against DeepCluster, label switches, long-tailed sets.

    python benchmarks/odc_figures.py --data ../shared/data/cifar10/train-00000.tar \\
        --test ../shared/data/cifar10/test-00000.tar

One drawing of three panels, after Zhan et al. 2020 (arXiv 2006.10645): the loss of ODC and of DeepCluster over epochs
(figure 1b), the share of labels that change in a batch (figure 5), and 20-NN accuracy of ODC trained on long-tailed
subsets of equal size (figure 6; the paper's scores are VOC07 SVM). All runs share network, views, clusters, batch,
epochs and rates, so that the method alone differs; labels choose the subsets and score, they never train. The dashed
line of the third panel is the same network untrained. Numbers go to standard output, one JSON object a run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from selfcluster import api
from selfcluster.training import loop

RATIOS = (1, 8, 64)
_ODC, _DEEPCLUSTER, _INK, _GRID = "#0b7a75", "#c8553d", "#44413b", "#dcd8cf"
_EVERY = 5  # steps a row of metrics: the jump of DeepCluster's loss behind each clustering is shorter than an epoch


def main() -> None:
    """Train, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="labeled images: a folder of folders or tars")
    parser.add_argument("--test", help="labeled images to score on; default a fifth of those trained on")
    parser.add_argument("--out", default="docs/odc.svg")
    parser.add_argument("--images", type=int, default=2500, help="of each run")
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-prototypes", type=int, default=50)
    parser.add_argument("--backbone", default="resnet18_small_w25")
    parser.add_argument("--learning-rate", type=float, default=0.06)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loop._REPORT_STEPS = _EVERY
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(arguments, Path(folder))
        untrained = runs.train("odc", 1, images_seen=arguments.batch_size, learning_rate=1e-12)
        deepcluster = runs.train("deepcluster", 1)
        tails = {ratio: runs.train("odc", ratio) for ratio in arguments.ratios}
    draw(Path(arguments.out), tails, deepcluster, untrained)


class Runs:
    """Runs that share everything but the method and the images' long tail."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder, self.count = arguments, folder, 0

    def train(self, method: str, ratio: float, **settings: Any) -> dict[str, Any]:
        """Train and score; returns rows of metrics and the accuracy."""
        a, started = self.arguments, time.perf_counter()
        self.count += 1
        out = self.folder / f"{self.count}-{method}"
        if method == "odc":  # the paper's memory, and its share of the mean size: 20 of 128 images
            settings |= {"memory_momentum": 0.5, "min_cluster": max(1, a.images // (6 * a.num_prototypes))}
        shared = {
            "labels_from": "folders",
            "limit": a.images,
            "long_tail": ratio,
            "seed": a.seed,
            "backbone": a.backbone,
            "epochs": a.epochs,
            "batch_size": a.batch_size,
            "num_prototypes": a.num_prototypes,
            "optimizer": "sgd",
            "learning_rate": a.learning_rate,
            "weight_decay": 5e-4,
            "sobel": False,
            "global_crops": 1,
            "augment": "gentle",
            "workers": 1,
        }
        api.train(method, a.data, out=out, quiet=True, **shared | settings)
        trained = (time.perf_counter() - started) / 60
        knn = api.evaluate("knn", out, train=a.data, test=a.test, labels_from="folders", limit=a.images, workers=1)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        result = {"method": method, "ratio": ratio, "knn": knn["top1"], "minutes": round(trained, 2)}
        last = {key: rows[-1][key] for key in ("step", "loss", "change_ratio", "effective_clusters") if key in rows[-1]}
        print(json.dumps({**result, **last, "settings": {**shared, **settings}}), flush=True)
        return {**result, "rows": rows, "steps_per_epoch": a.images // a.batch_size}


def draw(out: Path, tails: dict[float, dict[str, Any]], deepcluster: dict[str, Any], untrained: dict[str, Any]) -> None:
    """Three panels side by side."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    odc = next(iter(tails.values()))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "odc", "font.size": 8}):
        figure = Figure(figsize=(10, 3), layout="constrained")
        loss, switches, tail = figure.subplots(1, 3)
        for run, name, color in ((odc, "ODC", _ODC), (deepcluster, "DeepCluster", _DEEPCLUSTER)):
            loss.plot(*series(run, "loss"), color=color, linewidth=1.4, label=name)
        loss.set(title="Loss", xlabel="epoch")
        loss.legend(frameon=False)
        switches.plot(*series(odc, "change_ratio"), color=_ODC, linewidth=1.4)
        switches.set(title="ODC: share of labels that change in a batch", xlabel="epoch", ylim=(0, 1))
        places = range(len(tails))
        tail.plot(places, [100 * run["knn"] for run in tails.values()], color=_ODC, marker="o", label="ODC")
        tail.axhline(100 * untrained["knn"], color=_INK, linestyle=(0, (5, 3)), linewidth=1.2, label="untrained")
        tail.set(title="20-NN accuracy, %", xlabel="largest class to smallest", xticks=places, ylim=(0, None))
        tail.set_xticklabels([f"{ratio:g}" for ratio in tails])
        tail.legend(frameon=False, loc="lower right")
        for axes in (loss, switches, tail):
            axes.grid(axis="y", color=_GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(length=0)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})


def series(run: dict[str, Any], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values: a row's value is the mean since the row before, so it stands at its span's middle."""
    steps = [row["step"] for row in run["rows"]]
    middles = [(a + b) / 2 / run["steps_per_epoch"] for a, b in zip([0, *steps], steps, strict=False)]
    return middles, [row[key] for row in run["rows"]]


if __name__ == "__main__":
    main()
