"""Results of several runs side by side: groups by hand, and nothing unlike in one column."""

import json
import os
import shutil
import time
from statistics import mean, stdev

import numpy as np
import pytest
import torch
import yaml

from selfcluster import api
from selfcluster.cli import main
from selfcluster.evaluation.comparison import compare_runs
from selfcluster.models.backbones import make_backbone, save_backbone
from selfcluster.models.pretrained import load_network
from selfcluster.reporting.comparison import comparison_text, write_comparison
from tests.conftest import TINY, TINY_SETTINGS


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folders):
    root = tmp_path_factory.mktemp("compare")
    shutil.copytree(folders, root / "photos")
    api.train("swav", root / "photos", out=root / "one", **(TINY | TINY_SETTINGS["swav"]))
    return root


@pytest.fixture
def root(trained, tmp_path):
    """Runs that are copies: `two` and `three` have other seeds, `other` another learning rate."""
    for name, changed in (
        ("one", {}),
        ("two", {"seed": 7}),
        ("three", {"seed": 8}),
        ("other", {"learning_rate": 0.123}),
    ):
        shutil.copytree(trained / "one", tmp_path / name)
        file = tmp_path / name / "config.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changed))
    return tmp_path


def result(run, top1, role=None, protocol="knn", name=None, **settings):
    subject = {"model": str(run), "train": "photos", "seed": 0} | ({"role": role} if role else {})
    value = {"protocol": protocol, "numbers": {"top1": top1, "images": 9}, "settings": settings, "subject": subject}
    (run / "evaluations").mkdir(exist_ok=True)
    count = len(list((run / "evaluations").iterdir()))
    (run / "evaluations" / f"{name or count}.json").write_text(json.dumps(value))


def test_runs_that_differ_in_the_seed_share_a_row(root):
    scores = {"one": 0.5, "two": 0.6, "three": 0.8, "other": 0.4}
    for name, score in scores.items():
        result(root / name, score, k=20)
        result(root / name, score / 2, role="untrained", k=20)
    table = compare_runs([root / name for name in scores])
    assert [(row.runs, row.cells[0].runs) for row in table.rows] == [
        (tuple(str(root / name) for name in ("one", "two", "three")), 3),
        ((str(root / "other"),), 1),
    ]
    first, last = (row.cells[0] for row in table.rows)
    assert first.mean == pytest.approx(mean([0.5, 0.6, 0.8]))
    assert first.spread == pytest.approx(stdev([0.5, 0.6, 0.8]))
    assert first.untrained == pytest.approx(mean([0.25, 0.3, 0.4]))
    assert (last.mean, last.spread, last.untrained, last.start) == (0.4, None, 0.2, None)


def test_numbers_of_other_settings_have_a_column_of_their_own(root):
    result(root / "one", 0.5, k=20)
    result(root / "one", 0.7, k=5)
    result(root / "one", 0.9, protocol="logistic")
    table = compare_runs([root / "one"])
    assert [cell.mean for cell in table.rows[0].cells] == [0.5, 0.7, 0.9]
    assert [column.protocol for column in compare_runs([root / "one"], "logistic").columns] == ["logistic"]


def test_missing_numbers_leave_a_gap_and_no_number_at_all_is_an_error(root):
    result(root / "one", 0.5)
    assert compare_runs([root / "one", root / "other"]).rows[1].cells == (None,)
    with pytest.raises(ValueError, match=r"there is no result to compare\. Add --protocol knn --train DATA"):
        compare_runs([root / "other"])


def test_names_never_become_markup(root):
    evil = root / "<img src=x onerror=alert(1)>"
    shutil.copytree(root / "one", evil)
    result(evil, 0.5, word="<script>alert(2)</script>")
    text = write_comparison(compare_runs([evil]), root / "page.html").read_text()
    assert "<img" not in text
    assert "<script" not in text
    assert "0.500" in comparison_text(compare_runs([evil]))


def test_what_is_missing_is_measured_once(trained, capsys):
    run, photos = trained / "one", str(trained / "photos")
    words = ["compare", str(run), "--protocol", "knn", "--train", photos, "--out", str(trained / "page.html")]
    assert main(words) == 0
    out = capsys.readouterr()
    assert "untrained" in out.out
    assert out.err.count("knn of") == 2
    assert main(words) == 0
    assert "knn of" not in capsys.readouterr().err
    table = api.compare(run)
    own = api.evaluate("knn", run, train=photos)["top1"]
    assert table.rows[0].cells[0].mean == pytest.approx(own)
    assert np.isfinite(table.rows[0].cells[0].untrained)
    own_settings = [*words[:6], "--temperature", "0.5", "--split=0.4", "--json"]
    assert main(own_settings) == 0
    out = capsys.readouterr()
    assert out.err.count("knn of") == 2
    settings = json.loads(max((run / "evaluations").glob("knn-*.json"), key=os.path.getmtime).read_text())
    assert (settings["settings"]["temperature"], settings["subject"]["split"]) == (0.5, 0.4)
    assert main(own_settings) == 0
    assert "knn of" not in capsys.readouterr().err
    assert main(["compare", str(run), "--protocol", "svm", "--temperature", "0.5"]) == 2
    assert "no flag --temperature" in capsys.readouterr().err
    assert main(["compare", str(trained / "photos")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_result_of_the_run_itself_is_the_same_by_another_path(trained, tmp_path, monkeypatch, capsys):
    run = tmp_path / "one"
    shutil.copytree(trained / "one", run, ignore=shutil.ignore_patterns("evaluations"))
    monkeypatch.chdir(trained)
    api.evaluate("knn", run, train="photos", split=0.2)
    capsys.readouterr()
    assert main(["compare", str(run), "--protocol", "knn", "--train", str(trained / "photos")]) == 0
    assert capsys.readouterr().err.count("knn of") == 1  # of the untrained network
    assert len(api.compare(run).columns) == 1


def test_the_untrained_network_is_the_runs_own(trained, tmp_path, capsys):
    """Same patches, blocks and preprocessing as the run's network; other weights, drawn by the seed."""
    run, photos = tmp_path / "vit", trained / "photos"
    settings = {"backbone": "vit_tiny_patch4_32", "patch_size": 8}
    api.train("swav", photos, out=run, **TINY | TINY_SETTINGS["swav"] | settings)
    result(run, 0.99, role="untrained", name="plain", k="20", temperature=0.07)  # as an earlier version kept it
    row = api.compare(run, protocol="knn", train=photos).rows[0]
    words = f"untrained:{run}"
    assert "knn of untrained:" in capsys.readouterr().err
    assert row.cells[-1].untrained == api.evaluate("knn", words, train=photos)["top1"]
    own, untrained, again = (load_network(each) for each in (str(run), words, words))
    weights = [network.module.state_dict() for network in (own, untrained)]
    assert {name: w.shape for name, w in weights[0].items()} == {name: w.shape for name, w in weights[1].items()}
    assert weights[0]["patch_embed.proj.weight"].shape[-1] == 8
    assert own.preprocessing == untrained.preprocessing
    assert not torch.equal(*(w["patch_embed.proj.weight"] for w in weights))
    assert not torch.equal(weights[1]["patch_embed.proj.weight"], again.module.state_dict()["patch_embed.proj.weight"])


def test_the_untrained_network_keeps_sobel_filters_and_channels(tmp_path):
    module = make_backbone("tiny_layout", channels=1, image_size=16, sobel=2)
    save_backbone(tmp_path, module, (0.4,), (0.3,), 16)
    network = load_network(f"untrained:{tmp_path}")
    assert (network.mean, network.std, network.image_size, network.trained) == ((0.4,), (0.3,), 16, False)
    assert network.module.sobel.padding == module.sobel.padding
    images = torch.rand(2, 1, 16, 16)
    network.module.load_state_dict(module.state_dict())
    torch.testing.assert_close(network.module(images), module.eval()(images))
    with pytest.raises(FileNotFoundError, match="is not an export"):
        load_network(f"untrained:{tmp_path / 'nothing'}")


def test_a_start_from_a_bare_file_is_measured_under_the_runs_architecture(trained, tmp_path, capsys):
    """The tensors of a file may fit several networks; the run knows which one it was."""
    run, photos = tmp_path / "begun", trained / "photos"
    module = make_backbone("tiny_layout", channels=3, image_size=16)
    torch.save(module.state_dict(), tmp_path / "start.pth")
    settings = {"init": str(tmp_path / "start.pth"), "keep": "end"}
    api.train("swav", photos, out=run, **TINY | TINY_SETTINGS["swav"] | settings)
    table = api.compare(run, protocol="knn", train=photos, image_size=16)
    begun = api.evaluate("knn", f"tiny_layout={tmp_path / 'start.pth'}", train=photos, image_size=16)
    assert table.rows[0].cells[-1].start == begun["top1"]
    assert f"knn of tiny_layout={tmp_path / 'start.pth'}" in capsys.readouterr().err
    (tmp_path / "start.pth").unlink()
    cell = api.compare(run, protocol="knn", train=photos, image_size=16, k="5").rows[0].cells[-1]
    assert (cell.start, cell.untrained is None) == (None, False)
    assert "does not exist. Its scores are left out" in capsys.readouterr().err


def test_of_one_seed_the_newest_result_counts(root):
    result(root / "one", 0.5)
    result(root / "one", 0.3, role="untrained", name="a")
    time.sleep(0.02)
    result(root / "one", 0.2, role="untrained", name="b")
    assert compare_runs([root / "one"]).rows[0].cells[-1].untrained == 0.2


def test_an_untrained_network_is_drawn_by_the_seed(trained):
    """Two evaluations of the same untrained network agree."""
    words = {"train": str(trained / "photos"), "image_size": 16}
    first, second = (api.evaluate("knn", "tiny_layout", **words)["top1"] for _ in range(2))
    assert first == second
