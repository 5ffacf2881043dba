"""The examples run as they stand, in a few seconds, and learn something."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_loop_of_ones_own():
    assert load("own_loop").main(epochs=8) > 0.5


def test_a_method_of_ones_own(capsys, monkeypatch):
    monkeypatch.setattr("selfcluster.methods._REGISTERED", {})
    example = load("add_a_method")
    numbers = example.main(epochs=1, limit=200)
    assert np.isfinite(numbers["loss"])
    assert numbers["top1"] > 0.2
    from selfcluster.cli import main

    capsys.readouterr()
    assert main(["train", "barlow_twins", "--help"]) == 0
    assert "--redundancy X" in (text := capsys.readouterr().out)
    assert "Barlow Twins" in text
    assert main(["train", "barlow_twins", "nowhere", "--redundancy", "-1"]) == 2
    assert "--redundancy -1: must be 0 or more" in capsys.readouterr().err


def test_its_loss_is_equation_1_in_float64():
    example = load("add_a_method")
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(12, 5, generator=generator) for _ in range(2))
    a, b = (z.double().numpy() for z in (first, second))
    a, b = ((z - z.mean(axis=0)) / z.std(axis=0) for z in (a, b))
    c = a.T @ b / len(a)
    expected = ((np.diag(c) - 1) ** 2).sum() + 0.1 * (c**2).sum() - 0.1 * (np.diag(c) ** 2).sum()
    assert example.barlow_twins_loss(first, second, 0.1).item() == pytest.approx(expected, rel=1e-4)


def test_a_protocol_of_ones_own(monkeypatch):
    monkeypatch.setattr("selfcluster.evaluation.protocols._REGISTERED", {})
    assert load("add_a_protocol").main(limit=200) > 0.2
