"""Microseconds per image and view of SwAV's augmentation against torchvision v2's chain, one thread, interleaved.

    python benchmarks/views.py [--rounds 7] [--sizes 32 96 224]

Both start from decoded uint8 images in memory (side x side up to 64 px, 375 x 500 above) and end with normalized
float32 tensors. `cut` is the loader's route (a crop an image, color in the batch), `in_memory` crops in the batch too
(only where the source is small). torchvision's chain runs on uint8 tensors, its fastest form; its blur has 13 taps, the
reach of our largest sigma. The figure is the median over rounds; the ratio is the median of each round's own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms import v2

from record import RESULTS, append
from selfcluster.types import Crops
from selfcluster.views import crops
from selfcluster.views.augmentations import plan_from_crops
from selfcluster.views.plans import ViewPlan

MEAN, STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)


def chain(size: int) -> v2.Compose:
    """SwAV's view by torchvision."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96, 224])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("size   torchvision        cut           in_memory      (us per image and view; times torchvision)")
    rows = []
    for size in arguments.sizes:
        routes = prepare(size)
        seconds = {name: [] for name in routes}
        for _ in range(arguments.rounds + 1):
            for name, (count, run) in routes.items():
                started = time.perf_counter()
                run()
                seconds[name].append((time.perf_counter() - started) / count)
        cells = []
        for name, runs in seconds.items():
            times, reference = runs[1:], seconds["torchvision"][1:]  # the first warms up
            ratio = statistics.median(r / t for r, t in zip(reference, times, strict=True))
            middle = statistics.median(times) * 1e6
            cells.append(f"{middle:9.1f} ({ratio:4.1f}x)")
            rows.append({"px": size, "who": name, "us a view": round(middle, 1), "times torchvision": round(ratio, 2)})
        print(f"{size:4d}  " + "  ".join(cells), flush=True)
    append(RESULTS / "views.jsonl", "views", rows, 1)


def prepare(size: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Route -> how many views a run makes, and the run."""
    count, shape = (256, (size, size)) if size <= 64 else (64 if size <= 128 else 16, (375, 500))
    images = np.random.default_rng(0).integers(0, 256, (count, *shape, 3), dtype=np.uint8)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    plan = plan_from_crops(Crops(augment="swav", global_size=size))
    transform = chain(size)
    index, heights, widths = np.arange(count), np.full(count, shape[0]), np.full(count, shape[1])
    made = count * plan.num_views

    def finish(plan: ViewPlan, views: list[torch.Tensor]) -> list[torch.Tensor]:
        return plan.apply(views, 0, 0, torch.from_numpy(index), MEAN, STD)

    def torchvision_chain() -> None:
        for _ in range(plan.num_views):
            torch.stack([transform(image) for image in tensors])

    def cut() -> None:
        views = []
        for group, rows in zip(plan.views, plan.boxes(0, 0, index, heights, widths), strict=True):
            made = [crops.cut(image, row, group.size) for image, row in zip(images, rows, strict=True)]
            views.append(torch.from_numpy(np.stack([view.transpose(2, 0, 1) for view in made])))
        finish(plan, views)

    def in_memory() -> None:
        boxes = plan.boxes(0, 0, index, heights, widths)
        finish(plan, [crops.cut_batch(tensors, torch.from_numpy(rows), size) for rows in boxes])

    routes: dict[str, tuple[int, Callable[[], object]]] = {"torchvision": (made, torchvision_chain), "cut": (made, cut)}
    if size <= 64:
        routes["in_memory"] = (made, in_memory)
    return routes


if __name__ == "__main__":
    main()
