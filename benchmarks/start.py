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

CLEAR = 0.005  # of 600 images: three of them
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
        "better": judgement["better"],
        "kept": judgement["kept"],
        "reason": judgement["reason"],
        "measures": {name: [judgement["start"].get(name), value] for name, value in judgement["end"].items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, then how often the verdict has the sign of the change of 20-NN."""
    lines = [
        "| start | images | method | seed | 20-NN start | end | change | verdict | kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    counts = {(verdict, sign): 0 for verdict in (True, False) for sign in ("up", "down", "equal")}
    for row in sorted(rows, key=lambda r: (r["kind"] != "starter", r["kind"], r["data"], r["method"], r["seed"])):
        change = 100 * (row["end"] - row["start"])
        sign = "equal" if change == 0 else "up" if change > 0 else "down"
        counts[row["better"], sign] += 1
        verdict = "better" if row["better"] else "not better"
        cells = [row["kind"], row["data"], row["method"], row["seed"], f"{100 * row['start']:.1f}"]
        cells += [f"{100 * row['end']:.1f}", f"{change:+.1f}", verdict, row["kept"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    # "not better" is right where 20-NN did not rise
    right = counts[True, "up"] + counts[False, "down"] + counts[False, "equal"]
    lines += ["", "| verdict | 20-NN rose | fell | equal |", "|---|---|---|---|"]
    for verdict, name in ((True, "better"), (False, "not better")):
        lines.append(f"| {name} | {counts[verdict, 'up']} | {counts[verdict, 'down']} | {counts[verdict, 'equal']} |")
    lines += ["", f"The verdict agrees with the sign in {right} of {len(rows)} runs ({right / max(1, len(rows)):.0%})."]
    clear = [row for row in rows if abs(row["end"] - row["start"]) > CLEAR]
    right = sum(row["better"] == (row["end"] > row["start"]) for row in clear)
    lines.append(
        f"Of the {len(clear)} runs in which 20-NN changed by more than {100 * CLEAR:.1f} points it agrees in {right} "
        f"({right / max(1, len(clear)):.0%})."
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
