"""CIFAR-10 or CIFAR-100 by the recipe `cifar`: the table that stands beside solo-learn's and lightly's.

    python benchmarks/cifar.py TRAIN TEST [--methods swav ...] [--epochs 200] [--batch-size 512] [--seeds 0] [FLAGS]

TRAIN and TEST are labeled images, such as folders of shards. Each row is a run of `selfcluster train` in a process of
its own. Scores are of the last epoch on TEST: the online probe (the last of training), 20-NN and logistic regression on
the exported features. A line of JSON a run is appended to results/cifar.jsonl as the run ends. FLAGS go to `train`; on
a machine without a GPU, `--limit 256 --backbone resnet18_small_w25` tries the script.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from record import RESULTS, commit, processor

METHODS = ("swav", "deepcluster_v2", "dino", "simclr", "moco_v2", "byol", "odc", "deepcluster", "sela")


def selfcluster(*words: object) -> str:
    """Run a command and return what it prints on stdout; a failure ends the script with its own message."""
    command = [sys.executable, "-m", "selfcluster", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def one(method: str, seed: int, options: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    """Train and score a method; return its row."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = ["--recipe", "cifar", "--epochs", options.epochs, "--batch-size", options.batch_size, "--seed", seed]
        start = time.perf_counter()
        selfcluster("train", method, options.train, *flags, "--probe-labels", "folders", "--out", run, "--quiet", *more)
        minutes = (time.perf_counter() - start) / 60
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        sets = ("--train", options.train, "--test", options.test, "--json")
        scores = {}
        for protocol, extra in (("knn", ("--k", 20)), ("logistic", ())):
            start = time.perf_counter()
            scores[protocol] = json.loads(selfcluster("evaluate", protocol, run, *sets, *extra))["result"]["top1"]
            scores[f"{protocol}_seconds"] = round(time.perf_counter() - start, 1)
    speeds = sorted(row["images_per_second"] for row in rows)
    return {
        "method": method,
        "seed": seed,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "flags": more,
        "online_probe": next((row["probe_accuracy"] for row in reversed(rows) if "probe_accuracy" in row), None),
        **scores,
        "loss": rows[-1]["loss"],
        "images_per_second": speeds[len(speeds) // 2],
        "minutes": round(minutes, 2),
    }


def main() -> None:
    """Run the rows that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--epochs", type=float, default=200)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "cifar.jsonl")
    options, more = parser.parse_known_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {processor()}"
    about = {"date": str(datetime.date.today()), "device": device, "torch": torch.__version__, "commit": commit()}
    for seed in options.seeds:
        for method in options.methods:
            row = about | one(method, seed, options, more)
            print(json.dumps(row), flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
