"""A method begun from another's run: `--init RUN`."""

import shutil

import pytest
import safetensors.torch
import torch
from PIL import Image

from selfcluster import api
from selfcluster.cli import main
from selfcluster.runs.checkpoint import load_newest
from selfcluster.runs.folder import read_config
from tests.conftest import TINY, TINY_SETTINGS


def backbone(run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "backbone.safetensors")


@pytest.mark.parametrize("start", ["run", "run/backbone.safetensors", "exported"])
def test_a_method_starts_from_another_methods_run(tiny, tmp_path, start):
    """At a rate of 0 the second run ends with the weights it was given."""
    tiny("swav", tmp_path / "run")
    api.export(tmp_path / "run", tmp_path / "exported")
    tiny("deepcluster_v2", tmp_path / "next", init=str(tmp_path / start), learning_rate=0.0, final_learning_rate=0.0)
    given, after = backbone(tmp_path / "run"), backbone(tmp_path / "next")
    assert given.keys() == after.keys()
    for name, value in given.items():
        if "running" not in name and "tracked" not in name:  # statistics of the batches move
            assert torch.equal(after[name], value), name


def test_the_command_line_says_what_was_taken(tiny, tmp_path, pictures, capsys):
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i:02d}.png")
    tiny("swav", tmp_path / "run")
    settings = TINY | TINY_SETTINGS["deepcluster_v2"] | {"init": tmp_path / "run"}
    values = {name: value for name, value in settings.items() if not isinstance(value, bool)}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    assert main(["train", "deepcluster-v2", str(tmp_path), "--out", str(tmp_path / "next"), "--no-sobel", *flags]) == 0
    assert (
        f"weights {tmp_path / 'run'}/backbone.safetensors: 100.0% of the network's weights" in capsys.readouterr().err
    )


def test_a_finished_run_needs_its_start_no_more(tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    tiny("deepcluster_v2", tmp_path / "next", init=str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")
    before = (tmp_path / "next/clusters.csv").read_bytes()
    api.cluster(tmp_path / "next", quiet=True)
    assert (tmp_path / "next/clusters.csv").read_bytes() == before


def test_an_unfinished_run_is_refused_but_its_checkpoint_is_not(tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    (tmp_path / "run/backbone.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="its run has not finished"):
        tiny("swav", tmp_path / "next", init=str(tmp_path / "run"))
    loaded, _ = load_newest(tmp_path / "run/checkpoints")
    file = max((tmp_path / "run/checkpoints").glob("*/*.safetensors"))  # the newest step's
    tiny("swav", tmp_path / "other", init=str(file), learning_rate=0.0, final_learning_rate=0.0)
    after = backbone(tmp_path / "other")
    for name in ("layer1.0.weight", "layer5.1.bias"):
        assert torch.equal(after[name], loaded.tensors[f"method.backbone.{name}"])


def test_another_networks_run_is_refused_in_the_users_words(tiny, tmp_path, capsys):
    tiny("swav", tmp_path / "run")
    words = ["train", "swav", "builtin:digits", "--backbone", "resnet18_small_w25", "--init", str(tmp_path / "run")]
    assert main([*words, "--out", str(tmp_path / "next"), "--quiet"]) == 2
    assert "less than half, so the file is of another network" in capsys.readouterr().err


def test_a_wrong_path_does_not_lock_the_folder(tiny, tmp_path):
    with pytest.raises((ValueError, OSError)):
        tiny("swav", tmp_path / "run", init=str(tmp_path / "nowhere"))
    assert tiny("swav", tmp_path / "run")["steps"] == 9


def test_the_network_is_that_of_the_run_it_starts_from(tiny, tmp_path, pictures):
    tiny("swav", tmp_path / "run", backbone="resnet18_small_w25")
    settings = TINY | TINY_SETTINGS["deepcluster_v2"] | {"epochs": 1, "init": str(tmp_path / "run")}
    del settings["backbone"]
    api.train("deepcluster_v2", pictures, out=tmp_path / "next", **settings)
    assert read_config(tmp_path / "next")["backbone"] == "resnet18_small_w25"
    with pytest.raises(FileNotFoundError, match=r"there is no .*gone; give a run folder, .* a file of weights"):
        api.train("deepcluster_v2", pictures, out=tmp_path / "other", **settings | {"init": str(tmp_path / "gone")})
    assert not (tmp_path / "other/config.yaml").exists()


def test_a_network_of_edges_goes_on_in_color_from_its_export(tiny, tmp_path, pictures, capsys):
    """DeeperCluster's section 5.2: the filters are folded in, so the whole network is taken and trained on images."""
    tiny("swav", tmp_path / "run", backbone="resnet18_small_w25", sobel=True)
    assert api.export(tmp_path / "run", tmp_path / "exported")["network"] == "resnet18_small_w25"
    settings = TINY | TINY_SETTINGS["swav"] | {"learning_rate": 0.0, "final_learning_rate": 0.0, "quiet": False}
    del settings["backbone"]
    with pytest.raises(ValueError, match="train with --sobel, or start from a `selfcluster export` of that network"):
        api.train("swav", pictures, out=tmp_path / "other", init=str(tmp_path / "run"), **settings)
    api.train("swav", pictures, out=tmp_path / "next", init=str(tmp_path / "exported"), **settings)
    assert "100.0% of the network's weights found" in capsys.readouterr().err
    assert read_config(tmp_path / "next")["backbone"] == "folded_sobel/resnet18_small_w25/1"
    given, after = backbone(tmp_path / "exported"), backbone(tmp_path / "next")
    assert after["conv1.weight"].shape == (16, 3, 5, 5)
    assert torch.equal(after["conv1.weight"], given["conv1.weight"])
    api.cluster(tmp_path / "next", quiet=True)  # the run is opened again
    with pytest.raises(ValueError, match="name it folded_sobel/NETWORK/ZEROS, as folded_sobel/resnet18/1"):
        tiny("swav", tmp_path / "other", backbone="folded_sobel")
