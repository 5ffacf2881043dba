"""Training throughput against lightly: SwAV, ResNet-18 for small images, two views of 32 px, data loading included.

Both train the same network (timm's `resnet18_small`), head 512-512-128, 512 prototypes, batch 128, Adam, on the same
JPEG files, with SwAV's color changes and blur. lightly runs as its own SwAV example does: its data set, transform,
heads and loss, a DataLoader with one worker a core. Rounds are interleaved in one process; a round is a number of steps
from a running loader. Run on an otherwise idle machine:

    python benchmarks/train_vs_lightly.py --images ../shared/data/cifar10/train-00000.tar
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tarfile
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import torch

BATCH, PROTOTYPES = 128, 512


def files_of(tar: str, count: int, folder: Path) -> Path:
    """The first `count` images of a tar as files, which is what both read."""
    with tarfile.open(tar) as shard:
        members = [m for m in shard if m.isfile()][:count]
        for number, member in enumerate(members):
            content = shard.extractfile(member)
            assert content is not None
            (folder / f"{number:05d}.jpg").write_bytes(content.read())
    return folder


class Ours:
    """selfcluster: a run without a folder."""

    def __init__(self, folder: Path, precision: str) -> None:
        from selfcluster.data.loader import Loader
        from selfcluster.data.sources import open_source
        from selfcluster.settings.recipes import DataSummary
        from selfcluster.settings.resolve import resolve
        from selfcluster.training.build import NORMALIZATION
        from selfcluster.training.precision import pick_device

        source = open_source(folder)
        given = {
            "backbone": "resnet18_small",
            "image_size": 32,
            "augment": "swav",
            "local_crops": 0,
            "batch_size": BATCH,
            "num_prototypes": PROTOTYPES,
            "queue_length": 0,
            "hidden": 512,
            "precision": precision,
            "device": "cpu",
        }
        self.config = {"method": "swav", **resolve("swav", DataSummary(len(source), 32, 3), given).config}
        self.count = len(source)
        mean, std = NORMALIZATION[3]
        self.loader = Loader(
            source,
            batch_size=BATCH,
            image_size=32,
            mean=mean,
            std=std,
            device=pick_device("cpu"),
        )

    def round(self, steps: int) -> float:
        from selfcluster.runs.console import Console
        from selfcluster.training.build import assemble
        from selfcluster.training.loop import fit
        from selfcluster.training.online_probe import OnlineProbe

        parts = assemble({**self.config, "images_seen": steps * BATCH}, self.count)
        start = time.perf_counter()
        probe = OnlineProbe(parts.method, None, parts.loop.device)
        fit(parts.method, self.loader, parts.views, parts.loop, Console(quiet=True), probe)
        return steps * BATCH / (time.perf_counter() - start)


class Lightly:
    """lightly's SwAV example, with bf16 autocast around the forward if asked."""

    def __init__(self, folder: Path, bf16: bool) -> None:
        from lightly.data import LightlyDataset
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
        from lightly.transforms.swav_transform import SwaVTransform

        from selfcluster.models.backbones import make_backbone

        transform = SwaVTransform(
            crop_sizes=(32,), crop_counts=(2,), crop_min_scales=(0.2,), crop_max_scales=(1.0,), rr_prob=0.0
        )
        dataset = LightlyDataset(str(folder), transform=transform)
        self.batches = torch.utils.data.DataLoader(
            dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1
        )
        self.backbone = make_backbone("resnet18_small", channels=3, image_size=32)
        self.head = SwaVProjectionHead(512, 512, 128)
        self.prototypes = SwaVPrototypes(128, n_prototypes=PROTOTYPES)
        self.loss = SwaVLoss()
        parameters = [p for m in (self.backbone, self.head, self.prototypes) for p in m.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=0.001)
        self.bf16 = bf16

    def round(self, steps: int) -> float:
        batches = iter(self.batches)
        next(batches)  # workers are running
        start, done = time.perf_counter(), 0
        for views, _, _ in batches:
            self.prototypes.normalize()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                features = [
                    self.prototypes(torch.nn.functional.normalize(self.head(self.backbone(view)), dim=1))
                    for view in views
                ]
            loss = self.loss([f.float() for f in features[:2]], [])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            done += 1
            if done == steps:
                break
        return done * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="tar of 32 px JPEGs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", default="benchmarks/results")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)

    from selfcluster.training.precision import pick_precision

    bf16 = pick_precision("auto", torch.device("cpu")) == "bf16"
    with tempfile.TemporaryDirectory() as temporary:
        folder = files_of(arguments.images, 2048, Path(temporary))
        runners = {"selfcluster": Ours(folder, "auto"), "lightly as it ships": Lightly(folder, False)}
        if bf16:
            runners["lightly, bf16 autocast"] = Lightly(folder, True)
        figures: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(arguments.rounds):
            for name, runner in runners.items():
                figures[name].append(runner.round(arguments.steps))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    ours = statistics.median(figures["selfcluster"])
    print(f"{'':<24}{'images/s':>10}{'min':>8}{'max':>8}{'ours is':>10}")
    for name, rounds in figures.items():
        middle = statistics.median(rounds)
        print(f"{name:<24}{middle:>10.1f}{min(rounds):>8.1f}{max(rounds):>8.1f}{ours / middle:>9.2f}x")
    record = {
        "command": "python benchmarks/train_vs_lightly.py",
        "commit": commit,
        "date": str(date.today()),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "native_bf16": bf16,
        "torch": str(torch.__version__),
        "steps": arguments.steps,
        "images_per_second": {name: [round(r, 1) for r in rounds] for name, rounds in figures.items()},
    }
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{date.today()}-train-vs-lightly.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
