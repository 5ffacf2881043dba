"""Training throughput against lightly: SwAV, ResNet-18 for small images, with two crops and with multi-crop.

Both train the same network (timm's `resnet18_small`), head 512-512-128, 512 prototypes, batch 128, Adam, on the same
JPEG files, with SwAV's color changes and blur: two views of 32 px, and with multi-crop four of 16 px more. lightly runs
as its own SwAV example does: its data set, transform, heads and loss, a DataLoader with one worker a core. "epoch" has
everything in it, "step" is forward and backward on a batch that is ready. Rounds are interleaved in one process; a
round is a number of steps from a running loader. Run on an otherwise idle machine:

    python benchmarks/train_vs_lightly.py --images ../shared/data/cifar10/train-00000.tar

In float32, as a processor without bfloat16 trains; with the instructions limited to AVX2, if the processor has more:

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 SELFCLUSTER_NATIVE=avx2 \
        python benchmarks/train_vs_lightly.py --images ../shared/data/cifar10/train-00000.tar --precision fp32
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from record import RESULTS, append

BATCH, PROTOTYPES = 128, 512
LAYOUTS = {"two crops": 0, "multi-crop": 4}  # views of 16 px


def files_of(tar: str, count: int, folder: Path) -> Path:
    """The first `count` images of a tar as files, which is what both read."""
    with tarfile.open(tar) as shard:
        members = [m for m in shard if m.isfile()][:count]
        for number, member in enumerate(members):
            content = shard.extractfile(member)
            assert content is not None
            (folder / f"{number:05d}.jpg").write_bytes(content.read())
    return folder


@contextmanager
def passes(method: torch.nn.Module) -> Iterator[list[tuple[float, float]]]:
    """Begin and end, in seconds, of the forward and backward passes in the block."""
    spans: list[tuple[float, float]] = []
    begun: list[float] = []
    backward = torch.Tensor.backward

    def timed(*arguments: Any, **more: Any) -> None:
        begun.append(time.perf_counter())
        backward(*arguments, **more)
        spans.append((begun.pop(), time.perf_counter()))

    before = method.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
    after = method.register_forward_hook(lambda *_: spans.append((begun.pop(), time.perf_counter())))
    torch.Tensor.backward = timed
    try:
        yield spans
    finally:
        torch.Tensor.backward = backward
        before.remove()
        after.remove()


class Ours:
    """selfcluster: a run without a folder."""

    def __init__(self, folder: Path, precision: str, small: int) -> None:
        from selfcluster.data.loader import Loader
        from selfcluster.data.sources import open_source
        from selfcluster.models.preprocessing import default_preprocessing
        from selfcluster.settings.recipes import DataSummary
        from selfcluster.settings.resolve import resolve
        from selfcluster.training.precision import pick_device

        source = open_source(folder)
        given = {
            "backbone": "resnet18_small",
            "image_size": 32,
            "augment": "swav",
            "local_crops": small,
            "local_size": 16,
            "batch_size": BATCH,
            "num_prototypes": PROTOTYPES,
            "queue_length": 0,
            "hidden": 512,
            "precision": precision,
            "device": "cpu",
        }
        self.config: Any = {"method": "swav", **resolve("swav", DataSummary(len(source), 32, 3), given).config}
        self.count = len(source)
        self.outside: list[float] = []
        images = default_preprocessing(3, 32)
        self.loader = Loader(
            source,
            batch_size=BATCH,
            image_size=32,
            mean=images.mean,
            std=images.std,
            device=pick_device("cpu"),
        )

    def epoch(self, steps: int) -> float:
        from selfcluster.runs.console import Console
        from selfcluster.training.build import assemble
        from selfcluster.training.loop import fit
        from selfcluster.training.online_probe import OnlineProbe

        config: Any = {**self.config, "images_seen": steps * BATCH}
        parts = assemble(config, self.count)
        start = time.perf_counter()
        probe = OnlineProbe(parts.method, None, parts.loop.device)
        with passes(parts.method) as spans:
            fit(parts.method, self.loader, parts.views, parts.loop, Console(quiet=True), probe)
        inside = sum(end - begin for begin, end in spans)
        self.outside.append(1 - inside / (spans[-1][1] - spans[0][0]))
        return steps * BATCH / (time.perf_counter() - start)

    def step(self, steps: int) -> float:
        from selfcluster.models.convolution import quick_convolutions
        from selfcluster.training.build import assemble
        from selfcluster.training.embedding import to_layout
        from selfcluster.training.precision import autocast, prefers_products
        from selfcluster.types import Progress

        parts = assemble(self.config, self.count)
        method = parts.method.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
        batch = next(self.loader.batches(parts.views))
        batch = replace(batch, views=to_layout(batch.views))
        products = prefers_products(parts.loop.device, parts.loop.precision)
        start = time.perf_counter()
        with quick_convolutions(method, products):  # as in `fit`
            for step in range(steps):
                method.zero_grad(set_to_none=True)
                with autocast(parts.loop.device, parts.loop.precision):
                    output = method(batch, Progress(step, 1000, 0, 1000, 0))
                output.loss.backward()
        return steps * BATCH / (time.perf_counter() - start)


class Lightly:
    """lightly's SwAV example, with bf16 autocast around the forward if asked."""

    def __init__(self, folder: Path, bf16: bool, small: int) -> None:
        lightly: Any = importlib.import_module("lightly")  # its annotations are narrower than what it takes
        for part in ("data", "loss", "models.modules", "transforms.swav_transform"):
            importlib.import_module(f"lightly.{part}")

        from selfcluster.models.backbones import make_backbone

        transform = lightly.transforms.swav_transform.SwaVTransform(
            crop_sizes=(32, 16) if small else (32,),
            crop_counts=(2, small) if small else (2,),
            crop_min_scales=(0.2, 0.05) if small else (0.2,),
            crop_max_scales=(1.0, 0.14) if small else (1.0,),
            rr_prob=0.0,
        )
        dataset = lightly.data.LightlyDataset(str(folder), transform=transform)
        self.batches = torch.utils.data.DataLoader(
            dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1
        )
        self.backbone = make_backbone("resnet18_small", channels=3, image_size=32)
        self.head = lightly.models.modules.SwaVProjectionHead(512, 512, 128)
        self.prototypes = lightly.models.modules.SwaVPrototypes(128, n_prototypes=PROTOTYPES)
        self.loss = lightly.loss.SwaVLoss()
        parameters = [p for m in (self.backbone, self.head, self.prototypes) for p in m.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=0.001)
        self.bf16 = bf16

    def epoch(self, steps: int) -> float:
        batches = iter(self.batches)
        next(batches)  # workers are running
        start = time.perf_counter()
        for _ in range(steps):
            self._train(next(batches)[0])
            self.optimizer.step()
        return steps * BATCH / (time.perf_counter() - start)

    def step(self, steps: int) -> float:
        views = next(iter(self.batches))[0]
        start = time.perf_counter()
        for _ in range(steps):
            self._train(views)
        return steps * BATCH / (time.perf_counter() - start)

    def _train(self, views: list[torch.Tensor]) -> None:
        self.prototypes.normalize()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            features = [
                self.prototypes(torch.nn.functional.normalize(self.head(self.backbone(view)), dim=1)) for view in views
            ]
        loss = self.loss([f.float() for f in features[:2]], [f.float() for f in features[2:]])
        self.optimizer.zero_grad()
        loss.backward()


def rounds(folder: Path, small: int, what: str, arguments: argparse.Namespace, bf16: bool) -> Iterator[dict[str, Any]]:
    """The rows of a layout, all contestants in turn; `what` is "epoch" or "step"."""
    ours = Ours(folder, arguments.precision, small)
    runners = {"selfcluster": ours, "lightly as it ships": Lightly(folder, False, small)}
    if bf16:
        runners["lightly, bf16 autocast"] = Lightly(folder, True, small)
        runners["selfcluster, fp32"] = Ours(folder, "fp32", small)
    speeds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(arguments.rounds):
        for name, runner in runners.items():
            speeds[name].append(getattr(runner, what)(arguments.steps))
    for name, found in speeds.items():
        shares = getattr(runners[name], "outside", [])
        ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds["selfcluster"], found, strict=True))
        yield {
            "who": name,
            "images/s": round(statistics.median(found), 1),
            "lowest": round(min(found), 1),
            "highest": round(max(found), 1),
            "selfcluster is": round(ratio, 2),
            **({"outside": round(statistics.median(shares), 3)} if shares else {}),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="tar of 32 px JPEGs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--precision", choices=("auto", "fp32"), default="auto", help="of selfcluster")
    parser.add_argument("--dry", action="store_true", help="keep no result")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)

    from selfcluster.allocation import keep_freed_memory
    from selfcluster.training.precision import pick_precision

    keep_freed_memory()  # as every command does; lightly gains by it, too
    bf16 = pick_precision(arguments.precision, torch.device("cpu")) == "bf16"
    rows, instructions = [], os.environ.get("ONEDNN_MAX_CPU_ISA", "all")
    with tempfile.TemporaryDirectory() as temporary:
        folder = files_of(arguments.images, 2048, Path(temporary))
        for layout, small in LAYOUTS.items():
            for what in ("epoch", "step"):
                for row in rounds(folder, small, what, arguments, bf16):
                    rows.append({"crops": layout, "what": what, "instructions": instructions, **row})
                    print("  ".join(f"{name}: {value}" for name, value in rows[-1].items()), flush=True)
    if not arguments.dry:
        append(RESULTS / "train-vs-lightly.jsonl", "train", rows, torch.get_num_threads())


if __name__ == "__main__":
    main()
