"""Run folders of every format open with every command; damaged ones are refused in a sentence, whatever the damage.

`stored/` holds tiny runs on the built-in digits as older versions wrote them, whole folders under the format's number.
"""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from selfcluster import api
from selfcluster.cli import main
from selfcluster.runs import checkpoint
from selfcluster.runs.folder import RunError, read_config, read_status
from selfcluster.runs.formats import FORMAT, FormatError, modern_config, modern_meta, modern_tensors
from selfcluster.settings.files import run_config

STORED = Path(__file__).parent / "stored"
FINISHED = [path.name for path in sorted(STORED.glob("*-finished"))]
UNFINISHED = [path.name for path in sorted(STORED.glob("*-unfinished"))]
LAYOUT = re.compile("threads|processes|torch|precision|device")


@pytest.fixture
def stored(tmp_path):
    """A copy of a stored run."""
    return lambda name: Path(shutil.copytree(STORED / name, tmp_path / name))


def test_a_run_of_each_format_is_stored():
    numbers = {int(path.name.split("-")[1]) for path in STORED.iterdir()}
    assert numbers >= set(range(FORMAT))


@pytest.mark.parametrize("name", UNFINISHED)
def test_row_43_an_unfinished_run_of_an_older_format_resumes(stored, name, capsys):
    run = stored(name)
    method = read_config(run)["method"]
    assert main(["train", method, "builtin:digits", "--out", str(run)]) == 0
    assert "step 3" in capsys.readouterr().err
    assert read_status(run)["state"] == "finished"
    newest, complaints = checkpoint.load_newest(run / "checkpoints")
    assert (newest.meta["step"], newest.meta["format"], complaints) == (4, FORMAT, [])


@pytest.mark.parametrize("name", FINISHED)
@pytest.mark.parametrize(
    "words",
    [
        ["cluster", "RUN", "--k", "3"],
        ["cluster", "RUN"],
        ["embed", "RUN"],
        ["evaluate", "knn", "RUN", "--labels-from", "labels", "--k", "3"],
        ["evaluate", "clusters", "RUN", "--labels-from", "labels"],
        ["search", "RUN", "IMAGE"],
        ["report", "RUN"],
        ["export", "RUN"],
    ],
    ids=lambda words: "-".join(words[:2]).lower(),
)
def test_row_43_a_finished_run_of_an_older_format_opens_with_every_command(stored, name, words, tmp_path):
    from PIL import Image

    run, image = stored(name), tmp_path / "image.png"
    Image.new("L", (8, 8), 90).save(image)
    places = {"RUN": str(run), "IMAGE": str(image)}
    assert main([places.get(word, word) for word in words]) == 0


@pytest.mark.parametrize("name", FINISHED)
def test_the_same_command_again_returns_the_summary(stored, name):
    run = stored(name)
    config = read_config(run)
    summary = api.train(config["method"], "builtin:digits", out=run, quiet=True)
    assert summary["loss"] == read_status(run)["summary"]["loss"]


def test_settings_values_and_tensors_get_their_names_of_today():
    old = {"centring": "centre", "centre_momentum": 0.8, "augment": "colour", "num_optimisations": 3, "about": {}}
    new = {"centering": "center", "center_momentum": 0.8, "augment": "color", "num_optimizations": 3, "about": {}}
    assert modern_config(old) == new
    assert modern_config(new | {"about": {"format": 1}}) == new | {"about": {"format": 1}}
    meta = modern_meta({"renewal": {"a": 1}, "layout": {"resident": True}, "step": 2})
    assert meta == {"reassignment": {"a": 1}, "layout": {"in_memory": True}, "step": 2}
    assert set(modern_tensors({"method.objective.centring.centre": 1}, 0)) == {"method.objective.centering.center"}
    assert set(modern_tensors({"method.centre": 1}, 1)) == {"method.centre"}


@pytest.mark.parametrize("number", [FORMAT + 1, -1, "one", True, 1.5])
def test_row_43_a_newer_or_senseless_format_is_refused(number):
    with pytest.raises(FormatError, match="update selfcluster" if number == FORMAT + 1 else "not a whole number"):
        modern_config({"about": {"format": number}})


def test_an_old_flag_is_taken_with_a_note(stored, capsys):
    run = stored(UNFINISHED[0])
    assert main(["train", "dino", "builtin:digits", "--out", str(run), "--centre-momentum", "0.7"]) == 2
    message = capsys.readouterr().err
    assert "--centre-momentum is now called --center-momentum" in message
    assert "--center-momentum was 0.8 and is now 0.7" in message


def edited(run: Path, change) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_row_43_an_edit_of_a_setting_is_noticed_on_resume(stored, capsys):
    run = stored(UNFINISHED[0])
    assert main(["train", "dino", "builtin:digits", "--out", str(run), "--quiet"]) == 0  # today's checkpoint
    (run / "status.json").write_text(json.dumps({"state": "preempted"}))
    edited(run, lambda config: config.update(learning_rate=0.5))
    assert main(["train", "dino", "builtin:digits", "--out", str(run)]) == 2
    assert re.search(
        r"config.yaml was edited after the run began: learning_rate was \S+ and is now 0.5", capsys.readouterr().err
    )
    edited(run, lambda config: config.update(learning_rate=read_settings_of(run)["learning_rate"], workers=1))
    assert main(["train", "dino", "builtin:digits", "--out", str(run), "--quiet"]) == 0  # workers may differ


def read_settings_of(run: Path) -> dict:
    return checkpoint.newest_settings(run / "checkpoints")


def test_a_setting_that_the_run_had_not_yet_takes_its_default(stored):
    run = stored(FINISHED[0])
    edited(run, lambda config: [config.pop(name) for name in ("momentum_encoder", "clip_each", "temperature")])
    config = run_config(run)
    assert (config["momentum_encoder"], config["clip_each"], config["temperature"]) == (None, None, 0.1)


WRONG = {
    "a text": "many",
    "a list": [1, 2, 3],
    "a mapping": {"a": {"b": [1]}},
    "nan": float("nan"),
    "huge": 10**400,
    "negative": -7,
    "a date": __import__("datetime").date(2020, 1, 1),
}
KEYS = ["epochs", "batch_size", "learning_rate", "image_size", "global_scale", "optimizer", "num_prototypes", "seed"]
HARMLESS = {("seed", "negative"), ("optimizer", "a date")}  # a seed may be negative
STRUCTURE = {
    "empty file": "",
    "a list": "- 1\n- 2\n",
    "a word": "swav",
    "not YAML": "a: [1, 2",
    "a tag": "method: !!python/object/apply:os.system ['true']\n",
    "an unknown tag": "method: !thing 3\n",
    "a loop": "method: &a [*a]\n",
    "deep": "a: " + "[" * 5000,
    "a NUL": "method: \0swav\n",
    "two documents": "method: swav\n---\nmethod: dino\n",
}
REMOVED = ["method", "data", "about"]
REPLACED = {
    "method": ["swva", 3, None, ["swav"], {}],
    "data": [None, 5, ["builtin:digits"]],
    "about": [None, 3, "x", [], {"source": 3, "summary": {}}, {"source": {}, "summary": {}}, {"format": 99}],
    "num_prototypez": [3],
    "1": [3],
    "temperature": [0],
    "codes_from": ["globall"],
}


def damages():
    for name, text in STRUCTURE.items():
        yield f"file: {name}", text
    yield "file: not UTF-8", b"method: \xff\xfe"
    config = yaml.safe_load((STORED / FINISHED[0] / "config.yaml").read_text())
    for key in KEYS:
        for name, value in WRONG.items():
            if (key, name) not in HARMLESS:
                yield f"{key}: {name}", {**copy.deepcopy(config), key: value}
    for key in REMOVED:
        yield f"no {key}", {k: v for k, v in copy.deepcopy(config).items() if k != key}
    for key, values in REPLACED.items():
        for value in values:
            yield f"{key}: {value!r}", {**copy.deepcopy(config), key: value}


DAMAGES = dict(damages())


def test_there_are_as_many_kinds_of_damage_as_promised():
    assert len(DAMAGES) >= 85


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_config_is_refused_in_a_sentence(kind, stored, capsys):
    run, damage = stored(FINISHED[0]), DAMAGES[kind]
    if isinstance(damage, bytes):
        (run / "config.yaml").write_bytes(damage)
    else:
        (run / "config.yaml").write_text(damage if isinstance(damage, str) else yaml.safe_dump(damage))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for words in (
        ["train", "swav", "builtin:digits", "--out", str(run)],
        ["cluster", str(run), "--k", "3"],
        ["report", str(run)],
    ):
        assert main(words) == 2, words
        message = capsys.readouterr().err.strip()
        assert message.startswith("selfcluster: ")
        assert "\n" not in message
        assert len(message) < 400
    assert main(["export", str(run)]) in (0, 2)
    shutil.rmtree(run / "export", ignore_errors=True)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path != run} == {
        p: t for p, t in before.items() if p != run
    }


def test_every_command_needs_a_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.yaml"):
        read_config(tmp_path)
