"""Supervised above self-supervised above untrained? A linear probe and fine-tuning, a row a network, over seeds.

    python benchmarks/supervision.py TRAIN TEST [--method simclr] [--epochs 12] [--labels 2000] [--seeds 3]

TRAIN and TEST are labeled images, such as shards of CIFAR-10. A small network is trained on all of TRAIN, with its
labels and without; the third row is never trained. Each is then scored on TEST from the same few labels. The rate of a
linear probe, and that of the trunk in fine-tuning, is the best of three on a fifth of these labels. The runs lie in
--out; those that are finished are used again. `selfcluster compare OUT/*` shows them in one table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from selfcluster import api

TRAINING: dict[str, Any] = {"backbone": "tiny_layout", "image_size": 32, "batch_size": 256, "recipe": "auto"}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "linear": {"epochs": 30, "probe_batch": 64},
    "finetune": {"epochs": 30, "tune_batch": 64, "head_rate": 1.0},
}
RATES: dict[str, tuple[str, tuple[float, ...]]] = {
    "linear": ("learning_rate", (0.1, 1.0, 10.0)),
    "finetune": ("trunk_rate", (0.002, 0.02, 0.2)),
}


def score(model: str, run: str, test: str, labels: int, seed: int, train: str) -> dict[str, float]:
    """The top-1 accuracy of a network under each protocol, at the rate that is best on held-out labels."""
    images: dict[str, Any] = {"train": train, "labels_from": "folders", "limit": labels, "seed": seed, "image_size": 32}
    numbers = {}
    for protocol in PROTOCOLS:
        began = time.monotonic()
        name, rates = RATES[protocol]

        def top1(rate: float, protocol: str = protocol, name: str = name, **more: Any) -> float:
            chosen = {**images, **PROTOCOLS[protocol], name: rate, **more}
            return float(api.evaluate(protocol, model, workers=1, **chosen)["top1"])

        rate = max(rates, key=top1)
        numbers[protocol] = top1(rate, test=test)
        seconds = time.monotonic() - began
        print(f"{run} seed {seed} {protocol} {numbers[protocol]:.4f} at {rate:g} ({seconds:.0f} s)", flush=True)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--labels", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "supervision")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = []
    for seed in range(chosen.seeds):
        common: dict[str, Any] = {**TRAINING, "epochs": chosen.epochs, "seed": seed, "quiet": True, "workers": 1}
        for name in ("supervised", chosen.method, "untrained"):
            out = chosen.out / f"{name}-{seed}"
            if name == "untrained":
                model = TRAINING["backbone"]
            else:
                labels: dict[str, Any] = {"labels_from": "folders"} if name == "supervised" else {}
                model = str(out)
                if not (out / "backbone.safetensors").exists():
                    api.train(name, chosen.train, out=out, **common, **labels)
            numbers = score(model, name, chosen.test, chosen.labels, seed, chosen.train)
            rows.append({"network": name, "seed": seed, **numbers})
            if chosen.json:
                chosen.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("| network | " + " | ".join(PROTOCOLS) + " |\n|---|" + "---|" * len(PROTOCOLS))
    for name in ("supervised", chosen.method, "untrained"):
        cells = []
        for protocol in PROTOCOLS:
            values = [row[protocol] for row in rows if row["network"] == name]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            cells.append(f"{np.mean(values):.3f} ± {spread:.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
