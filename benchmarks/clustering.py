"""The clustering core against its peers: `python benchmarks/clustering.py SECTION ... [--scale 0.1]`.

Sections: kmeans-faiss, large, sinkhorn, knn, distributed, growth, real (needs --images or --runs). Contestants of a
section run in turn, `--repeats` times, from equal starts, peers without subsampling or early stopping; a figure is the
median, a ratio the median of the rounds' ratios. Each section prints a table and appends a line of JSON to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from record import RESULTS, append
from selfcluster import compiler, distributed
from selfcluster.clustering import assign, lloyd, native, scores
from selfcluster.clustering.hierarchical import HierarchicalKMeans
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.neighbors import nearest
from selfcluster.clustering.pic import PowerIterationClustering
from selfcluster.clustering.sinkhorn import sinkhorn
from selfcluster.clustering.whitening import Whitening

Row = dict[str, Any]


def made_up(n: int, d: int, kind: str, seed: int = 0) -> Tensor:
    """(n, d) float32 rows: "noise" has no clusters at all, "mixture" has n / 200 overlapping ones.

    They lie in NumPy's memory, for which it asks the system for huge pages, as most users' rows do.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(np.empty((n, d), np.float32)).normal_(generator=generator)
    if kind == "mixture":
        centers = torch.randn(max(2, n // 200), d, generator=generator)
        for part in x.split(4096):
            part += centers[torch.randint(len(centers), (len(part),), generator=generator)]
    return x


def inertia64(x: Tensor, centers: Tensor, labels: Tensor) -> float:
    """Sum of squared distances to the centers that the labels name, in float64."""
    pairs = zip(x.split(4096), labels.split(4096), strict=True)
    return sum(float((part.double() - centers[of].double()).square().sum()) for part, of in pairs)


@contextlib.contextmanager
def route(name: str) -> Iterator[None]:
    """Which engine assigns: "native" or one of its sets of instructions, "torch" (nothing compiled), "float32"."""
    fastest = assign._fastest
    if name in compiler.INSTRUCTIONS:
        os.environ["SELFCLUSTER_NATIVE"] = name
    elif name != "native":
        os.environ["SELFCLUSTER_NATIVE"] = "0"
    if name == "float32":
        assign._fastest = lambda x: "float32"
    try:
        yield
    finally:
        os.environ.pop("SELFCLUSTER_NATIVE", None)
        assign._fastest = fastest


def lesser_instructions() -> list[str]:
    """The sets of instructions that this processor has beside its best one, the best first."""
    found = []
    for name in compiler.INSTRUCTIONS:
        with route(name):
            if native.instructions() == name:
                found.insert(0, name)
    return found[1:]


def in_turn(contestants: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every contestant in every round, and what each returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results = {}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def ratio(peer: list[float], ours: list[float]) -> float:
    """How many times faster than the peer: the median over the rounds."""
    return statistics.median(p / o for p, o in zip(peer, ours, strict=True))


def kmeans_faiss(options: argparse.Namespace) -> list[Row]:
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(options.threads)
    n, d, k, steps = int(200_000 * options.scale), 256, max(10, int(1000 * options.scale)), 10
    table = []
    for kind in ("noise", "mixture"):
        x = made_up(n, d, kind)
        start = x[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:k]].clone()

        def peer(x: Tensor = x, start: Tensor = start) -> tuple[Tensor, Tensor]:
            model = faiss.Kmeans(d, k, niter=steps, max_points_per_centroid=n, min_points_per_centroid=1)
            model.train(x.numpy(), init_centroids=start.numpy())
            labels = model.index.search(x.numpy(), 1)[1]
            return torch.from_numpy(model.centroids.reshape(k, d)), torch.from_numpy(labels[:, 0])

        def ours(name: str, x: Tensor = x, start: Tensor = start) -> tuple[Tensor, Tensor]:
            with route(name):
                model: Any = KMeans(k, init=start, max_iter=steps, donor="size", random_state=0).fit(x)
            return model.cluster_centers_, model.labels_

        contestants: dict[str, Callable[[], Any]] = {"faiss": peer}
        for name in ("native", *lesser_instructions(), "torch", "float32"):
            contestants[name] = lambda name=name: ours(name)
        seconds, results = in_turn(contestants, options.repeats)
        reference = inertia64(x, *results["faiss"])
        for name in contestants:
            inertia = inertia64(x, *results[name])
            table.append(
                {
                    "data": kind,
                    "who": name,
                    "seconds": statistics.median(seconds[name]),
                    "ms an assignment": statistics.median(seconds[name]) / (steps + 1) * 1e3,
                    "times faiss's speed": ratio(seconds["faiss"], seconds[name]),
                    "inertia over faiss's": inertia / reference - 1,
                    "labels as native's": float((results[name][1] == results["native"][1]).float().mean()),
                }
            )
    return table


def large(options: argparse.Namespace) -> list[Row]:
    n, d, k = int(1_281_167 * options.scale), 256, max(100, int(10_000 * options.scale))
    table = []
    for kind in ("mixture", "noise"):
        x = made_up(n, d, kind)
        start = x[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:k]].clone()
        exact_time = exact_inertia = None
        for name in ("exact", "approximate"):
            before = _memory()
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model: Any = KMeans(k, init=start, max_iter=options.steps, approximate=name != "exact").fit(x)
            each = (time.perf_counter() - began) / len(model.history_)
            inertia = inertia64(x, model.cluster_centers_, model.labels_)
            exact_time, exact_inertia = exact_time or each, exact_inertia or inertia
            table.append(
                {
                    "data": kind,
                    "who": name,
                    "seconds an iteration": each,
                    "times exact's speed": exact_time / each,
                    "inertia over exact's": inertia / exact_inertia - 1,
                    "peak memory beside the rows, MB": _memory() - before,
                }
            )
            print(table[-1], flush=True)
        with route("float32"):
            began = time.perf_counter()
            assign.nearest_centroid(x[: n // 20], start)
            each = (time.perf_counter() - began) * 20
        row = {"data": kind, "who": "float32 assignment", "seconds an iteration": each}
        table.append(row | {"times exact's speed": (exact_time or each) / each})
    return table


def _memory() -> float:
    """Peak in_memory memory so far, MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reference_sinkhorn(scores_: Tensor, epsilon: float, iterations: int) -> Tensor:
    """SwAV's published formulation, step for step: the whole matrix rescaled at every half-step."""
    q = torch.exp(scores_ / epsilon).T.contiguous()
    q /= q.sum()
    clusters, samples = q.shape
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= clusters
        q /= q.sum(dim=0, keepdim=True)
        q /= samples
    return (q * samples).T


def sinkhorn_(options: argparse.Namespace) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(int(4096 * options.scale), 128, generator=generator), dim=1)
    c = torch.nn.functional.normalize(torch.randn(3000, 128, generator=generator), dim=1)
    cosines = z @ c.T
    seconds, results = in_turn(
        {"reference": lambda: reference_sinkhorn(cosines, 0.05, 3), "selfcluster": lambda: sinkhorn(cosines, 0.05, 3)},
        max(15, options.repeats),  # the first few pay for memory that the system has not handed out before
    )
    true = reference_sinkhorn(cosines.double(), 0.05, 3)
    return [
        {
            "who": name,
            "ms": statistics.median(seconds[name]) * 1e3,
            "times the reference's speed": ratio(seconds["reference"], seconds[name]),
            "largest difference to float64": float((results[name].double() - true).abs().max()),
        }
        for name in seconds
    ]


def knn(options: argparse.Namespace) -> list[Row]:
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(options.threads)
    queries, size, d, k = int(10_000 * options.scale), int(200_000 * options.scale), 384, 20
    x = torch.nn.functional.normalize(made_up(queries + size, d, "mixture"), dim=1)
    query, base = x[:queries].numpy(), x[queries:].numpy()
    index = faiss.IndexFlatIP(d)
    index.add(base)
    seconds, results = in_turn(
        {"faiss": lambda: index.search(query, k)[1], "selfcluster": lambda: nearest(query, base, k).indices},
        options.repeats,
    )
    found = (results["selfcluster"][:, :, None] == results["faiss"][:, None, :]).any(axis=2).mean()
    return [
        {
            "who": name,
            "seconds": statistics.median(seconds[name]),
            "times faiss's speed": ratio(seconds["faiss"], seconds[name]),
            "recall": 1.0 if name == "faiss" else float(found),
        }
        for name in seconds
    ]


def _rank(rank: int, world: int, folder: str, n: int, k: int) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    x = made_up(n, 128, "mixture")[distributed.share(n)]
    waited, plain = [0.0], distributed.all_reduce

    def timed(value: Tensor, group: Any = None) -> Tensor:
        distributed.barrier()  # waiting for the slowest rank is not communication
        began = time.perf_counter()
        total = plain(value, group)
        waited[0] += time.perf_counter() - began
        return total

    lloyd.distributed.all_reduce = timed
    began = time.perf_counter()
    model = KMeans(k, max_iter=10, random_state=0).fit(x)
    seconds = time.perf_counter() - began
    if rank == 0:
        torch.save((model.cluster_centers_, seconds, waited[0]), f"{folder}/{world}.pt")
    if world > 1:
        dist.destroy_process_group()


def distributed_(options: argparse.Namespace) -> list[Row]:
    import torch.multiprocessing

    n, k = int(200_000 * options.scale), max(10, int(1000 * options.scale))
    table, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2, 4):
            torch.multiprocessing.spawn(_rank, (world, folder, n, k), nprocs=world)
            centers, seconds, waited = torch.load(f"{folder}/{world}.pt")
            first = centers if first is None else first
            table.append(
                {
                    "processes": world,
                    "seconds": seconds,
                    "communication share": waited / seconds if world > 1 else 0.0,
                    "largest difference to one process": float((centers - first).abs().max()),
                }
            )
    return table


def growth(options: argparse.Namespace) -> list[Row]:
    base = {"N": int(100_000 * options.scale), "d": 128, "k": max(64, int(1024 * options.scale))}
    table = []
    for letter in base:
        sizes, seconds = [], []
        for factor in (1, 2, 4):
            size = base | {letter: base[letter] * factor}
            x = made_up(size["N"], size["d"], "noise")
            rows, centers = lloyd.Rows(x), x[: size["k"]].clone()
            runs = {"pass": lambda rows=rows, centers=centers: lloyd.assignment_pass(rows, centers, None)}
            sizes.append(size[letter])
            seconds.append(min(in_turn(runs, options.repeats)[0]["pass"]))
        exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        table.append({"grows": letter, "sizes": str(sizes), "ms": str([round(s * 1e3, 1) for s in seconds])})
        table[-1]["exponent"] = float(exponent)
    return table


def real(options: argparse.Namespace) -> list[Row]:
    if options.images is None and not options.runs:
        raise SystemExit(
            "the section `real` needs --images FOLDER, with cifar10/ and clothing/ in it, or --runs RUN ..."
        )
    table = []
    for data, features, x, labels in (*_pictures(options), *_features(options)):
        for who, model in (
            ("k-means 100", KMeans(100, random_state=0)),
            ("spherical k-means 100", KMeans(100, spherical=True, random_state=0)),
            ("hierarchical 10 x 10", HierarchicalKMeans(10, 10, random_state=0, max_iter=20)),
            ("power iteration", PowerIterationClustering()),
        ):
            if features != "whitened" and who == "power iteration":
                continue  # its sigma is for whitened rows of length 1
            began = time.perf_counter()
            found = model.fit(x).labels_
            table.append(
                {
                    "data": f"{data}, {len(x):,}",
                    "features": features,
                    "who": who,
                    "seconds": time.perf_counter() - began,
                    "clusters": len(np.unique(found)),
                    "inertia": getattr(model, "inertia_", float("nan")),
                    "NMI to labels": scores.nmi(labels, found),
                }
            )
    return table


Features = tuple[str, str, np.ndarray, Any]  # data, features, rows (n, F), labels (n,)


def _pictures(options: argparse.Namespace) -> Iterator[Features]:
    """Pixels of the images in `--images`, and the same whitened."""
    from PIL import Image

    from selfcluster.data.decode import decode
    from selfcluster.data.sources import open_source

    for name, limit in (("cifar10", int(20_000 * options.scale)), ("clothing", 5398)) if options.images else ():
        source = open_source(options.images / name, limit=limit, labels_from="folders")
        files: list[Any] = [source.read(i) for i in range(len(source))]
        small = [Image.fromarray(decode(file)).convert("RGB").resize((32, 32)) for file in files]
        pixels = np.stack([np.asarray(image, np.float32).ravel() / 255 for image in small])
        yield name, "pixels", pixels, source.labels
        yield name, "whitened", Whitening(64).fit_transform(pixels).astype(np.float32), source.labels


def _features(options: argparse.Namespace) -> Iterator[Features]:
    """Features of the images of `--runs`, labeled by their folders, and the same whitened."""
    from selfcluster.runs.tables import EMBEDDINGS, read_embeddings

    for run in options.runs:
        rows = read_embeddings(run / EMBEDDINGS)
        labels = np.unique([Path(i).parent.name for i in rows.ids], return_inverse=True)[1]
        vectors = np.asarray(rows.vectors, np.float32)
        yield run.name, "features", vectors, labels
        yield run.name, "whitened", Whitening(64).fit_transform(vectors).astype(np.float32), labels


SECTIONS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "kmeans-faiss": kmeans_faiss,
    "large": large,
    "sinkhorn": sinkhorn_,
    "knn": knn,
    "distributed": distributed_,
    "growth": growth,
    "real": real,
}


def show(table: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in table for name in row))
    cells = [[_cell(row.get(name, "")) for name in names] for row in table]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    for line in [names, *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes; figures count at 1 only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="iterations of `large`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=Path, help="folder with cifar10/ and clothing/, for `real`")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="run folders with embeddings, for `real`")
    parser.add_argument("--dry", action="store_true", help="keep no result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native.available()  # compiled before anything is timed
    for section in options.sections:
        print(f"\n{section}")
        table = SECTIONS[section](options)
        show(table)
        if not options.dry:
            append(RESULTS / "clustering.jsonl", section, table, options.threads)


if __name__ == "__main__":
    main()
