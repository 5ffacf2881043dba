"""Two processes give what one gives on the concatenated batch: all parts of clustering/ in one pair of processes."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from selfcluster import distributed
from selfcluster.clustering.balanced import balanced_assignment
from selfcluster.clustering.memory import CentroidMemory, FeatureQueue, LabelMemory, SampleMemory
from selfcluster.clustering.neighbors import nearest
from selfcluster.clustering.pic import PowerIterationClustering
from selfcluster.clustering.sinkhorn import Centering, sinkhorn
from selfcluster.clustering.whitening import Whitening

CUT = 17  # rank 0's rows of 50: shares are unequal on purpose


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def mine(x: torch.Tensor) -> torch.Tensor:
    """This rank's rows; all of them in one process."""
    if distributed.world_size() == 1:
        return x
    return x[:CUT] if distributed.rank() == 0 else x[CUT:]


def everything() -> dict[str, torch.Tensor]:
    """This rank's part of each result, and `same` ones that all ranks must hold alike."""
    scores, extra = rows(50, 6, 0) * 0.2, rows(31, 6, 1) * 0.2
    out = {
        "sinkhorn": sinkhorn(mine(scores)),
        "sinkhorn, extra": sinkhorn(mine(scores), extra=extra),
        "sinkhorn, float64": sinkhorn(mine(scores.double()), 1e-3, extra=extra.double()),
        "sinkhorn, an empty rank": sinkhorn(scores if distributed.rank() == 0 else scores[:0])[:CUT],
    }
    if distributed.world_size() > 1 and distributed.rank() == 1:
        out["sinkhorn, an empty rank"] = out["sinkhorn, an empty rank"].new_empty(0, 6)
    centering = Centering(6)
    centering.update(mine(scores))
    out["same: center"] = centering.center

    found = balanced_assignment(mine(scores), sharpness=20.0)
    out |= {"balanced": found.labels, "same: potentials": found.potentials, "same: counts": found.counts}

    features, index = rows(50, 4, 2), torch.arange(50) * 7 % 23  # every sample twice or thrice
    queue, memory, labels = FeatureQueue(60, 4), SampleMemory(30, 4, momentum=0.5), LabelMemory(30)
    for epoch in (0, 1):
        queue.push(mine(features) + epoch)
        memory.write(mine(index), mine(features) + epoch, epoch)
    labels.write(mine(index), mine(torch.arange(50)))
    centroids = CentroidMemory(5, 4)
    centroids.recompute(memory.rows, torch.arange(30) % 5)
    out |= {"same: queue": queue.rows, "same: samples": memory.rows, "same: written": memory.written}
    out |= {"same: labels": labels.labels, "same: centroids": centroids.rows}

    whitening = Whitening(3).fit(mine(features))
    out |= {"whitening": whitening.transform(mine(features)), "same: mean": torch.from_numpy(whitening.mean_)}

    database = rows(50, 4, 3)
    for metric in ("inner_product", "l2"):
        value, number = nearest(mine(features), mine(database), 5, metric=metric)
        out |= {f"nearest {metric}": value, f"nearest {metric}, indices": number}
    # k beyond a rank's own rows
    out["nearest, many"] = nearest(mine(features), mine(database), 40, exclude_self=True, metric="l2").indices
    out["pic"] = PowerIterationClustering(3, sigma=1.0).fit_predict(mine(features))
    return out


def process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    np.savez(folder / f"{rank}.npz", **{name: x.numpy() for name, x in everything().items()})  # pyright: ignore
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(process, (port, tmp_path), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    for name, expected in everything().items():
        if name.startswith("same: "):
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
            found = first[name]
        else:
            found = np.concatenate([first[name], second[name]])
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)
