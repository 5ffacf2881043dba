"""The command line as typed: help without torch, nearest names, exit codes, one JSON object, and the whole path."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from selfcluster.cli import _parse, main
from selfcluster.settings.options import options_for
from selfcluster.settings.recipes import RECIPES, DataSummary
from selfcluster.settings.resolve import resolve
from selfcluster.settings.schema import read_schema

COMMANDS = (
    "demo",
    "train",
    "embed",
    "cluster",
    "evaluate",
    "report",
    "attention",
    "figures",
    "audit",
    "search",
    "export",
    "methods",
    "recipes",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Two kinds of pictures in sub-folders, one of them unreadable."""
    root = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(pictures):
        place = root / f"kind{i % 4}"
        place.mkdir(exist_ok=True)
        Image.fromarray(picture).save(place / f"{i:02d}.png")
    (root / "kind0/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    return root


SETTINGS = {
    "backbone": "tiny_layout",
    "image-size": 16,
    "batch-size": 16,
    "epochs": 2,
    "num-prototypes": 8,
    "dim": 16,
    "hidden": 32,
    "workers": 1,
    "max-bad": 0.1,
    "local-crops": 0,
}
FLAGS = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "photos"
    assert main(["train", "swav", str(folder), "--out", str(out), *FLAGS, "--quiet"]) == 0
    return out


@pytest.mark.parametrize("words", [[], ["--help"], *([c, "--help"] for c in COMMANDS), ["train", "swav", "--help"]])
def test_help_is_printed(words, capsys):
    assert main(words) == 0
    assert "usage: selfcluster" in capsys.readouterr().out


def test_no_help_imports_torch():
    code = (
        "import sys; from selfcluster.cli import main\n"
        f"every = [[], ['train', 'swav', '--help'], *([c, '--help'] for c in {COMMANDS!r})]\n"
        "for words in every: assert main(words) == 0\n"
        "heavy = {'torch', 'timm', 'sklearn', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_recipes_are_listed_one_a_line_and_their_notes_with_json(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "auto                    Settings chosen from the images, the device and the start network."
    assert [line.split()[0] for line in lines[: lines.index("")]] == list(RECIPES)
    assert main(["recipes", "--json"]) == 0
    assert "not run here" in json.loads(capsys.readouterr().out)["result"]["paper"]


def test_a_help_text_names_what_a_value_is(capsys):
    main(["train", "swav", "--help"])
    text = capsys.readouterr().out
    assert "--range LOW HIGH" in text
    assert "--labels-from SOURCE" in text
    assert "--batch-size N" in text
    main(["cluster", "--help"])
    assert "--batch-size N" in capsys.readouterr().out


def test_only_the_ranking_of_networks_names_several_in_its_usage(capsys):
    for protocol, expected in (("unlabeled", "PROTOCOL RUN RUN ... [flags]"), ("knn", "PROTOCOL RUN [flags]")):
        main(["evaluate", protocol, "--help"])
        assert f"selfcluster evaluate {expected}\n" in capsys.readouterr().out


def test_methods_own_settings_show_the_papers_values(capsys):
    main(["train", "swav", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(paper: 3000; auto chooses)" in text
    assert "--queue-length" in text
    assert "(paper: 0.3 per 256 images of the batch; auto chooses)" in text
    assert "before the run stops (default: 600)" in text  # no paper names it


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "did you mean train?"),
        (["train", "swov", "x"], "did you mean swav?"),
        (["train", "swav", "builtin:digits", "--epoch", "3"], "did you mean --epochs?"),
        (["train", "swav", "builtin:digits", "--epochs", "three"], "invalid float value: 'three'"),
        (["train", "swav", "no/such/folder"], "no/such/folder"),
        (["train", "swav", "builtin:digits", "--teacher", "runs/x"], "no flag --teacher here; clusterfit takes it"),
        (["train", "swav"], "the following arguments are required: DATA"),
        (["train", "--epochs", "3", "swav", "builtin:digits"], "METHOD and DATA come first"),
        (["embed", "runs/no-such-run", "builtin:digits", "--out", "e.parquet"], "there is no runs/no-such-run"),
        (["cluster", "no-run"], "there is no no-run"),
        (["evaluate", "knm", "no-run"], "no protocol named 'knm'"),
        (["embed", "resnet18"], "is not a run folder, so it has no images of its own"),
        (["embed", "no-run"], "there is no no-run; give images, a run folder"),
        (["evaluate", "knn", "no-run"], "there is no no-run; give images, a run folder"),
        (["evaluate", "knn", "resnet18"], "resnet18 is not a run folder, so it has no images of its own"),
        (["export", "no-run"], "there is no no-run; give a run folder"),
        (["evaluate", "knn", "no-run", "--train", "builtin:digits"], "there is no no-run; give a run folder"),
        (["train", "swav", "builtin:digits", "--init", "no-run"], "there is no no-run; give a run folder"),
        (["sample", "no-run", "--n", "3"], "there is no no-run; give a run folder"),
        (["sort", "no-run", "--into", "sorted"], "there is no no-run; give a run folder"),
        (["report", "no-run"], "there is no run folder no-run; give a run folder, or images"),
        (["compare", "no-run"], "there is no no-run; give a run folder"),
        (["train", "swav", "builtin:digits", "--device", "gpu"], "gpu"),
    ],
)
def test_wrong_arguments_exit_2_and_say_the_way_out(words, expected, capsys):
    assert main(words) in (1, 2) if "--device" in words else main(words) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "name", "flags"),
    [("embed", "e.parquet", []), ("cluster", "c.csv", ["--k", "2"]), ("export", "e", []), ("report", "r.html", [])],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(
    run, command, name, flags, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("x")
    for work in ("training.features.make_embed", "runs.tables.read_embeddings", "reporting.page.judge"):
        monkeypatch.setattr(f"selfcluster.{work}", lambda *a, **kw: pytest.fail("the work had begun"))
    assert main([command, str(run), *flags, "--out", str(tmp_path / "file" / name)]) == 2
    assert "cannot be written to" in (said := capsys.readouterr().err)
    assert "choose another --out" in said


def test_json_is_one_object_also_on_failure(capsys):
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"].keys() >= {"swav", "deepcluster_v2"}
    assert main(["train", "swav", "no/such/folder", "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["exit"] == 2


def refused_before_torch(folder, *flags: str) -> str:
    """What `train` says of a folder it refuses, with exit 2 and without having imported torch."""
    code = (
        "import sys; from selfcluster.cli import main\n"
        f"status = main(['train', 'swav', {str(folder)!r}, *{flags!r}])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_an_empty_folder_is_refused_before_torch(tmp_path):
    assert "no images in" in refused_before_torch(tmp_path)


@pytest.mark.parametrize(
    ("count", "flags", "words"),
    [(1, [], "training needs at least 2"), (5, ["--batch-size", "8"], "5 images are fewer than one batch of 8")],
)
def test_too_few_images_are_refused_before_torch(tmp_path, pictures, count, flags, words):
    for number in range(count):
        Image.fromarray(pictures[number]).save(tmp_path / f"{number}.png")
    assert words in refused_before_torch(tmp_path, *flags)


def test_tensorboard_gets_every_row(folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert main(["train", "swav", str(folder), "--out", str(out), *FLAGS, "--quiet", "--tensorboard"]) == 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss")]
    rows = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(rows)


def test_train_writes_the_run_folder(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "checkpoints",
        "backbone.safetensors",
        "backbone.json",
        "embeddings.parquet",
        "clusters.parquet",
        "clusters.csv",
        "quarantine.jsonl",
    }
    (line,) = (run / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "kind0/broken.jpg"
    summary = json.loads((run / "status.json").read_text())["summary"]
    assert (summary["images"], summary["bad_images"]) == (49, 1)


def test_a_bad_image_keeps_its_place_and_gets_no_row(run):
    from selfcluster.runs.tables import read_clusters, read_embeddings

    table = read_embeddings(run / "embeddings.parquet")
    assert len(table.ids) == 48
    assert "kind0/broken.jpg" not in table.ids
    assert table.ids == sorted(table.ids)
    assert read_clusters(run / "clusters.parquet").ids == table.ids


def test_the_same_command_again_returns_the_run(run, folder, capsys):
    assert main(["train", "swav", str(folder), "--out", str(run), *FLAGS]) == 0
    assert "is finished" in capsys.readouterr().err
    assert main(["train", "swav", str(folder), "--out", str(run), "--epochs", "3"]) == 2
    assert "--epochs was 2 and is now 3" in capsys.readouterr().err


def test_another_recipe_for_a_run_is_refused(run, folder, capsys):
    for recipe, words in (("paper", "holds a run of --recipe auto, not paper"), ("best", "no recipe named 'best'")):
        assert main(["train", "swav", str(folder), "--out", str(run), "--recipe", recipe]) == 2
        assert words in capsys.readouterr().err


def test_the_table_of_clusters_and_its_twin_keep_apart(run, tmp_path):
    from selfcluster import api
    from selfcluster.runs.tables import read_clusters

    found = api.cluster(run, k=4, out=tmp_path / "c.csv", quiet=True)
    assert found["out"] == str(tmp_path / "c.parquet")
    assert read_clusters(tmp_path / "c.parquet").ids
    assert (tmp_path / "c.csv").read_text().startswith('"id"')


def test_embed_cluster_evaluate_report_export(run, folder, tmp_path, capsys):
    table = tmp_path / "e.parquet"
    assert main(["embed", str(run), str(folder), "--out", str(table), "--max-bad", "0.1"]) == 0
    assert main(["cluster", str(table), "--k", "4"]) == 0
    assert "48 images in 4 clusters of 12 images" in capsys.readouterr().out
    assert (tmp_path / "clusters.csv").read_text().startswith('"id","path","cluster","distance"')
    assert main(["cluster", str(run)]) == 0  # the method's own
    assert main(["cluster", str(table)]) == 0  # a table has no method, so a number is recommended
    assert "is recommended" in capsys.readouterr().err
    for protocol in ("knn", "logistic", "clusters"):
        assert main(["evaluate", protocol, str(run), "--max-bad", "0.1", "--json"]) == 0
        numbers = json.loads(capsys.readouterr().out)["result"]
        scores = [v for k, v in numbers.items() if k in ("top1", "accuracy", "nmi_geometric")]
        assert scores
        assert min(scores) >= 0
    assert main(["evaluate", "knn", str(run), "--train", str(folder), "--test", str(folder), "--max-bad", "0.1"]) == 0
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 10_000
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"backbone.json", "backbone.safetensors"}


def test_the_methods_own_clusters_are_those_of_training(run, tmp_path):
    before = (run / "clusters.csv").read_bytes()
    assert main(["cluster", str(run), "--out", str(tmp_path / "again.parquet")]) == 0
    assert (tmp_path / "again.csv").read_bytes() == before


def test_clusters_of_a_run_are_found_behind_its_projection(run, tmp_path):
    import numpy as np
    import torch

    from selfcluster import api
    from selfcluster.evaluation.clustering import cluster_vectors
    from selfcluster.runs.tables import read_clusters, read_embeddings
    from selfcluster.training.load import trained_method

    vectors = read_embeddings(run / "embeddings.parquet").vectors
    api.cluster(run, k=3, out=tmp_path / "three.parquet", quiet=True)
    method, device = trained_method(run)
    with torch.no_grad():
        projected = method.project(torch.from_numpy(vectors).to(device)).numpy()
    expected = cluster_vectors(projected, 3)[0]
    assert np.array_equal(read_clusters(tmp_path / "three.parquet").clusters, expected)
    assert not np.array_equal(expected, cluster_vectors(vectors, 3)[0])


def test_features_know_what_the_pictures_are(run):
    """A sanity check of the whole path: the four kinds are told apart by neighbors far above chance."""
    from selfcluster import api

    assert api.evaluate("knn", run, k=5, max_bad=0.1)["top1"] > 0.6


def test_random_weights_are_said_by_every_command_that_makes_some_and_of_no_misspelt_run(folder, tmp_path, capsys):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "x.png")
    place = str(tmp_path / "out")
    words = ["attention", "vit_tiny_patch16_224", str(tmp_path / "x.png"), "--image-size", "32", "--out", place]
    assert main(words) == 0
    assert "vit_tiny_patch16_224 is not trained: its weights are random" in capsys.readouterr().err
    assert main(["evaluate", "knn", "tiny_layout", "--train", str(folder), "--image-size", "16"]) == 0
    assert "tiny_layout is not trained: its weights are random" in capsys.readouterr().err
    assert main(["evaluate", "knn", "tiny_layuot", "--train", str(folder)]) == 2
    assert "is not trained" not in capsys.readouterr().err


def test_a_closed_error_stream_ends_the_talking_and_not_the_run(tmp_path):
    """`selfcluster train ... 2>&1 | head -1`: rich would end the program."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "selfcluster", "train", "swav", "builtin:digits", "--limit", "64", *FLAGS]
    done = subprocess.run([*words, "--out", str(tmp_path / "run")], stdout=subprocess.DEVNULL, stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"


def test_a_start_that_was_refused_leaves_no_limit_behind(folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), *FLAGS, "--quiet", "--json"]
    (tmp_path / "shirt.pth").write_text("no weights")
    assert main(["train", "swav", str(folder), "--limit", "16", "--init", str(tmp_path / "shirt.pth"), *out]) != 0
    capsys.readouterr()
    assert main(["train", "swav", str(folder), *out]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["images"] > 16


def test_a_runs_own_images_may_be_as_bad_as_they_were(folder, tmp_path, capsys):
    """`--max-bad 0.2` let the run begin; to embed the same images again it need not be said again."""
    shutil.copytree(folder, tmp_path / "photos")
    for i in range(5):
        (tmp_path / f"photos/kind0/bad{i}.jpg").write_bytes(b"not an image")
    words = ["train", "swav", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), *FLAGS, "--max-bad", "0.2"]
    assert main([*words, "--quiet"]) == 0
    assert main(["embed", str(tmp_path / "run")]) == 0
    assert main(["embed", "resnet18", str(tmp_path / "photos"), "--out", str(tmp_path / "e.parquet")]) == 1
    assert "--max-bad 0.01 allows" in capsys.readouterr().err


def test_a_moved_run_is_told_of_where_it_is(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "moved")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert main(["train", "swav", config["data"], "--out", str(tmp_path / "moved"), *FLAGS, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["result"]
    assert told["run"] == str(tmp_path / "moved")
    assert told["embeddings"] == str(tmp_path / "moved/embeddings.parquet")


def test_a_closed_pipe_is_no_failure():
    code = "import os, sys; os.close(1); from selfcluster.cli import main; sys.exit(main(['methods']))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    reader = f"{sys.executable} -m selfcluster train swav --help | head -1"
    done = subprocess.run(["bash", "-c", reader], capture_output=True, text=True)
    assert done.stderr == ""


def test_subsets_are_seeded_and_written_down(folder, tmp_path):
    import yaml

    from selfcluster import api
    from tests.conftest import TINY, TINY_SETTINGS

    settings = TINY | TINY_SETTINGS["swav"] | {"limit": 20, "max_bad": 0.2, "epochs": 1, "queue_length": 0}
    api.train("swav", folder, out=tmp_path / "a", **settings)
    config = yaml.safe_load((tmp_path / "a/config.yaml").read_text())
    assert config["limit"] == 20
    api.train("swav", folder, out=tmp_path / "b", config=tmp_path / "a/config.yaml", quiet=True)
    assert (tmp_path / "a/embeddings.parquet").read_bytes() == (tmp_path / "b/embeddings.parquet").read_bytes()
    del settings["limit"]  # the run that goes on knows it, and a score on other images uses all of them
    assert api.train("swav", folder, out=tmp_path / "a", **settings)["images"] == 20
    numbers = api.evaluate("knn", tmp_path / "a", test=folder, k=3, max_bad=0.2)
    assert numbers["n_train"] < 20 < numbers["n_test"]


@pytest.mark.parametrize(("command", "name"), [("embed", "e.csv"), ("cluster", "clusters.k2"), ("cluster", "c")])
def test_names_say_what_is_written(run, tmp_path, capsys, command, name):
    words = ["--k", "2"] if command == "cluster" else []
    assert main([command, str(run), *words, "--out", str(tmp_path / name)]) == 2
    assert f"{name}: the file name must end in .parquet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_accuracy_of_more_clusters_than_classes_is_explained(run, capsys):
    assert main(["evaluate", "clusters", str(run), "--k", "6", "--max-bad", "0.1"]) == 0
    assert "--k 4 makes as many clusters as classes" in capsys.readouterr().out


def test_settings_are_told_as_one_writes_them(run, folder, capsys):
    assert main(["train", "swav", str(folder), "--out", str(run), "--sobel", "--init", str(run)]) == 2
    said = capsys.readouterr().err
    assert "--init was not given and is now" in said
    assert "--sobel was no and is now yes" in said


@pytest.mark.parametrize("command", [["embed"], ["evaluate", "knn"]])
def test_a_run_does_not_name_images_for_another_network(command, run, folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "x.parquet")] if command == ["embed"] else []
    assert main([*command, str(run), "--model", "starter", *out]) == 2
    said = capsys.readouterr().err
    assert f"{run} is a run folder, so it cannot be used with --model starter" in said
    assert f"name them instead: {folder}" in said


@pytest.mark.parametrize("switch", ["--batch-norm", "--no-batch-norm"])
def test_a_switch_with_a_value_says_how_to_write_it(switch, folder, capsys):
    assert main(["train", "dino", str(folder), switch, "True"]) == 2
    assert f"{switch} takes no value: write --batch-norm or --no-batch-norm, without 'True'" in capsys.readouterr().err


def test_a_part_of_the_images_needs_a_file_of_its_own(run, folder, tmp_path, capsys):
    for words in (["--limit", "5"], ["--seed", "1"], ["--labels-from", "folders"]):
        assert main(["embed", str(run), *words]) == 2
        assert "name the output file with --out FILE" in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("kind0\n")
    words = ["--classes", str(tmp_path / "classes.txt"), "--labels-from", "folders", "--max-bad", "0.2"]
    assert main(["embed", str(run), str(folder), *words, "--out", str(tmp_path / "part.parquet")]) == 0


def test_wrong_device_is_said_plainly(capsys):
    assert main(["train", "swav", "builtin:digits", "--device", "nonsense", "--out", "/nonexistent/x"]) in (1, 2)
    assert "nonsense" in capsys.readouterr().err


def test_python_names_are_the_command_lines():
    import selfcluster

    for name in ("train", "embed", "cluster", "evaluate", "report", "export", "demo"):
        assert callable(getattr(selfcluster, name))
    assert selfcluster.KMeans.__name__ == "KMeans"
    assert np.isclose(selfcluster.sinkhorn(__import__("torch").zeros(4, 3)).sum(), 4)


def switches():
    """The commands of the table of switches in docs/reproduce.md."""
    text = (Path(__file__).parents[1] / "docs/reproduce.md").read_text().partition("## The switches")[2]
    rows = [line.split("|") for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    return [row[2].strip().strip("`") for row in rows[1:]]


@pytest.mark.parametrize("command", switches())
def test_the_documented_switches_are_flags(command):
    _, *words = command.split()
    said, method = vars(_parse(words)), words[1]
    given = {name: value for name, value in said.items() if name in options_for(read_schema(method))}
    config = resolve(method, DataSummary(1_281_167, 375, 3, gpu=True), given, recipe=said["recipe"]).config
    assert len(given) == sum(word.startswith("--") for word in words) - 1  # all but the recipe
    assert all(config[name] == value for name, value in given.items())
