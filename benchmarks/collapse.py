"""Which choices make DINO collapse, and does the run say so: the thesis's cases on the digits, a row each.

    python benchmarks/collapse.py [--cases "student as teacher" ...] [--epochs 10] [--seed 0] [--json FILE]

Each case is one training from nothing with the same small network and budget; only what its row says is changed. The
run stops as soon as health speaks. `loss` and `entropy` (of the teacher's targets) are shares of ln K, `KL` of targets
and predictions; `rank` is RankMe of the bottleneck, `share` that of the largest cluster; k-NN where the run ended well.
After Caron's thesis, tables 5.9, 5.10, 5.12 and 5.13 and figure 5.7, where such runs score 0.1 % on ImageNet.
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
from selfcluster.data.sources import open_source
from selfcluster.evaluation.digits import score_digits
from selfcluster.runs.tables import EMBEDDINGS, read_embeddings
from selfcluster.training.loop import Collapsed

# the small recipe's with more clusters, so that few in use stand out, and a last layer that learns at once
COMMON: dict[str, Any] = {"num_prototypes": 256, "freeze_epochs": 0.0}
CASES: dict[str, tuple[bool, dict[str, Any]]] = {  # name -> does it collapse in the thesis, what differs
    "momentum teacher": (False, {}),
    "teacher of the last epoch": (False, {"teacher_rule": "epoch"}),
    "Sinkhorn, student as teacher": (False, {"teacher_rule": "copy", "centering": "sinkhorn"}),
    "student as teacher": (True, {"teacher_rule": "copy"}),
    "teacher of the last iteration": (True, {"teacher_rule": "iteration"}),
    "no centering": (True, {"centering": "none"}),
    "no sharpening, 0.08": (True, {"teacher_temperature": 0.08, "warmup_teacher_temperature": 0.08}),
    "no sharpening, 0.1": (True, {"teacher_temperature": 0.1, "warmup_teacher_temperature": 0.1}),
    "center too slow, 0.999": (True, {"center_momentum": 0.999}),
}


def run(name: str, epochs: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train a case; its last numbers, what health said, and the score of what it learned."""
    expected, changed = CASES[name]
    out, started, said = folder / name.replace(" ", "-"), time.monotonic(), ""
    settings = {**COMMON, **changed, "epochs": epochs, "seed": seed}
    try:
        api.train("dino", "builtin:digits", out=out, quiet=True, on_collapse="stop", **settings)
    except Collapsed as collapse:
        said = str(collapse)
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    chance = row["chance_loss"]
    numbers: dict[str, Any] = {
        "case": name,
        "expected": expected,
        "collapsed": bool(said),
        "steps": row["step"],
        "loss": row["loss"] / chance,
        "entropy": row["teacher_entropy"] / chance,
        "divergence": row["divergence"],
        "rankme": row["rankme"],
        "largest_share": row["largest_share"],
        "said": said.partition(". ")[0],
        "seconds": time.monotonic() - started,
    }
    if not said:
        source = open_source("builtin:digits", labels_from="labels")
        labels: Any = source.labels
        numbers |= score_digits(read_embeddings(out / EMBEDDINGS).vectors, labels, seed)
    return numbers


def main() -> None:
    """Print a row a case; exit 1 where one went otherwise than in the thesis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="append a line a case to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':<32}{'steps':>6}{'loss':>7}{'entropy':>9}{'KL':>7}{'rank':>7}{'share':>7}{'k-NN':>7}  health")
    otherwise = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.cases:
            r = run(name, arguments.epochs, arguments.seed, Path(folder))
            knn = f"{r['knn']:.3f}" if "knn" in r else ""
            print(
                f"{name:<32}{r['steps']:>6}{r['loss']:>7.3f}{r['entropy']:>9.3f}{r['divergence']:>7.3f}"
                f"{r['rankme']:>7.1f}{r['largest_share']:>7.2f}{knn:>7}  {r['said'] or 'well'}",
                flush=True,
            )
            if r["collapsed"] != r["expected"]:
                otherwise.append(name)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps({**r, "epochs": arguments.epochs, "seed": arguments.seed}) + "\n")
    if otherwise:
        raise SystemExit(f"otherwise than in the thesis: {', '.join(otherwise)}")


if __name__ == "__main__":
    main()
