"""Threads of OpenMP and OpenBLAS sleep while they wait, unless the user has decided."""

import os
import subprocess
import sys

import pytest
import torch

from selfcluster.commands import demo as command
from selfcluster.waiting import map_on_single_threads, one_thread

PROGRAM = "import os, sys; from selfcluster.cli import main; assert 'numpy' not in sys.modules; main(['recipes'])"


def policy(name: str, **environment: str) -> str:
    mine = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT")
    kept = {k: v for k, v in os.environ.items() if k not in mine}
    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}; print(os.environ.get({name!r})); assert 'torch' not in sys.modules"],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def test_the_policy_is_set_before_torch_is_loaded_and_the_users_is_kept():
    assert policy("OMP_WAIT_POLICY") == "PASSIVE"
    assert policy("OMP_WAIT_POLICY", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
    assert policy("OMP_WAIT_POLICY", GOMP_SPINCOUNT="1000") == "None"


def test_each_librarys_waiting_is_decided_by_itself():
    assert policy("OPENBLAS_THREAD_TIMEOUT", OMP_WAIT_POLICY="ACTIVE") == "4"
    assert policy("OPENBLAS_THREAD_TIMEOUT", OPENBLAS_THREAD_TIMEOUT="20") == "20"
    assert policy("OMP_WAIT_POLICY", OPENBLAS_THREAD_TIMEOUT="20") == "PASSIVE"


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_is_for_the_block_only_also_after_an_error(two_threads):
    @one_thread()
    def fails():
        assert torch.get_num_threads() == 1
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.get_num_threads() == 2


def test_items_share_the_processor_with_one_thread_each_and_a_single_item_has_them_all(two_threads):
    assert map_on_single_threads(lambda item: (item, torch.get_num_threads()), range(5)) == [(i, 1) for i in range(5)]
    assert map_on_single_threads(lambda item: (item, torch.get_num_threads()), [7]) == [(7, 2)]
    assert map_on_single_threads(abs, []) == []
    with pytest.raises(ZeroDivisionError):
        map_on_single_threads(lambda item: 1 // item, [1, 0, 1])
    assert torch.get_num_threads() == 2


def test_the_demo_trains_with_one_thread_and_gives_the_callers_back(two_threads, monkeypatch, tmp_path):
    seen = []

    def train(*args, **settings):
        seen.append(torch.get_num_threads())
        raise InterruptedError

    monkeypatch.setattr(command, "train", train)
    with pytest.raises(InterruptedError):
        command.demo(tmp_path, quiet=True)
    assert seen == [1]
    assert torch.get_num_threads() == 2
