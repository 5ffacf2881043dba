"""What doctor says follows what is really chosen."""

import json
import shutil

import pytest
import torch

from selfcluster.cli import main
from selfcluster.clustering import native
from selfcluster.commands import doctor
from selfcluster.models import winograd
from selfcluster.views import resize


def kmeans():
    return doctor._clustering()["k-means, neighbors, Sinkhorn"]


def test_the_command_prints_what_is_chosen(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert set(found) == {"versions", "processor", "clustering", "training", "networks", "images", "disk"}
    chosen = native.instructions()
    assert (chosen or "torch") in found["clustering"]["k-means, neighbors, Sinkhorn"]
    assert main(["doctor"]) == 0
    assert "bfloat16 in hardware" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("set_to", "chosen", "compiler", "sentence"),
    [
        ("avx2", "avx2", "/usr/bin/c++", "limited by SELFCLUSTER_NATIVE=avx2"),
        (None, "avx512", "/usr/bin/c++", "the best this processor has"),
        ("0", None, "/usr/bin/c++", "because of SELFCLUSTER_NATIVE=0"),
        (None, None, None, "no C++ compiler"),
        (None, None, "/usr/bin/c++", "do not build or run here with /usr/bin/c++"),
    ],
)
def test_the_reason_is_the_true_one(monkeypatch, set_to, chosen, compiler, sentence):
    if set_to is None:
        monkeypatch.delenv("SELFCLUSTER_NATIVE", raising=False)
    else:
        monkeypatch.setenv("SELFCLUSTER_NATIVE", set_to)
    monkeypatch.setattr(native, "instructions", lambda: chosen)
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    assert sentence in kmeans()


def test_the_resize_that_is_used_is_named(monkeypatch):
    monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
    assert doctor._images()["crop and resize"].startswith("torch")
    monkeypatch.setattr(resize, "has_kernel", lambda: True)
    assert doctor._images()["crop and resize"] == "compiled kernel"


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_the_convolutions_that_are_used_are_named(monkeypatch):
    monkeypatch.setattr(winograd, "chosen", lambda: None)
    assert doctor._training(torch)["convolutions in fp32"].startswith("torch")
    monkeypatch.setattr(winograd, "chosen", lambda: object())
    assert doctor._training(torch)["convolutions in fp32"].startswith("compiled kernel")


def test_what_is_missing_comes_with_its_extra(monkeypatch):
    import importlib.util

    from selfcluster.models import origin

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rawpy" else real(name))
    assert doctor._images()["cameras' raw files"] == "not installed: pip install 'selfcluster[raw]'"

    def absent():
        raise FileNotFoundError

    monkeypatch.setattr(origin, "starter_file", absent)
    assert "selfcluster[starter]" in doctor._networks()["starter"]
