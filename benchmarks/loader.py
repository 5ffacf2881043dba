"""Photographs a second through views of 2 x 224 and 6 x 96 px, on one core, against SwAV's own pipeline of PIL.

    python benchmarks/loader.py PHOTOGRAPHS [--images 96] [--rounds 5]

Both read the same JPEG files. The peer is what SwAV's released code does with one worker: PIL decodes, and each of the
eight views is a random resized crop, a flip, color changes and a blur on PIL images by torchvision and PIL. The
process is bound to one core, threads and all, and keeps freed memory, as every command of selfcluster does. "decode
and crop" leaves color and blur out on both sides. Rounds are interleaved; a figure is the median of the rounds, a ratio
the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter

from record import RESULTS, append
from selfcluster.allocation import keep_freed_memory
from selfcluster.data.loader import Loader
from selfcluster.data.sources import open_source
from selfcluster.types import Crops
from selfcluster.views.augmentations import plan_from_crops

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {224: (2, (0.14, 1.0)), 96: (6, (0.05, 0.14))}  # side -> views, and their share of the image


def blur(image: Image.Image) -> Image.Image:
    """SwAV's: by half of the chance, with a radius between 0.1 and 2."""
    if random.random() >= 0.5:
        return image
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def pil_views(colors: bool) -> Callable[[Path], list[torch.Tensor]]:
    """SwAV's pipeline for one file."""
    from torchvision import transforms as t

    def chain(size: int, scale: tuple[float, float]) -> t.Compose:
        jitter = t.RandomApply([t.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8)
        changes = [jitter, t.RandomGrayscale(0.2), blur] if colors else []
        crop = [t.RandomResizedCrop(size, scale=scale), t.RandomHorizontalFlip()]
        return t.Compose([*crop, *changes, t.ToTensor(), t.Normalize(MEAN, STD)])

    chains = [chain(size, scale) for size, (count, scale) in SIZES.items() for _ in range(count)]

    def views(file: Path) -> list[torch.Tensor]:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        made: list[Any] = [each(image) for each in chains]
        return made

    return views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", help="folder of JPEG files")
    parser.add_argument("--images", type=int, default=96, help="photographs a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="keep no result")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    keep_freed_memory()
    source = open_source(options.photographs, limit=options.images)
    root = source.root
    assert root is not None
    files = [Path(root) / name for name in source.ids]
    rows = []
    for what, augment in (("decode and crop", "weak"), ("all of a view", "swav")):
        crops = Crops(global_crops=2, local_crops=6, global_scale=SIZES[224][1], augment=augment)
        plan, peer = plan_from_crops(crops), pil_views(augment == "swav")
        batch = min(32, len(files))
        loader = Loader(
            source, batch_size=batch, image_size=224, mean=MEAN, std=STD, device="cpu", workers=1, in_memory=False
        )
        count = len(files) // batch * batch

        def ours(loader=loader, plan=plan) -> None:
            for made in loader.batches(plan):
                assert len(made.views) == 8

        def theirs(peer=peer, batch=batch, count=count) -> None:
            for start in range(0, count, batch):
                made = [peer(file) for file in files[start : start + batch]]
                assert len([torch.stack(views) for views in zip(*made, strict=True)]) == 8

        seconds: dict[str, list[float]] = {"PIL and torchvision": [], "selfcluster": []}
        for _ in range(options.rounds + 1):
            for name, run in zip(seconds, (theirs, ours), strict=True):
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
        loader.close()
        peers = seconds["PIL and torchvision"]
        for name, taken in seconds.items():  # the first round warms up
            ratio = statistics.median(p / t for p, t in zip(peers[1:], taken[1:], strict=True))
            speed = count / statistics.median(taken[1:])
            rows.append({"what": what, "who": name, "photographs/s": round(speed, 2), "times PIL's": round(ratio, 2)})
            print(f"{what:>16}  {name:<20} {speed:8.2f} photographs/s  {ratio:5.2f}x", flush=True)
    if not options.dry:
        append(RESULTS / "loader.jsonl", "loader", rows, 1)


if __name__ == "__main__":
    main()
