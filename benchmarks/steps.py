"""Time and memory of a training step of every method, same network and batch, with 2, 2 + 2 and 2 + 6 crops.

    python benchmarks/steps.py [--out FILE.jsonl] [--methods swav dino] [--threads 1]

Quarter-width ResNet-18, 32 px and 16 px, batch 128, random images that are cut and colored beforehand: the time is
forward, backward, AdamW and the method's own memories, the median of the steps after two for warming up. Memory is the
peak of the process above what it held before the first step. A process a row; ratios are to SimCLR with two crops.
RotNet and Jigsaw are left out: their one view is another kind of picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CROPS = ((2, 0), (2, 2), (2, 6))
IMAGES, BATCH, STEPS = 2048, 128, 8
SMALL: dict[str, Any] = {"num_prototypes": 256, "hidden": 512, "queue_length": 512, "num_heads": 3, "min_cluster": 1}
METHODS = ["deepcluster", "deepercluster", "sela", "sela_v2", "deepcluster_v2", "swav", "odc", "dino"]
METHODS += ["npid", "simclr", "moco_v2", "byol", "supervised"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], int(args.one[1]), int(args.one[2]), args.threads)))
        return
    rows = []
    for method in ["simclr", *[m for m in args.methods if m != "simclr"]]:
        for full, small in CROPS:
            words = [sys.executable, __file__, "--one", method, str(full), str(small), "--threads", str(args.threads)]
            row = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
            rows.append(row)
            base = rows[0]
            print(
                f"{method:>16} {full}+{small}: {row['ms']:7.0f} ms {row['ms'] / base['ms']:5.2f}x   "
                f"{row['mib']:6.0f} MiB {row['mib'] / base['mib']:5.2f}x",
                flush=True,
            )
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def one(name: str, full: int, small: int, threads: int) -> dict[str, Any]:
    """Median milliseconds of a step and peak MiB of it."""
    import torch

    torch.set_num_threads(threads)
    from dataclasses import fields

    from selfcluster.methods import METHODS as CLASSES
    from selfcluster.models.backbones import make_backbone
    from selfcluster.training.embedding import to_layout
    from selfcluster.training.optim import make_optimizer
    from selfcluster.training.precision import autocast, pick_precision
    from selfcluster.types import Batch, DatasetInfo, Embeddings, Progress, Training

    kind, device = CLASSES[name], torch.device("cpu")
    known = {field.name for field in fields(kind.Settings)}
    settings = kind.Settings(**{key: value for key, value in {**SMALL, **kind.small}.items() if key in known})
    torch.manual_seed(0)

    def backbone(**create: Any) -> Any:
        create.pop("drop_path", None)
        return make_backbone("resnet18_small_w25", channels=3, image_size=32, **create)

    targets = torch.arange(IMAGES)[None] % 10
    method = kind(backbone, settings, DatasetInfo(IMAGES, 32, 3, targets=targets)).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(method.groups(), Training(optimizer="adamw", learning_rate=1e-4))
    precision = pick_precision("auto", device)
    pictures = torch.randn(IMAGES, 3, 32, 32)

    def embed(fn: Any, view: str = "center", train: bool = False) -> Embeddings:
        with torch.no_grad(), autocast(device, precision):
            shown = [to_layout([part, part] if view == "train" else [part]) for part in pictures.split(256)]
            rows = torch.cat([fn(views).float() for views in shown])
        return Embeddings(rows, torch.arange(IMAGES), torch.ones(IMAGES, dtype=torch.bool))

    times, held = [], 0.0
    method.train()
    for step in range(STEPS):
        progress = Progress(step, 1000, 0, 1000, 0)
        if step == 0:
            method.reassign(progress, embed)
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            held = _peak()
        index = torch.randint(IMAGES, (BATCH,))
        views = [torch.randn(BATCH, 3, s, s) for s in [32] * full + [16] * small]
        batch = Batch(to_layout(views), index)
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            output = method(batch, progress)
        output.loss.backward()
        method.on_backward(progress)
        optimizer.step()
        method.on_step_end(progress, [output])
        times.append(time.perf_counter() - began)
    return {
        "method": name,
        "crops": [full, small],
        "ms": round(statistics.median(times[2:]) * 1e3, 1),
        "mib": round(_peak() - held, 1),
        "batch": BATCH,
        "precision": precision,
        "threads": threads,
        "torch": str(torch.__version__),
    }


def _peak() -> float:
    """MiB: the most memory the process has held since the mark was reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
