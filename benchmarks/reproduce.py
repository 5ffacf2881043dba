"""Every method under one budget: CIFAR-10, 10,000 images, 24 px, a quarter-width ResNet-18, equal epochs, three seeds.

    python benchmarks/reproduce.py run DATA --out benchmarks/results/DATE-reproduce.jsonl [--jobs 2]
    python benchmarks/reproduce.py table benchmarks/results/DATE-reproduce.jsonl

DATA is a folder with `train-00000.tar`, the 10,000 training images, and `test-00000.tar`. A run is one process with one
thread; `--jobs` run side by side. A line a run is appended as it ends, and what has a line is not run again. Scores are
of the last epoch, on the 10,000 test images: 20-NN and a linear probe on the exported features, and for RotNet, Jigsaw
and ClusterFit of RotNet the probe of the best stage of the network, before and after. "Before" is what the run starts
from: its first weights, or for the rows that refine another run (`init`) that run. NMI is of the run's own clusters on
the training images (k-means on the features where the method has none). Core-minutes are the processor time of the
training, so that other work on the machine counts little: five minutes on two cores are ten.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BACKBONE = "resnet18_small_w25"
SIZE = 24  # pixels that the network sees of the 32
EPOCHS = 14
SEEDS = (0, 1, 2)
# what a row needs beside the recipe; {run ROW} is that row's run with the same seed, {file ROW} its weights as a file;
# `epochs` is how many times those of the others it takes
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "rotnet": ("rotnet", {}),
    "jigsaw": ("jigsaw", {}),
    "deepcluster": ("deepcluster", {}),
    "deepercluster": ("deepercluster", {}),
    "deepercluster from rotnet": ("deepercluster", {"init": "{run rotnet}"}),
    "sela": ("sela", {}),
    "sela_v2": ("sela_v2", {}),
    "deepcluster_v2": ("deepcluster_v2", {}),
    "swav": ("swav", {}),
    "odc": ("odc", {}),
    "odc from rotnet": ("odc", {"init": "{run rotnet}"}),
    "clusterfit of rotnet": ("clusterfit", {"teacher": "{run rotnet}"}),
    "dino": ("dino", {}),
    "npid": ("npid", {}),
    "simclr": ("simclr", {}),
    "moco_v2": ("moco_v2", {}),
    "byol": ("byol", {}),
    "dino from a file of rotnet": ("dino", {"init": "{file rotnet}"}),
    "supervised": ("supervised", {"labels_from": "folders"}),
    "supervised, noisy": ("supervised", {"labels_from": "folders", "label_noise": 0.5}),
    "clusterfit of supervised, noisy": ("clusterfit", {"teacher": "{run supervised, noisy}"}),
    "rotnet, twice as long": ("rotnet", {"epochs": 2}),
    "supervised, noisy, twice as long": ("supervised", {"labels_from": "folders", "label_noise": 0.5, "epochs": 2}),
    "rotnet on edges": ("rotnet", {"sobel": True}),
    "deepercluster on edges": ("deepercluster", {"sobel": True, "init": "{run rotnet on edges}"}),
}
BY_STAGE = ("rotnet", "jigsaw", "clusterfit of rotnet", "rotnet, twice as long", "rotnet on edges")
_NEEDS = re.compile(r"\{(run|file) (.*?)\}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "one", "table"))
    parser.add_argument("where", help="DATA, or the results")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    args = parser.parse_args()
    if args.action == "table":
        print(table([json.loads(line) for line in Path(args.where).read_text().splitlines()]))
    elif args.action == "one":
        row = one(args.methods[0], args.seeds[0], args.epochs, Path(args.where), args.runs)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    else:
        run_all(args)


def run_all(args: argparse.Namespace) -> None:
    """Each row in a process of its own, those that others start from first."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if args.out.exists():
        done = {(row["row"], row["seed"]) for row in map(json.loads, args.out.read_text().splitlines())}
    jobs = [(name, seed) for seed in args.seeds for name in args.methods if (name, seed) not in done]
    needed = {of for _, extra in ROWS.values() for value in extra.values() for _, of in _NEEDS.findall(str(value))}
    first = [job for job in jobs if job[0] in needed]

    def start(job: tuple[str, int]) -> None:
        name, seed = job
        words = [sys.executable, __file__, "one", args.where, "--methods", name, "--seeds", str(seed)]
        words += ["--epochs", str(args.epochs), "--out", str(args.out), "--runs", str(args.runs)]
        began = time.monotonic()
        code = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
        print(f"{name} seed {seed}: exit {code}, {(time.monotonic() - began) / 60:.1f} min", flush=True)

    for part in (first, [job for job in jobs if job not in first]):
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(start, part))


def one(name: str, seed: int, epochs: float, data: Path, runs: Path) -> dict[str, Any]:
    """Train a row with a seed; the scores before and after."""
    import torch

    import selfcluster
    from selfcluster import randomness
    from selfcluster.models.backbones import make_backbone, save_backbone
    from selfcluster.models.preprocessing import default_preprocessing

    torch.set_num_threads(1)
    method, extra = ROWS[name]
    out, start = folder_of(runs, name, seed), None
    for key, value in extra.items():
        if found := _NEEDS.fullmatch(str(value)):
            other = folder_of(runs, found[2], seed)
            start = other if key == "init" else start
            extra = {**extra, key: str(as_checkpoint(other) if found[1] == "file" else other)}
    if "epochs" in extra:
        extra = {**extra, "epochs": extra["epochs"] * epochs}
    train, test = data / "train-00000.tar", data / "test-00000.tar"
    flags: dict[str, Any] = {
        "backbone": BACKBONE,
        "image_size": SIZE,
        "epochs": epochs,
        "seed": seed,
        "workers": 1,
        **extra,
    }
    started, busy = time.monotonic(), core_seconds()
    summary = selfcluster.train(method, str(train), out=out, quiet=True, **flags)
    minutes, core_minutes = (time.monotonic() - started) / 60, (core_seconds() - busy) / 60
    if start is None:  # the first weights, which are the same in all rows
        sobel = extra.get("sobel", False)
        start = runs / f"untrained{'-edges' * sobel}-{seed}"
        torch.manual_seed(randomness.key(seed, "weights") >> 1)  # as `assemble` does
        untrained = make_backbone(BACKBONE, channels=3, image_size=SIZE, sobel=sobel)
        images = default_preprocessing(3, SIZE)
        save_backbone(start, untrained, images.mean, images.std, SIZE)
    file = start / f"scores{'-stages' * (name in BY_STAGE)}.json"
    if not file.exists():
        file.write_text(json.dumps(scores(str(start), train, test, name in BY_STAGE)))
    before = json.loads(file.read_text())
    found = selfcluster.evaluate("clusters", out, labels_from="folders")
    return {
        "row": name,
        "seed": seed,
        "before": before,
        "after": scores(str(out), train, test, name in BY_STAGE),
        "nmi": found["nmi_geometric"],
        "clusters": summary["clusters"],
        "minutes": round(minutes, 2),
        "core_minutes": round(core_minutes, 2),
        "loss": summary.get("loss"),
        "chance_loss": summary.get("chance_loss"),
        "rankme": summary.get("rankme"),
        "images": summary["images"],
        "epochs": flags["epochs"],
        "size": SIZE,
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "hardware": f"{platform.machine()}, one thread, torch {torch.__version__}",
    }


def core_seconds() -> float:
    """Processor time of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def folder_of(runs: Path, name: str, seed: int) -> Path:
    """Where a row's run lies."""
    return runs / f"{name.replace(',', '').replace(' ', '-')}-{seed}"


def as_checkpoint(run: Path) -> Path:
    """The network of a run as reference code for ImageNet saves one: `state_dict`, `module`, a classifier of 1,000."""
    import torch

    from selfcluster.models.backbones import load_backbone

    module, *_ = load_backbone(run)
    weights = {f"module.{key}": value for key, value in module.state_dict().items()}
    weights |= {"module.fc.weight": torch.zeros(1000, module.num_features), "module.fc.bias": torch.zeros(1000)}
    file = run / "checkpoint.pth.tar"
    torch.save({"epoch": 90, "arch": "resnet18", "state_dict": weights, "best_acc1": 0.0}, file)
    return file


def scores(network: str, train: Path, test: Path, by_stage: bool) -> dict[str, float]:
    """k-NN and linear accuracy of a network's features; where asked the probe of each stage, too."""
    import selfcluster
    from selfcluster.evaluation.protocols.knn import knn
    from selfcluster.evaluation.protocols.logistic import logistic

    x, y = (selfcluster.embed(network, str(part), labels_from="folders", workers=1) for part in (train, test))
    result = {
        "knn": knn(x["vectors"], x["labels"], y["vectors"], y["labels"])["top1"],
        "linear": logistic(x["vectors"], x["labels"], y["vectors"], y["labels"])["top1"],
    }
    if by_stage:
        first, second = stages(network, train), stages(network, test)
        for number, (a, b) in enumerate(zip(first, second, strict=True), start=1):
            result[f"stage{number}"] = logistic(a, x["labels"], b, y["labels"])["top1"]
    return result


def stages(network: str, data: Path) -> list[Any]:
    """The maps of the four stages of a residual network, averaged to about 512 numbers each: [(N, F)] * 4."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    from selfcluster.data.loader import Loader
    from selfcluster.data.sources import open_source
    from selfcluster.models.backbones import load_backbone
    from selfcluster.training.embedding import gather_rows, make_embed
    from selfcluster.training.precision import pick_precision

    module, mean, std, size = load_backbone(Path(network))
    source, device = open_source(str(data)), torch.device("cpu")
    loader = Loader(source, batch_size=256, image_size=size, channels=3, mean=mean, std=std, workers=1)
    maps: dict[int, Any] = {}
    for number, side in enumerate((6, 4, 3, 2), start=1):  # of 16, 32, 64 and 128 channels

        def keep(module: Any, args: Any, out: Any, number: int = number, side: int = side) -> None:
            maps[number] = adaptive_avg_pool2d(out.float(), side).flatten(1)

        getattr(module, f"layer{number}").register_forward_hook(keep)

    def all_stages(views: Any) -> Any:
        module(views[0])
        return torch.cat([maps[number] for number in sorted(maps)], dim=1)

    embed = make_embed(module, loader, None, device=device, precision=pick_precision("auto", device))
    _, rows = gather_rows(embed(all_stages))
    widths = [maps[number].shape[1] for number in sorted(maps)]
    return list(torch.from_numpy(rows).split(widths, dim=1))


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in per cent, as Markdown."""
    lines = [
        "| method | 20-NN before | 20-NN | linear before | linear | NMI (clusters) | core-minutes | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        mine = [row for row in rows if row["row"] == name]
        if not mine:
            continue

        def cell(pick: Any, scale: float = 100, digits: int = 1, mine: list[dict[str, Any]] = mine) -> str:
            values = [pick(row) * scale for row in mine]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.{digits}f}{spread}"

        cells = [cell(lambda r, w=w, s=s: r[w][s]) for s in ("knn", "linear") for w in ("before", "after")]
        clusters = round(statistics.mean(row["clusters"] for row in mine))
        nmi, minutes = cell(lambda r: r["nmi"], 1, 3), cell(lambda r: r.get("core_minutes", r["minutes"]), 1)
        lines.append(f"| {name} | {' | '.join(cells)} | {nmi} ({clusters}) | {minutes} | {len(mine)} |")
    for name in BY_STAGE:
        mine = [row for row in rows if row["row"] == name and "stage1" in row["after"]]
        if mine:
            best = [
                max((v, k) for k, v in row[w].items() if k.startswith("stage"))
                for w in ("before", "after")
                for row in mine
            ]
            half = len(mine)
            mean = [statistics.mean(v for v, _ in part) * 100 for part in (best[:half], best[half:])]
            lines += [
                "",
                f"{name}, linear probe of the best stage: {mean[0]:.1f} before, {mean[1]:.1f} after ({best[half][1]}).",
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
