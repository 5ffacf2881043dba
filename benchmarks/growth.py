"""Whole commands on growing folders: processor time and peak memory against the number of images.

    python benchmarks/growth.py [--sizes 500 5000 16000 50000] [--json FILE]

Photographs of two sizes are made up (so that they are read from the disk, and not kept in memory) and trained on,
embedded, clustered and scored by k-NN, each command a process of its own with one thread. What a command costs at the
first size is taken off the others, and the exponent is fitted to what is left. Processor time depends little on what
else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from record import RESULTS, append

TRAIN = "--backbone tiny_layout --image-size 32 --batch-size 128 --epochs 1 --local-crops 0 --quiet --workers 1"
LABELS = ["--labels-from", "folders"]


def make_folder(folder: Path, count: int) -> Path:
    """Write JPEGs of 48 x 48 and 48 x 56 pixels in ten folders, their classes, unless they are there."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (10, 3))
    for number in range(count):
        file = folder / f"class{number % 10}/{number:06d}.jpg"
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 96, (6, 6 + number // 10 % 2, 3))
        pixels = np.kron((colors[number % 10] * 0.6 + noise).astype(np.uint8), np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels).save(file, quality=85)
    return folder


# The child's own peak counts, and not that of a process it was copied from.
CHILD = """
import json, resource, sys
from selfcluster.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": used.ru_utime + used.ru_stime, "megabytes": peak / 1024}), file=sys.stderr)
sys.exit(code)
"""


def run(words: list[str]) -> dict[str, float]:
    """Processor seconds and peak megabytes of a command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"selfcluster {' '.join(words)}:\n{done.stderr[-2000:]}")
    return json.loads(done.stderr.splitlines()[-1])


def commands(folder: Path, out: Path) -> dict[str, list[str]]:
    """The words of each command on a folder; later ones use what earlier ones wrote."""
    trained = str(out / "trained")
    return {
        "train": ["train", "swav", str(folder), "--out", trained, *TRAIN.split()],
        "embed": ["embed", trained, str(folder), "--out", str(out / "vectors.parquet"), "--workers", "1"],
        "cluster": ["cluster", str(out / "vectors.parquet"), "--k", "50", "--out", str(out / "clusters.parquet")],
        "evaluate knn": ["evaluate", "knn", trained, "--train", str(folder), *LABELS, "--workers", "1"],
    }


def measure(root: Path, sizes: list[int]) -> dict[str, list[dict[str, float]]]:
    """Every command on every size."""
    found: dict[str, list[dict[str, float]]] = {}
    for size in sizes:
        folder = make_folder(root / f"images-{size}", size)
        with tempfile.TemporaryDirectory() as out:
            for name, words in commands(folder, Path(out)).items():
                found.setdefault(name, []).append(run(words))
                print(f"{size:>7} images  {name:<14}", found[name][-1], flush=True)
    return found


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The e of the best fit of (seconds - seconds[0]) to (size - sizes[0]) ** e."""
    more = np.array([sizes, seconds])[:, 1:] - np.array([sizes[:1], seconds[:1]])
    sizes_left, seconds_left = np.log(more)
    return float(np.polyfit(sizes_left, seconds_left, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 5000, 16000, 50000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "growth")
    parser.add_argument("--json", type=Path, default=RESULTS / "growth.jsonl")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    found = measure(chosen.folder, chosen.sizes)
    for name, runs in found.items():
        seconds = [round(each["seconds"], 2) for each in runs]
        rows.append({"command": name, "images": chosen.sizes, "processor seconds": seconds})
        rows[-1]["exponent"] = round(exponent(chosen.sizes, seconds), 2)
        rows[-1]["peak megabytes"] = [round(each["megabytes"]) for each in runs]
    for row in rows:
        print(row)
    append(chosen.json, "growth", rows, 1)


if __name__ == "__main__":
    main()
