"""Every figure that needs a GPU, in one command of at most eight minutes: `python benchmarks/gpu.py`.

    python benchmarks/gpu.py [SECTION ...] [--scale 1.0] [--rounds 7]

Sections: kmeans, large, sinkhorn, neighbors, views, step. Without names all of them run. Contestants of a section take
turns; a figure is the median over the rounds, a ratio the median of each round's ratio. Peers that are not installed
(flash-kmeans, kornia) are left out and named. The script checks results before it times them: labels against float64 on
a sample, codes and views against the CPU's. It prints a table and appends a line of JSON a row to results/gpu.jsonl.
On a machine without CUDA, `--scale 0.001` runs all sections on the CPU, to try the script; nothing is written then.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from record import commit, processor
from selfcluster.clustering.assign import nearest_centroid
from selfcluster.clustering.lloyd import Empty, assignment_pass, average
from selfcluster.clustering.neighbors import nearest
from selfcluster.clustering.rows import Rows
from selfcluster.clustering.sinkhorn import sinkhorn
from selfcluster.types import Crops
from selfcluster.views import crops
from selfcluster.views.augmentations import plan_from_crops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
_IN_A_ROW = 20  # calls of Sinkhorn between two waits for the device
Row = dict[str, Any]


def seconds(run: Callable[[], Any]) -> float:
    """Seconds of one call, the device's work included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; a first round warms up and does not count."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            value = seconds(run)
            if number:
                taken[name].append(value)
    return taken


def rows_of(section: str, taken: dict[str, list[float]], unit: str, per: float, size: str, **more: Any) -> list[Row]:
    """A row a contestant: the median in `unit` (1e3: milliseconds; else things a second), and the ratio to ours."""
    table = []
    for name, values in taken.items():
        median = statistics.median(values)
        figure = median * 1e3 if unit == "ms" else per / median
        ratio = statistics.median(v / o for v, o in zip(values, taken["ours"], strict=True))
        row = {"section": section, "who": name, unit: round(figure, 4), "ours is faster by": round(ratio, 2)}
        table.append(row | {"size": size, **more})
    return table


def mixture(n: int, d: int, seed: int = 0) -> Tensor:
    """(n, d) float32 rows around n / 200 overlapping centers."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    x = torch.randn(n, d, device=DEVICE, generator=generator)
    centers = torch.randn(max(2, n // 200), d, device=DEVICE, generator=generator)
    return x.add_(centers[torch.randint(len(centers), (n,), device=DEVICE, generator=generator)])


def kmeans(options: argparse.Namespace) -> list[Row]:
    """One exact iteration of k-means at ImageNet's size: assignment and new centroids."""
    n, d, k = max(400, int(1_281_167 * options.scale)), 256, max(8, int(10_000 * options.scale))
    x = mixture(n, d)
    start = x[torch.randperm(n, device=DEVICE)[:k]].clone()
    rows, draw = Rows(x), np.random.default_rng(0)
    sample = torch.randperm(n, device=DEVICE)[:2000]
    labels = nearest_centroid(x, start).labels[sample]
    true = torch.cat([torch.cdist(part.double(), start.double()).argmin(dim=1) for part in x[sample].split(200)])
    wrong = int((labels != true).sum())

    def iteration() -> None:
        average(assignment_pass(rows, start, None), start, spherical=False, empty=Empty(), draw=draw)

    contestants: dict[str, Callable[[], Any]] = {"ours": iteration}
    contestants["ours, assignment alone"] = lambda: nearest_centroid(x, start)
    contestants["ours, the torch route"] = lambda: nearest_centroid(x, start, engine="bfloat16")
    if importlib.util.find_spec("flash_kmeans") is not None:
        flash: Any = importlib.import_module("flash_kmeans")
        for name, dtype in (("flash-kmeans", torch.float32), ("flash-kmeans, bfloat16 rows", torch.bfloat16)):
            low = (x[None].to(dtype), start[None].to(dtype))
            contestants[name] = lambda low=low: flash.batch_kmeans_Euclid(low[0], k, max_iters=1, init_centroids=low[1])
    taken = in_turn(contestants, options.rounds)
    size = f"{n} x {d}, k = {k}"
    return rows_of("kmeans", taken, "ms", 1, size, wrong_labels_of_2000=wrong)


def large(options: argparse.Namespace) -> list[Row]:
    """One iteration of ten million rows and 20,000 centroids completes."""
    n, d, k = max(400, int(10_000_000 * options.scale)), 128, max(8, int(20_000 * options.scale))
    x = mixture(n, d)
    start = x[:k].clone()
    return rows_of("large", in_turn({"ours": lambda: nearest_centroid(x, start)}, 2), "ms", 1, f"{n} x {d}, k = {k}")


def reference_sinkhorn(scores: Tensor) -> Tensor:
    """The paper's form: the whole matrix is rewritten in each half-step."""
    q = torch.exp(scores / 0.05).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(dim=1, keepdim=True) * len(q)
        q /= q.sum(dim=0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).T


def codes(options: argparse.Namespace) -> list[Row]:
    """SwAV's codes of a batch of 4,096 for 3,000 prototypes, 3 iterations."""
    b, k = max(64, int(4096 * options.scale)), max(30, int(3000 * options.scale))
    generator = torch.Generator().manual_seed(0)
    unit = [torch.nn.functional.normalize(torch.randn(m, 128, generator=generator), dim=1) for m in (b, k)]
    scores = (unit[0] @ unit[1].T).to(DEVICE)
    error = float((sinkhorn(scores).double() - reference_sinkhorn(scores.double())).abs().max())

    def ours() -> None:  # as a training step calls it, which checks its loss itself
        for _ in range(_IN_A_ROW):
            sinkhorn(scores, check_finite=False)

    def reference() -> None:
        for _ in range(_IN_A_ROW):
            reference_sinkhorn(scores)

    taken = in_turn({"ours": ours, "reference form": reference}, options.rounds)
    each = {name: [value / _IN_A_ROW for value in values] for name, values in taken.items()}
    return rows_of("sinkhorn", each, "ms", 1, f"{b} x {k} x 3, {_IN_A_ROW} calls in a row", error=error)


def neighbors(options: argparse.Namespace) -> list[Row]:
    """The 20 nearest of 200,000 rows for 10,000 queries."""
    n, m, d = max(50, int(10_000 * options.scale)), max(200, int(200_000 * options.scale)), 384
    queries, database = (
        torch.nn.functional.normalize(mixture(rows, d, seed), dim=1) for seed, rows in enumerate((n, m))
    )

    def peer() -> Tensor:
        return torch.cat([(part @ database.T).topk(20).indices for part in queries.split(2000)])

    ours = nearest(queries, database, 20).indices
    agreement = float((ours.sort(dim=1).values == peer().sort(dim=1).values).float().mean())
    taken = in_turn({"ours": lambda: nearest(queries, database, 20), "torch matmul, topk": peer}, options.rounds)
    return rows_of("neighbors", taken, "ms", 1, f"{n} x {m} x {d}", agreement=round(agreement, 5))


def views(options: argparse.Namespace) -> list[Row]:
    """SwAV's views of images on the device: two of 32 px, and 2 x 224 + 6 x 96 from 256 px."""
    table = []
    for side, count, setting in (
        (32, 4096, Crops(augment="swav", global_size=32)),
        (256, 256, Crops(augment="swav", local_crops=6)),
    ):
        count = max(4, int(count * options.scale))
        images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=DEVICE)
        plan, index = plan_from_crops(setting), np.arange(count)
        sides = np.full(count, side)

        def make(
            plan: Any = plan, images: Tensor = images, index: np.ndarray = index, sides: np.ndarray = sides
        ) -> None:
            boxes = plan.boxes(0, 0, index, sides, sides)
            cut = [
                crops.cut_batch(images, torch.from_numpy(box), group.size)
                for group, box in zip(plan.views, boxes, strict=True)
            ]
            plan.apply(cut, 0, 0, torch.from_numpy(index), (0.5,) * 3, (0.25,) * 3)

        contestants: dict[str, Callable[[], Any]] = {"ours": make}
        if importlib.util.find_spec("kornia") is not None:
            contestants["kornia"] = kornia_views(plan, images)
        size = f"{plan.num_views} views of {side} px images"
        table += rows_of("views", in_turn(contestants, options.rounds), "images/s", count, size)
    return table


def kornia_views(plan: Any, images: Tensor) -> Callable[[], None]:
    """The same views by kornia's modules, on float images in 0..1."""
    K: Any = importlib.import_module("kornia.augmentation")
    chains = [
        K.AugmentationSequential(
            K.RandomResizedCrop((group.size, group.size), scale=group.scale),
            K.RandomHorizontalFlip(),
            K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5),
            K.Normalize(0.5, 0.25),
        )
        for group in plan.views
    ]

    def make() -> None:
        pixels = images.float() / 255
        for chain in chains:
            chain(pixels)

    return make


def step(options: argparse.Namespace) -> list[Row]:
    """Whole training steps of SwAV, ResNet-18 at 32 px, images in the device's memory: views, step, logging."""
    from selfcluster.commands.train import train

    count = max(64, int(51_200 * options.scale))
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    table = []
    for batch, compiles in ((256, False), (512, False), (512, True)):
        batch = max(16, min(batch, count // 2))
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "backbone": "resnet18_small",
                "image_size": 32,
                "batch_size": batch,
                "epochs": 3 * options.epochs,
                "compile": compiles and DEVICE.type == "cuda",
            }
            start = time.perf_counter()
            train(
                "swav", images, out=Path(folder) / "run", quiet=True, optimizer="larc", num_prototypes=100, **settings
            )
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
            speeds = [json.loads(line)["images_per_second"] for line in lines]
        figure = statistics.median(speeds[len(speeds) // 2 :])
        table.append({"section": "step", "who": "ours", "images/s": figure, "size": f"SwAV, batch {batch}"})
        table[-1]["compile"] = compiles
        table[-1]["minutes with start and end"] = round((time.perf_counter() - start) / 60, 2)
    return table


SECTIONS = {"kmeans": kmeans, "large": large, "sinkhorn": codes, "neighbors": neighbors, "views": views, "step": step}


def main() -> None:
    """Run the sections and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full sizes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=float, default=1.0, help="a third of the epochs of the step section")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {processor()}"
    about = {"date": str(datetime.date.today()), "device": device, "torch": torch.__version__, "commit": commit()}
    table: list[Row] = []
    for name in options.sections:
        start = time.perf_counter()
        try:
            found = SECTIONS[name](options)
        except Exception as error:  # a section that fails leaves the others their turn, and stands in the table
            found = [{"section": name, "failed": f"{type(error).__name__}: {error}"}]
        table += found
        for row in found:
            print(json.dumps(row), flush=True)
        print(f"# {name}: {time.perf_counter() - start:.0f} s", flush=True)
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    if DEVICE.type == "cuda" and options.scale == 1.0:
        with RESULTS.open("a") as file:
            file.writelines(json.dumps(about | row) + "\n" for row in table)
    print(f"\n{about}")
    for row in table:
        print("  ".join(f"{key}: {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
