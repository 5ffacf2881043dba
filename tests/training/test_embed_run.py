"""Images to groups without training: one folder, one page, and nothing is computed twice."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from selfcluster import api
from selfcluster.cli import main
from selfcluster.models.backbones import make_backbone, save_backbone
from selfcluster.models.preprocessing import Preprocessing
from selfcluster.models.pretrained import load_network
from selfcluster.runs.folder import RunError, read_config, read_status
from selfcluster.runs.tables import read_clusters, read_embeddings
from selfcluster.training import embed_run, features
from selfcluster.training.kept import KeptRows

IMAGES = Preprocessing((0.3, 0.4, 0.5), (0.2, 0.3, 0.4), 16, "bicubic", 1.0)


@pytest.fixture
def photos(tmp_path, pictures) -> str:
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number:02d}.png")
    return str(tmp_path / "photos")


@pytest.fixture
def network(tmp_path) -> str:
    torch.manual_seed(0)
    module = make_backbone("tiny_layout", channels=3, image_size=16, preprocessing=IMAGES)
    save_backbone(tmp_path / "network", module, IMAGES.mean, IMAGES.std, 16)
    return str(tmp_path / "network")


def test_a_folder_of_images_becomes_groups_and_a_page(tmp_path, photos, network, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cluster", photos, "--model", network, "--k", "4"]) == 0
    out = capsys.readouterr()
    run = tmp_path / "runs" / "cluster-photos-network"
    assert f"48 images in 4 clusters of 12 images. Written: {run.relative_to(tmp_path)}/clusters.parquet" in out.out
    assert "report.html: open it in a browser" in out.out
    assert "embedding 48 images with tiny_layout" in out.err
    for name in ("config.yaml", "embeddings.parquet", "clusters.csv", "backbone.safetensors", "report.html"):
        assert (run / name).is_file(), name
    assert read_status(run)["state"] == "finished"
    clusters = read_clusters(run / "clusters.parquet").clusters
    assert all(len(set(clusters[kind::4])) == 1 for kind in range(4))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert ("method" in config, config["model"], config["image_size"]) == (False, network, 16)
    assert load_network(run).preprocessing == IMAGES

    # the same call again embeds nothing
    monkeypatch.setattr(embed_run, "load_network", None)
    assert main(["cluster", photos, "--model", network, "--algorithm", "hdbscan"]) == 0
    out = capsys.readouterr()
    assert "has the embeddings of 48 images" in out.err
    # and its run folder is a run like any other
    assert main(["cluster", str(run), "--k", "2"]) == 0
    assert "48 images in 2 clusters of " in capsys.readouterr().out
    rows = api.search(run, f"{photos}/05.png", k=3)
    assert rows[0]["path"].endswith("05.png")
    table = api.embed(run)
    np.testing.assert_allclose(table["vectors"], read_embeddings(run / "embeddings.parquet").vectors, rtol=1e-6)


def test_one_image_without_a_cluster_is_one_image(tmp_path, capsys):
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(3), [20, 20, 1], axis=0) + 0.01 * rng.standard_normal((41, 3))
    np.save(tmp_path / "vectors.npy", vectors)
    assert main(["cluster", str(tmp_path / "vectors.npy"), "--algorithm", "hdbscan", "--whiten", "0"]) == 0
    out = capsys.readouterr().out
    assert "40 images in 2 clusters of 20 images" in out
    assert "1 image belongs to no cluster; it has the number -1" in out


def test_a_folder_of_something_else_is_refused(tmp_path, photos, network, tiny):
    run = tmp_path / "run"
    api.cluster(photos, model=network, k=2, out=run, quiet=True)
    with pytest.raises(RunError, match=r"holds embeddings by .*network, not starter"):
        api.cluster(photos, out=run, quiet=True)
    with pytest.raises(RunError, match="of 16 px, not 32"):
        api.cluster(photos, model=network, image_size=32, out=run, quiet=True)
    (tmp_path / "photos" / "05.png").unlink()
    with pytest.raises(RunError, match="embeddings of other images"):
        api.cluster(photos, model=network, out=run, quiet=True)
    with pytest.raises(RunError, match=r"--model has no effect: .* is embedded already"):
        api.cluster(run, model=network)
    with pytest.raises(RunError, match="there is no nothing"):
        api.cluster("nothing", quiet=True)
    tiny("swav", tmp_path / "swav", epochs=1)
    with pytest.raises(RunError, match="holds a run of swav"):
        api.cluster(photos, model=network, out=tmp_path / "swav", quiet=True)
    with pytest.raises(ValueError, match="--algorithm kmeens: choose from"):
        api.cluster(photos, algorithm="kmeens", quiet=True)


def test_a_run_that_failed_is_begun_again(tmp_path, photos, network, monkeypatch):
    def fails(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(embed_run, "write_embeddings", fails)
        with pytest.raises(OSError, match="no space left"):
            api.cluster(photos, model=network, k=2, out=tmp_path / "run", quiet=True)
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert api.cluster(photos, model=network, k=2, out=tmp_path / "run", quiet=True)["clusters"] == 2


def embed_into(run, photos, network):
    return api.cluster(photos, model=network, k=2, out=run, quiet=True, batch_size=8, workers=0)


def passed_through(monkeypatch, stop_after=None, error=KeyboardInterrupt):
    """Count the images that pass through the network; after `stop_after` batches an error ends the pass."""
    counts = []
    real = features.run_network

    def counting(compute, images):
        if len(counts) == stop_after:
            raise error
        counts.append(len(images))
        return real(compute, images)

    monkeypatch.setattr(features, "run_network", counting)
    return counts


def test_an_interrupted_pass_goes_on_and_gives_the_same_features(tmp_path, photos, network, monkeypatch, caplog):
    (tmp_path / "photos" / "20.png").write_bytes(b"no image")
    embed_into(tmp_path / "whole", photos, network)
    expected = read_embeddings(tmp_path / "whole" / "embeddings.parquet")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        assert sum(passed_through(patch, stop_after=4)) == 0
        with pytest.raises(KeyboardInterrupt):
            embed_into(run, photos, network)
    assert read_status(run)["state"] == "failed"
    with monkeypatch.context() as patch:
        again = passed_through(patch)
        embed_into(run, photos, network)
    assert sum(again) == 16
    found = read_embeddings(run / "embeddings.parquet")
    assert found.ids == expected.ids
    assert np.array_equal(found.vectors, expected.vectors)
    assert not (run / "embedding").exists()
    assert read_status(run)["summary"]["bad_images"] == 1


def test_rows_of_another_network_or_of_damaged_files_are_made_again(tmp_path, photos, network, monkeypatch):
    run = tmp_path / "run"
    for change in ("weights", "damage", "outage"):
        with monkeypatch.context() as patch:
            passed_through(patch, stop_after=4)
            with pytest.raises(KeyboardInterrupt):
                embed_into(run, photos, network)
        (part,) = (run / "embedding").iterdir()
        if change == "weights":
            torch.manual_seed(1)
            module = make_backbone("tiny_layout", channels=3, image_size=16, preprocessing=IMAGES)
            save_backbone(tmp_path / "network", module, IMAGES.mean, IMAGES.std, 16)
        elif change == "damage":
            part.write_bytes(part.read_bytes()[:-40])
        else:
            (run / "quarantine.jsonl").write_text('{"path": "03.png", "reason": "read_error", "detail": ""}\n')
        with monkeypatch.context() as patch:
            again = passed_through(patch, stop_after=None if change == "outage" else 6)
            embed_into(run, photos, network)
        assert sum(again) == 48
        (run / "embeddings.parquet").unlink()


def test_a_disk_that_fills_up_ends_the_keeping_but_not_the_pass(tmp_path, caplog, monkeypatch):
    kept = KeptRows(tmp_path / "full" / "rows", "key", every=0)
    (tmp_path / "full").write_text("a file where the folder should be")
    for number in range(3):
        kept.add(torch.tensor([number]), torch.ones(1, 2))
    assert kept.batches == 3
    assert caplog.text.count("cannot save partial results") == 1


def test_kept_rows_come_back_in_order_up_to_the_first_gap(tmp_path):
    kept = KeptRows(tmp_path, "key", every=0)
    for number in range(4):
        kept.add(torch.tensor([2 * number, 2 * number + 1]), torch.full((2, 3), float(number)))
    found = KeptRows(tmp_path, "key")
    assert found.batches == 4
    assert found.index.tolist() == list(range(8))
    assert found.rows[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    (tmp_path / "0000000003.npz").unlink()
    assert KeptRows(tmp_path, "key").batches == 2
    assert KeptRows(tmp_path, "another").batches == 0
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_few_images_at_a_time_give_the_same_features(monkeypatch):
    network = load_network("tiny_layout", image_size=16)
    images = torch.randn(7, 3, 16, 16)
    monkeypatch.setattr(features, "_TOGETHER", 2 * 16 * 16)
    torch.testing.assert_close(features.run_network(network.module, images), network.module(images))


def test_every_command_takes_images_and_a_network(tmp_path, photos, network, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{i:02d},kind {i % 4}\n" for i in range(48)))
    assert main(["embed", photos, "--model", network, "--out", "e.parquet"]) == 0
    by_network = api.embed(network, photos)["vectors"]
    np.testing.assert_allclose(read_embeddings(tmp_path / "e.parquet").vectors, by_network, rtol=1e-6)
    capsys.readouterr()
    labeled = ["--labels-from", str(tmp_path / "labels.csv"), "--json"]
    assert main(["evaluate", "knn", photos, "--model", network, *labeled]) == 0
    first = capsys.readouterr().out
    assert main(["evaluate", "knn", network, "--train", photos, *labeled]) == 0
    assert capsys.readouterr().out == first
    for words in ([photos, f"{photos}/07.png"], [f"{photos}/07.png", photos]):
        assert main(["search", *words, "--model", network, "--k", "1"]) == 0
        assert "07.png" in capsys.readouterr().out
    capsys.readouterr()
    assert main(["report", photos, "--model", network]) == 0
    assert capsys.readouterr().err.count("have EXIF") == 1  # one page was made
    assert (tmp_path / "runs/cluster-photos-network/report.html").is_file()
    for words in (
        ["embed", network, photos, "--model", network, "--out", "e.parquet"],
        ["search", "runs/cluster-photos-network", f"{photos}/07.png", "--model", network],
        ["report", "runs/cluster-photos-network", "--model", network],
        ["evaluate", "knn", photos, "--model", network, "--train", photos],
    ):
        assert main(words) == 2, words


def test_the_page_names_the_command_that_made_its_clusters(tmp_path, photos, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["--k", "2"], ["--k", "3"]):
        command = ["cluster", photos, "--model", network, "--out", "run", *words]
        monkeypatch.setattr(sys, "argv", ["selfcluster", *command])
        assert main(command) == 0
        assert read_config(tmp_path / "run")["about"]["command"].endswith(" ".join(words))
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    again = page[page.index("Do it again") :]
    assert "A path that begins with … is shortened here" in again
    assert again[: again.index("</pre>")].count("selfcluster cluster") == 1


def test_images_that_cannot_be_read_are_named(tmp_path, network):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"not an image")
    with pytest.raises((RunError, RuntimeError), match=r"can be read|bad"):
        api.cluster(tmp_path / "bad", model=network, out=tmp_path / "run", quiet=True)


def test_a_first_look_at_some_images_is_not_in_the_way_of_all(tmp_path, photos, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some = api.cluster(photos, model=network, k=2, limit=20)
    every = api.cluster(photos, model=network, k=2)
    assert (some["run"], some["images"]) == ("runs/cluster-photos-limit-20-network", 20)
    assert (every["run"], every["images"]) == ("runs/cluster-photos-network", 48)
