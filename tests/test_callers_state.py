"""The public functions leave the caller's random generators alone, and calls in threads do not disturb each other."""

import random
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selfcluster import api
from selfcluster.randomness import keeps_random_state


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_train_and_embed_leave_the_generators_as_they_were(tmp_path, tiny, pictures):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    tiny("dino", tmp_path / "run", epochs=1)
    api.embed(tmp_path / "run", pictures)
    assert draws() == expected


def test_the_callers_default_type_and_modes_change_nothing(tmp_path, tiny, pictures):
    tiny("swav", tmp_path / "one", epochs=1)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            tiny("swav", tmp_path / "two", epochs=1)
            assert not torch.is_grad_enabled()
        with torch.inference_mode():
            tiny("swav", tmp_path / "three", epochs=1)
            vectors = api.embed(tmp_path / "three", pictures)["vectors"]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    weights = (tmp_path / "one/backbone.safetensors").read_bytes()
    assert (tmp_path / "two/backbone.safetensors").read_bytes() == weights
    assert (tmp_path / "three/backbone.safetensors").read_bytes() == weights
    np.testing.assert_array_equal(vectors, api.embed(tmp_path / "one", pictures)["vectors"])


def test_also_after_an_error():
    @keeps_random_state
    def fails():
        draws()
        torch.manual_seed(9)
        raise RuntimeError("on purpose")

    torch.manual_seed(1)
    expected = draws()
    torch.manual_seed(1)
    np.random.seed(1), random.seed(1)
    before = draws()
    torch.manual_seed(1)
    np.random.seed(1), random.seed(1)
    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert draws() == before
    assert before[2] == expected[2]


def test_three_trainings_in_threads_equal_those_one_after_the_other(tmp_path, tiny, caplog):
    for seed in range(3):
        tiny("swav", tmp_path / f"alone-{seed}", epochs=1, seed=seed)
    threads = [
        threading.Thread(target=tiny, args=("swav", tmp_path / f"thread-{seed}"), kwargs={"epochs": 1, "seed": seed})
        for seed in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        alone, beside = (
            load_file(tmp_path / f"{kind}-{seed}" / "backbone.safetensors") for kind in ("alone", "thread")
        )
        assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert "waits for another selfcluster call in this process" in caplog.text
