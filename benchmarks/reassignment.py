"""What a reassignment costs beside an epoch of training: DeepCluster and DeeperCluster on N images.

    python benchmarks/reassignment.py DATA... [--clusters 1000] [--threads 2] [--steps 40]

DATA are tars or folders of images, 50,000 in all for the figure of the paper (which gives a third of an epoch). Each
method runs `--steps` steps of an epoch, from which the whole epoch is extrapolated, and one reassignment in full: the
pass over all images, whitening and k-means, timed apart. Quarter-width ResNet-18, 32 px, one view, batch 128.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()

    import numpy as np
    import torch

    from selfcluster.data.decode import decode
    from selfcluster.data.loader import Loader
    from selfcluster.data.sources import open_source
    from selfcluster.methods import METHODS
    from selfcluster.models.backbones import make_backbone
    from selfcluster.training.embedding import make_embed
    from selfcluster.training.optim import make_optimizer
    from selfcluster.training.precision import autocast, pick_precision
    from selfcluster.types import Crops, DatasetInfo, Progress, Training

    torch.set_num_threads(args.threads)
    sources = [open_source(str(path)) for path in args.data]
    files: list[Any] = [source.read(i) for source in sources for i in range(len(source))]
    pixels = np.stack([decode(file) for file in files])
    source, device = open_source(pixels), torch.device("cpu")
    precision, n = pick_precision("auto", device), len(pixels)
    norm: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    for name in ("deepcluster", "deepercluster"):
        kind = METHODS[name]
        settings = kind.Settings(num_prototypes=args.clusters)
        torch.manual_seed(0)

        def backbone(**create: Any) -> Any:
            return make_backbone("resnet18_small_w25", channels=3, image_size=32, **create)

        method = kind(backbone, settings, DatasetInfo(n, 32, 3)).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(method.groups(), Training(learning_rate=0.05))
        loader = Loader(source, batch_size=128, image_size=32, channels=3, device=device, workers=1, **norm)
        views = kind.views(settings, Crops(global_crops=1, global_size=32, augment="weak"), 3)
        embed = make_embed(method, loader, None, device=device, precision=precision)
        passed: list[float] = []

        def timed(*given: Any, embed: Any = embed, passed: list[float] = passed, **named: Any) -> Any:
            began = time.perf_counter()
            share = embed(*given, **named)
            passed.append(time.perf_counter() - began)
            return share

        began = time.perf_counter()
        method.reassign(Progress(0, 10_000, 0, n // 128, 0), timed)
        reassignment = time.perf_counter() - began
        method.train()
        batches = loader.batches(views, method.plan(), 0, 0, n // 128, 0)
        for step, batch in enumerate(itertools.islice(batches, args.steps + 3)):
            if step == 3:
                began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, precision):
                output = method(batch, Progress(step, 10_000, 0, n // 128, 0))
            output.loss.backward()
            optimizer.step()
        epoch = (time.perf_counter() - began) / args.steps * (n // 128)
        row = {
            "method": name,
            "images": n,
            "clusters": args.clusters,
            "pass_s": round(sum(passed), 1),
            "clustering_s": round(reassignment - sum(passed), 1),
            "epoch_s": round(epoch, 1),
            "share": round(reassignment / (reassignment + epoch), 3),
            "precision": precision,
            "threads": args.threads,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
