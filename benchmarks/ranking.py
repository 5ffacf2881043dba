"""How well measures without labels rank networks: Kendall's tau with 20-NN on held-out labels, over short runs.

    python benchmarks/ranking.py run DATA --out benchmarks/results/DATE-ranking.jsonl [--limit N] [--image-size PX]
    python benchmarks/ranking.py table benchmarks/results/DATE-ranking.jsonl

DATA is builtin:digits or a folder of labeled folders. Each row of RUNS is trained with its recipe for small images, and
measured on the same images by `evaluate unlabeled` and `evaluate knn` (a seeded fifth held out). A line a run is
appended as it ends, and what has a line is not run again. The untrained network is a run of no epochs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from selfcluster import api
from selfcluster.evaluation.ranking import MEASURES, mean_ranks

METHODS = ("swav", "deepcluster_v2", "deepcluster", "odc", "dino", "simclr", "byol", "rotnet")
EPOCHS = (2, 10)
RUNS = [(method, epochs) for method in METHODS for epochs in EPOCHS]
BACKBONE = "resnet18_small_w25"


def run_all(data: str, out: Path, limit: int | None, image_size: int | None, seed: int) -> None:
    """Train and measure what has no line yet."""
    done = {(row["method"], row["epochs"]) for row in read(out) if row["data"] == data and row["seed"] == seed}
    labels = "labels" if data.startswith("builtin:") else "folders"
    shared: dict[str, Any] = {"seed": seed, **({"limit": limit} if limit else {})}
    size: dict[str, Any] = {"image_size": image_size} if image_size else {}
    for method, epochs in [("untrained", 0), *RUNS]:
        if (method, epochs) in done:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            model: Any = BACKBONE
            if epochs:
                settings: dict[str, Any] = {
                    **shared,
                    **size,
                    "backbone": BACKBONE,
                    "epochs": epochs,
                    "recipe": "small",
                    "quiet": True,
                }
                batch: dict[str, Any] = {"batch_size": 64, "judge_sample": 0, "workers": 1}
                model = api.train(method, data, out=f"{folder}/run", **settings, **batch)["run"]
            of = {"train": data, "labels_from": labels, **shared, **size}
            found = api.evaluate("unlabeled", model, sample=1000, checkpoints=False, **of)
            knn = api.evaluate("knn", model, k="20", **of)
        row = {"data": data, "method": method, "epochs": epochs, "seed": seed, "limit": limit, "image_size": image_size}
        row |= {"seconds": round(time.monotonic() - started, 1), "knn": knn["top1"]}
        row |= {name: found[name] for name in MEASURES}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(path: Path) -> str:
    """Return Kendall's tau of each measure, and of their mean rank, with 20-NN, one row a set of images."""
    rows = read(path)
    lines = [f"| images | networks | {' | '.join(MEASURES)} | mean rank |", "|---" * (3 + len(MEASURES)) + "|"]
    for data in dict.fromkeys(row["data"] for row in rows):
        some = [row for row in rows if row["data"] == data]
        knn = [row["knn"] for row in some]
        every = [*([row[name] for row in some] for name in MEASURES), (-mean_ranks(some)).tolist()]
        found: list[Any] = [kendalltau(values, knn) for values in every]
        cells = [f"{tau.statistic:+.2f} (p {tau.pvalue:.3f})" for tau in found]
        lines.append(f"| {Path(data).name} | {len(some)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("data")
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--limit", type=int)
    runs.add_argument("--image-size", type=int)
    runs.add_argument("--seed", type=int, default=0)
    commands.add_parser("table").add_argument("out", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "table":
        print(table(chosen.out))
    else:
        run_all(chosen.data, chosen.out, chosen.limit, chosen.image_size, chosen.seed)


if __name__ == "__main__":
    main()
