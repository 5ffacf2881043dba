"""What tests share: one pool of two ranks, and runs small enough to be trained in a second."""

import multiprocessing as mp
import os
import socket
import traceback
from contextlib import contextmanager

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # two test processes share two cores
if not torch.cuda.is_available():  # before Triton is imported: without a GPU its interpreter runs the kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")


@contextmanager
def threads(count: int):
    """torch computes with this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def networks() -> None:
    """Tests make selfcluster's networks through timm."""
    from selfcluster.models.registration import register_with_timm

    register_with_timm()


def _serve(rank: int, world: int, port: int, requests, answers) -> None:
    """One rank of the pool: run what is asked for, in the group, until told to stop."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    while (request := requests.get()) is not None:
        function, arguments = request
        try:
            answers.put((True, function(*arguments)))
        except Exception:
            answers.put((False, traceback.format_exc()))
    torch.distributed.destroy_process_group()


class Ranks:
    """Two processes in a gloo group; `run(f, *args)` runs f on both and returns both results."""

    world = 2
    start = "spawn"  # how processes are made
    timeout = 120  # seconds for an answer

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = mp.get_context(self.start)
        self._queues = [(context.Queue(), context.Queue()) for _ in range(self.world)]
        self._processes = [
            context.Process(target=_serve, args=(rank, self.world, port, *queues), daemon=True)
            for rank, queues in enumerate(self._queues)
        ]
        for process in self._processes:
            process.start()

    def run(self, function, *arguments):
        for requests, _ in self._queues:
            requests.put((function, arguments))
        results = [answers.get(timeout=self.timeout) for _, answers in self._queues]
        for fine, value in results:
            if not fine:
                pytest.fail(value)
        return [value for _, value in results]

    def close(self) -> None:
        for requests, _ in self._queues:
            requests.put(None)
        for process in self._processes:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()


@pytest.fixture(scope="session")
def ranks():
    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """48 images (16, 16, 3) of four kinds that differ in where they are bright."""
    rng = np.random.default_rng(0)
    kinds = np.zeros((4, 16, 16, 3))
    kinds[0, :8], kinds[1, :, :8], kinds[2, 4:12, 4:12], kinds[3, ::4] = 180, (150, 60, 0), (0, 90, 170), 120
    return (kinds[np.arange(48) % 4] + rng.uniform(0, 70, (48, 16, 16, 3))).astype(np.uint8)


# a run of any method that takes a second: flags shared by all
TINY = {
    "backbone": "tiny_layout",
    "image_size": 16,
    "batch_size": 16,
    "epochs": 3,
    "local_crops": 0,
    "sobel": False,
    "precision": "fp32",
    "workers": 1,
    "quiet": True,
}
TINY_SETTINGS = {
    "swav": {"num_prototypes": 8, "dim": 16, "hidden": 32, "queue_length": 32, "queue_from_epoch": 1.0},
    "dino": {"num_prototypes": 16, "dim": 16, "hidden": 32, "teacher_momentum": 0.9, "batch_norm": True},
    "clusterfit": {"teacher": "tiny_layout", "num_prototypes": 4},
    "deepcluster": {"num_prototypes": 8, "pca_dim": 16},
    "deepcluster_v2": {"num_prototypes": 8, "dim": 16, "hidden": 32, "num_heads": 3},
    "jigsaw": {"num_permutations": 10, "hidden": 32},
    "deepercluster": {"num_prototypes": 8, "num_super_clusters": 2, "pca_dim": 8, "reassign_epochs": 2},
    "rotnet": {},
    "sela": {"num_prototypes": 8, "num_heads": 2, "num_optimizations": 5},
    "sela_v2": {"num_prototypes": 8, "dim": 16, "hidden": 32, "num_heads": 3},
    "simclr": {"dim": 16, "hidden": 32, "num_layers": 2},
    "supervised": {},
    "moco_v2": {"dim": 16, "hidden": 32, "queue_length": 32, "bn_splits": 1},
    "byol": {"dim": 16, "hidden": 32},
    "npid": {"dim": 16, "hidden": 0, "num_negatives": 12, "loss": "nce", "temperature": 0.07},
    "odc": {"num_prototypes": 8, "dim": 16, "hidden": 32, "dropout": 0.0, "min_cluster": 2},
}


@pytest.fixture(scope="session")
def kinds(tmp_path_factory) -> str:
    """A file of the pictures' kinds, for --labels-from."""
    path = tmp_path_factory.mktemp("labels") / "kinds.csv"
    path.write_text("id,label\n" + "".join(f"{i:02d},kind {i % 4}\n" for i in range(48)))
    return str(path)


@pytest.fixture
def tiny(pictures, kinds):
    """A function that trains a method on the pictures and returns its summary."""
    from selfcluster import api

    def train(method, out, data=None, **settings):
        if method == "supervised" and data is None:
            settings = {"labels_from": kinds} | settings
        return api.train(method, pictures if data is None else data, out=out, **TINY | TINY_SETTINGS[method] | settings)

    return train
