"""Does training from a pretrained network help, and does the verdict without labels see it?

    python benchmarks/start.py --data ../shared/data --cells CROPS --out runs/start --only starter

Every run trains on a few hundred images with `auto` and compares its end with its start by the label-free rule of
`evaluation/judgement.py`; labels only give the change of 20-NN (leave one out) that stands beside it. Rows are appended
to OUT/rows.jsonl and a finished row is not run again. `--table` prints the table and the confusion of verdict and
change. CROPS is a folder of cell crops by class; without it the cells are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

METHODS = ("swav", "dino", "deepcluster_v2", "simclr", "byol")
PHOTOGRAPHS = {"init": "starter", "limit": 600, "image_size": 96}
DAMAGE = {"freeze_norm": "no", "freeze_layers": 0.0, "learning_rate": 1e-3}
DIGITS = {"limit": 900, "image_size": 16, "epochs": 10}
CIFAR = {"limit": 1500, "image_size": 24, "epochs": 8, "backbone": "resnet18_small_w25"}


def plan(only: str, seeds: list[int]) -> list[tuple[str, str, str, dict[str, Any]]]:
    """The runs in order: kind, data, method, settings."""
    runs = []
    for seed in seeds:
        for data in ("clothing", "trashnet", "cells"):
            runs += [("starter", data, method, {**PHOTOGRAPHS, "seed": seed}) for method in METHODS]
        damaged = [("clothing", "swav"), ("trashnet", "simclr"), ("cells", "byol")]
        runs += [("damaged", data, method, {**PHOTOGRAPHS, **DAMAGE, "seed": seed}) for data, method in damaged]
        for data, settings in (("digits", DIGITS), ("cifar", CIFAR)):
            runs += [("nothing", data, method, {**settings, "seed": seed}) for method in METHODS]
    return [run for run in runs if only in ("all", run[0])]


def one(
    kind: str, data: str, method: str, settings: dict[str, Any], folders: dict[str, str], out: Path
) -> dict[str, Any]:
    import selfcluster

    started = time.monotonic()
    labels = "labels" if data == "digits" else "folders"
    run = out / f"{kind}-{data}-{method}-{settings['seed']}"
    summary = selfcluster.train(method, folders[data], out=run, labels_from=labels, quiet=True, **settings)
    judgement = summary["judgement"]
    return {
        "kind": kind,
        "data": data,
        "method": method,
        "seed": settings["seed"],
        "start": judgement["start"]["knn"],
        "end": judgement["end"]["knn"],
        "compared": judgement[judgement["compared"]]["knn"],
        "verdict": judgement["verdict"],
        "kept": judgement["kept"],
        "reason": judgement["reason"],
        "measures": {name: [judgement["start"].get(name), value] for name, value in judgement["end"].items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, then how often the verdict has the sign of the change of 20-NN.

    The change is that of the network compared: with `--init` the mean of the weights of start and end.
    """
    lines = [
        "| start | images | method | seed | 20-NN start | end | compared | change | verdict | kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    verdicts, signs = ("better", "unclear", "worse"), ("up", "down", "equal")
    counts = {(verdict, sign): 0 for verdict in verdicts for sign in signs}
    for row in sorted(rows, key=lambda r: (r["kind"] != "starter", r["kind"], r["data"], r["method"], r["seed"])):
        change = 100 * (row["compared"] - row["start"])
        counts[row["verdict"], "equal" if change == 0 else "up" if change > 0 else "down"] += 1
        cells = [row["kind"], row["data"], row["method"], row["seed"]]
        cells += [f"{100 * row[name]:.1f}" for name in ("start", "end", "compared")]
        lines.append("| " + " | ".join(map(str, [*cells, f"{change:+.1f}", row["verdict"], row["kept"]])) + " |")
    lines += ["", "| verdict | 20-NN rose | fell | equal |", "|---|---|---|---|"]
    lines += [
        f"| {verdict} | " + " | ".join(str(counts[verdict, sign]) for sign in signs) + " |" for verdict in verdicts
    ]
    clear = sum(counts[verdict, sign] for verdict in ("better", "worse") for sign in signs)
    right = counts["better", "up"] + counts["worse", "down"]
    lines += ["", f"Where the verdict is clear, {right} of {clear} times its sign is that of 20-NN's change."]
    kept = [row["compared"] - row["start"] for row in rows if row["kept"] == "half"]
    if kept:
        lines.append(
            f"{len(kept)} runs keep the mean; the worst of them changes 20-NN by {100 * min(kept):+.1f} points."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of clothing/, trashnet/ and cifar10/")
    parser.add_argument("--cells", help="folder of cell crops by class")
    parser.add_argument("--out", default="runs/start", help="folder for the runs and rows.jsonl")
    parser.add_argument("--only", default="all", choices=("all", "starter", "damaged", "nothing"))
    parser.add_argument("--sets", nargs="*", help="use these sets of images only")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--table", action="store_true", help="print the table of finished runs and stop")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.jsonl"

    def finished() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    if not arguments.table:
        import torch

        torch.set_num_threads(1)
        data = Path(arguments.data)
        folders = {name: str(data / name) for name in ("clothing", "trashnet")}
        folders |= {"cifar": str(data / "cifar10/train-00000.tar"), "digits": "builtin:digits"}
        folders |= {"cells": arguments.cells} if arguments.cells else {}
        for kind, name, method, settings in plan(arguments.only, arguments.seeds):
            key = (kind, name, method, settings["seed"])
            done = {(row["kind"], row["data"], row["method"], row["seed"]) for row in finished()}
            if key in done or name not in folders or (arguments.sets and name not in arguments.sets):
                continue
            row = one(kind, name, method, settings, folders, out)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{key}: {100 * row['start']:.1f} -> {100 * row['end']:.1f}, {row['reason']}", flush=True)
    print(table(finished()))


if __name__ == "__main__":
    main()
