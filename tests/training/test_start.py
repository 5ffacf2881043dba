"""Training from a network's weights: its own normalization, size and interpolation go with them."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import timm
import torch
import yaml

from selfcluster import api, distributed
from selfcluster.models.backbones import make_backbone, save_backbone
from selfcluster.models.preprocessing import Preprocessing
from selfcluster.training import start as beginning
from selfcluster.training.build import assemble, run_preprocessing
from selfcluster.training.load import load_network

IMAGES = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 16, "bicubic", 0.8)


@pytest.fixture
def start(tmp_path) -> str:
    """An exported network that was made for images of another mean, size and interpolation."""
    torch.manual_seed(3)
    module = make_backbone("tiny_layout", channels=3, image_size=16, preprocessing=IMAGES)
    save_backbone(tmp_path / "start", module, IMAGES.mean, IMAGES.std, 16)
    return str(tmp_path / "start")


def test_a_run_keeps_the_preprocessing_of_its_start(tmp_path, tiny, start):
    summary = tiny("swav", tmp_path / "run", init=start)
    overlay = json.loads((tmp_path / "run" / "backbone.json").read_text())["pretrained_cfg_overlay"]
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        assert overlay[name] == IMAGES.as_config()[name], name
    assert load_network(summary["run"]).preprocessing == IMAGES
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert run_preprocessing(config) == IMAGES
    parts = assemble(config, 48)
    assert {group.interpolation for group in parts.views.groups} == {"bicubic"}
    # what the run embedded is what the network gives through timm's own transform
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config(pretrained_cfg=overlay))
    assert transform.transforms[0].size == 20
    assert transform.transforms[-1].mean.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_run_of_nothing_keeps_selfclusters_preprocessing(tmp_path, tiny):
    tiny("swav", tmp_path / "run", epochs=1)
    overlay = json.loads((tmp_path / "run" / "backbone.json").read_text())["pretrained_cfg_overlay"]
    assert (overlay["interpolation"], overlay["crop_pct"]) == ("bilinear", 1.0)
    assert overlay["mean"] == [0.485, 0.456, 0.406]


def test_a_file_is_a_start_under_its_own_network(tmp_path, pictures):
    torch.save(timm.create_model("resnet18_small", num_classes=0).state_dict(), tmp_path / "w.pth")
    settings = {"epochs": 1, "batch_size": 16, "quiet": True, "workers": 1, "image_size": 16, "local_crops": 0}
    api.train("simclr", pictures, out=tmp_path / "run", init=tmp_path / "w.pth", dim=8, hidden=16, **settings)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["backbone"] == "resnet18_small"
    assert config["init"] == str(tmp_path / "w.pth")
    named = f"resnet18_small={tmp_path / 'w.pth'}"
    api.train("simclr", pictures, out=tmp_path / "named", init=named, dim=8, hidden=16, **settings)
    assert yaml.safe_load((tmp_path / "named" / "config.yaml").read_text())["init"] == named
    # the file may go once the run has its own weights
    (tmp_path / "w.pth").unlink()
    assert api.train("simclr", pictures, out=tmp_path / "run", quiet=True)["steps"] == 3


def test_a_start_that_does_not_exist_is_refused(tmp_path, tiny):
    with pytest.raises(FileNotFoundError, match="there is no nowhere/run"):
        tiny("swav", tmp_path / "run", init="nowhere/run")
    with pytest.raises(ValueError, match="tiny_layout is a network without weights"):
        tiny("swav", tmp_path / "run", init="tiny_layout")


@pytest.mark.parametrize(
    ("argv", "environment", "command"),
    [
        (["/bin/x/selfcluster", "train", "swav", "my photos"], {}, "/bin/x/selfcluster train swav 'my photos'"),
        (["/lib/selfcluster/__main__.py", "train", "swav"], {}, "python -m selfcluster train swav"),
        (["work.py", "a"], {}, "python work.py a"),
        ([""], {}, "selfcluster.train, from Python"),
        (
            ["/lib/selfcluster/__main__.py", "train"],
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc-per-node 2 -m selfcluster train",
        ),
        (
            ["/lib/selfcluster/__main__.py", "train"],
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nnodes 2 --nproc-per-node 2 -m selfcluster train",
        ),
    ],
)
def test_the_command_that_is_kept_can_be_typed(argv, environment, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(distributed, "world_size", lambda: int(environment.get("WORLD_SIZE", 1)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert beginning.command_line() == command


def test_a_program_on_the_path_is_kept_by_its_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/x/selfcluster", "demo"])
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/x/{name}")
    assert beginning.command_line() == "selfcluster demo"
