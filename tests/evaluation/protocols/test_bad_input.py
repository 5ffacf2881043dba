"""Bad input of every protocol: one sentence on what is wrong, exit status 2, and nothing left in the run folder."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from selfcluster import api
from selfcluster.cli import main
from selfcluster.evaluation.one_vs_rest import parse_costs
from selfcluster.evaluation.protocols import protocol_names
from selfcluster.evaluation.protocols.knn import knn, knn_map
from selfcluster.evaluation.protocols.logistic import logistic
from selfcluster.evaluation.protocols.low_shot import low_shot
from selfcluster.evaluation.protocols.svm import svm
from selfcluster.evaluation.subject import Subject
from selfcluster.models.backbones import load_backbone, save_backbone
from tests.conftest import TINY, TINY_SETTINGS

LABELED = ("knn", "logistic", "linear", "finetune", "semi", "svm", "low_shot")
QUICK = {
    "linear": ("--epochs", "1"),
    "finetune": ("--epochs", "1"),
    "semi": ("--epochs", "1", "--share", "0.5"),
    "svm": ("--costs", "1"),
    "low_shot": ("--shots", "1", "--samples", "2", "--costs", "1"),
    "clusters": ("--k", "2"),
    "metadata": ("--k", "2", "--table", "table.csv", "--no-colors"),
    "attention": ("--side", "32"),
    "video": ("--frame-side", "32"),
    "retrieval": ("--side", "48", "--whiten", "0"),
    "copies": ("--side", "32"),
}
# what each protocol needs beside its settings: the network, and words that name images it can use
GOOD = {
    **dict.fromkeys((*LABELED, "clusters", "metadata", "unlabeled"), ("cnn", ("--train", "two"))),
    "classifier": ("cnn", ("--test", "two")),
    "attention": ("vit", ("--test", "davis")),
    "video": ("vit", ("--train", "davis")),
    "retrieval": ("cnn", ("--test", "landmarks")),
    "copies": ("cnn", ("--test", "copydays")),
}


def picture(i, size=(16, 16)):
    rng = np.random.default_rng(i)
    pixels = rng.uniform(0, 70, (*size[::-1], 3)) + 60 * (i % 3)
    return Image.fromarray(pixels.astype(np.uint8))


def folders(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(i).save(root / name / f"{name}{i}.png")


def davis(root, value, last=None):
    """Two videos; `last`: the value of the second one's masks."""
    for name, of in (("a", value), ("b", value if last is None else last)):
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / name).mkdir(parents=True)
        mask = np.zeros((32, 48), np.uint8)
        mask[8:20, 8:20] = of
        for i in range(4):
            picture(i, (48, 32)).save(root / "JPEGImages" / name / f"{i:05}.jpg")
            Image.fromarray(mask).save(root / "Annotations" / name / f"{i:05}.png")


def landmarks(root, box=(0, 0, 48, 36)):
    (root / "jpg").mkdir(parents=True)
    names = [f"g{g}_{v}" for g in range(2) for v in range(3)]
    for i, name in enumerate(names):
        picture(i // 3, (48, 36)).save(root / "jpg" / f"{name}.jpg")
    rows = [{"bbx": box, "easy": [3 * g + 1], "hard": [3 * g + 2], "junk": [3 * g]} for g in range(2)]
    truth = {"imlist": names, "qimlist": ["g0_0", "g1_0"], "gnd": rows}
    (root / "gnd_small.json").write_text(json.dumps(truth))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    folders(root / "two", a=8, b=8)
    folders(root / "lone", a=8, b=1)
    folders(root / "single", a=9)
    folders(root / "other", x=6, y=6)
    folders(root, flat=12, one=1, few=3, empty=0)
    davis(root / "davis", 1)
    davis(root / "no_object", 0)
    davis(root / "second_empty", 1, 0)
    landmarks(root / "landmarks")
    landmarks(root / "half_a_box", (0, 0, 48))
    landmarks(root / "flat_box", (9, 0, 9, 36))
    for name in ("original", "strong"):
        (root / "copydays" / name).mkdir(parents=True)
        for i in range(4):
            picture(i).save(root / "copydays" / name / f"20{i:02}0{int(name == 'strong')}.jpg")
    shutil.copytree(root / "copydays", root / "lost")
    picture(9).save(root / "lost" / "strong" / "999900.jpg")
    ids = [f"{c}/{c}{i}.png" for c in "ab" for i in range(8)]
    (root / "table.csv").write_text("id,c\n" + "".join(f"{name},{'xy'[i % 2]}\n" for i, name in enumerate(ids)))
    (root / "unlabeled.csv").write_text("id,label\n" + "".join(f"{name},\n" for name in ids))
    (root / "tags.csv").write_text("id,t\n" + "".join(f"{name},{('p', 'p;q')[i % 2]}\n" for i, name in enumerate(ids)))
    networks = {"cnn": {}, "vit": {"backbone": "vit_tiny_patch4_32"}}
    for name, settings in networks.items():
        settings = TINY | TINY_SETTINGS["supervised"] | {"labels_from": "folders", "epochs": 1} | settings
        api.train("supervised", root / "two", out=root / name, **settings)
        shutil.copytree(root / name, root / f"{name}_nan")
        module, mean, std, size = load_backbone(root / name)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(torch.nan)
        save_backbone(root / f"{name}_nan", module, mean, std, size)
    return root


@pytest.fixture
def evaluate(root, capsys, monkeypatch):
    """A function that runs `selfcluster evaluate` in `root`: the exit status, and what it said on stderr."""
    monkeypatch.chdir(root)

    def run(protocol, model, *words):
        shutil.rmtree(root / model / "evaluations", ignore_errors=True)
        status = main(["evaluate", protocol, model, *words, "--workers", "1"])
        lines = capsys.readouterr().err.strip().splitlines()
        return status, [line for line in lines if "evaluating by" not in line]

    return run


def refused(evaluate, root, protocol, model, words, sentence):
    status, lines = evaluate(protocol, model, *words)
    assert status == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("selfcluster: ")
    assert sentence in lines[0], lines[0]
    kept = (root / model / "evaluations").rglob("*")
    assert [path.name for path in kept if path.is_file() and path.suffix != ".npz"] == []


def case(sentence, *words, protocols=LABELED, model=None):
    return [(protocol, model or GOOD[protocol][0], words, sentence) for protocol in protocols]


# refused before a network is loaded
EARLY = [
    *case("in no folder", "--train", "flat", protocols=(*LABELED, "clusters")),
    *case("in no folder", "--train", "two", "--test", "flat"),
    *case("in no folder", "--test", "flat", protocols=("classifier",)),
    *case(
        "every label is missing",
        "--train", "two", "--labels-from", "unlabeled.csv",
        protocols=(*LABELED, "clusters"),
    ),
    *case("no images in", "--train", "two", "--test", "empty"),
    *case("no images in", "--test", "empty", protocols=("classifier",)),
    *case("--test-limit 0: must be at least 1", "--train", "two", "--test-limit", "0"),
    *case("--limit 0: must be 1", "--train", "two", "--limit", "0", protocols=(*LABELED, "clusters", "metadata")),
    *case("1 class", "--train", "single", protocols=("linear", "finetune", "semi")),
    *case("has one class only, 0", "--train", "single", protocols=("knn", "logistic", "svm", "low_shot")),
    *case(
        "several", "--train", "two", "--labels-from", "tags:tags.csv",
        protocols=("linear", "logistic", "clusters"),
    ),
    *case("one label per image", "--train", "two", "--labels-from", "tags:tags.csv", protocols=("semi",)),
    *case("no folder Annotations", "--train", "two", "--labels-from", "voc"),
    *case("no_object marks an object", "--train", "no_object", protocols=("attention",)),
    *case("is empty; it marks no object", "--train", "no_object", protocols=("video",)),
    *case("b: the mask of the first frame", "--train", "second_empty", protocols=("video",)),
    *case("DAVIS's layout", "--train", "two", protocols=("attention", "video")),
    *case("DAVIS's layout", "--test", "absent", protocols=("attention", "video")),
    *case("leave --train out", "--train", "davis", "--test", "davis", protocols=("attention", "video")),
    *case("with --test", protocols=("attention", "video", "retrieval", "copies")),
    *case("has no folder jpg", "--test", "two", protocols=("retrieval",)),
    *case("has no folder jpg", "--train", "two", "--test", "landmarks", "--whiten", "2", protocols=("retrieval",)),
    *case("name it with --train", "--test", "landmarks", "--whiten", "2", protocols=("retrieval",)),
    *case("0 0 48' is not a box", "--test", "half_a_box", protocols=("retrieval",)),
    *case("9 0 9 36' is not a box", "--test", "flat_box", protocols=("retrieval",)),
    *case("original holds no images", "--test", "two", protocols=("copies",)),
    *case("jpeg holds no images", "--test", "copydays", "--block", "jpeg", protocols=("copies",)),
    *case("absent holds no images", "--test", "copydays", "--distractors", "absent", protocols=("copies",)),
    *case(
        "absent holds no images",
        "--test", "copydays", "--whiten", "2", "--train", "absent",
        protocols=("copies",),
    ),
    *case("999900.jpg has no original", "--test", "lost", protocols=("copies",)),
    *case("has no effect on", "--train", "two", "--test", "two", protocols=("clusters", "metadata", "unlabeled")),
    *case("--layer fc has no effect", "--layer", "fc", "--test", "davis", protocols=("attention",)),
    *case("--layer fc has no effect", "--layer", "fc", "--train", "two", protocols=("finetune", "semi")),
    *case("leave it out", "--layer", "fc", "--train", "two", protocols=("unlabeled",)),
    *case("without --train and --layer", "--layer", "fc", "--test", "two", protocols=("classifier",)),
    *case("at least 8 are needed", "--train", "few", protocols=("unlabeled",)),
    *case("the number of images", "--train", "two", "--k", "999", protocols=("clusters", "metadata")),
    *case("no.csv", "--train", "two", "--table", "no.csv", protocols=("metadata",)),
    *case("there is no 'd'", "--train", "two", "--columns", "d", protocols=("metadata",)),
    *case("whole numbers of at least 1", "--train", "two", "--k", "0", protocols=("knn",)),
    *case("no.txt", "--train", "two", "--subset", "no.txt", protocols=("semi",)),
    *case("--epochs has no effect", "--train", "two", "--classifier", "knn", protocols=("semi",)),
    *case("--costs 0", "--train", "two", "--costs", "0", protocols=("svm", "low_shot")),
    *case("--shots 0", "--train", "two", "--shots", "0", protocols=("low_shot",)),
    *case("--depths 2 needs --layer all", "--train", "two", "--depths", "2", protocols=("linear",)),
    *case("choose 1 or 10", "--train", "two", "--test-crops", "3", protocols=("linear", "finetune")),
]  # fmt: skip
# refused when the network or its features are known
LATE = [
    *(
        (protocol, model, (*words, "--layer", "nope"), "--layer nope: ")
        for protocol, (model, words) in GOOD.items()
        if protocol not in ("attention", "finetune", "semi", "unlabeled", "classifier")
    ),
    *(
        (protocol, f"{model}_nan", words, "not finite")
        for protocol, (model, words) in GOOD.items()
        if protocol != "classifier"
    ),
    ("classifier", "cnn_nan", ("--test", "other"), "not finite"),  # the run's own images have kept features
    *case("--shots 5: the class b has", "--train", "lone", "--shots", "5", protocols=("low_shot",)),
    *case("at least 2 images", "--train", "one", "--whiten", "2", "--test", "copydays", protocols=("copies",)),
    *case("attention maps need a vision transformer", "--test", "davis", protocols=("attention",), model="cnn"),
    *case("no fully connected layers", "--train", "two", "--tune", "fc", protocols=("finetune",), model="vit"),
]


def named(rows):
    return [pytest.param(*row, id=f"{row[0]}: {' '.join(row[2])} {row[1]}") for row in rows]


def words_of(protocol, words):
    """The quick settings of a protocol, but for those that `words` have."""
    quick, kept = QUICK.get(protocol, ()), []
    for i, word in enumerate(quick):
        flag = word if word.startswith("--") else quick[i - 1]
        if flag not in words:
            kept.append(word)
    return (*words, *kept)


@pytest.mark.parametrize(("protocol", "model", "words", "sentence"), named(EARLY))
def test_it_is_refused_before_a_network_is_loaded(evaluate, root, monkeypatch, protocol, model, words, sentence):
    def loaded(*arguments):
        raise AssertionError("the network was loaded before the input was checked")

    monkeypatch.setattr(Subject, "network", loaded)
    refused(evaluate, root, protocol, model, words_of(protocol, words), sentence)


@pytest.mark.parametrize(("protocol", "model", "words", "sentence"), named(LATE))
def test_it_is_refused(evaluate, root, protocol, model, words, sentence):
    refused(evaluate, root, protocol, model, words_of(protocol, words), sentence)


@pytest.mark.parametrize("protocol", protocol_names())
def test_each_protocol_takes_its_good_input(evaluate, protocol):
    """Else the refusals above might be for another reason. A protocol that is added must be listed there."""
    model, words = GOOD[protocol]
    status, lines = evaluate(protocol, model, *words_of(protocol, words))
    assert (status, lines) == (0, [])


@pytest.mark.parametrize("protocol", [*LABELED, "clusters"])
def test_one_image_in_a_class_is_no_error(evaluate, protocol):
    status, lines = evaluate(protocol, "cnn", *words_of(protocol, ("--train", "lone")))
    assert (status, lines) == (0, [])


@pytest.mark.parametrize("protocol", [*LABELED, "classifier"])
def test_classes_that_train_lacks_count_as_errors(root, monkeypatch, protocol):
    monkeypatch.chdir(root)
    settings = {"linear": {"epochs": 1}, "finetune": {"epochs": 1}, "semi": {"epochs": 1, "share": 0.5}}
    settings |= {"svm": {"costs": "1"}, "low_shot": {"shots": "1", "samples": 2, "costs": "1"}}
    own = {} if protocol == "classifier" else {"train": "two"}
    result = api.evaluate(protocol, "cnn", test="other", workers=1, **own, **settings.get(protocol, {}))
    assert result["top1"] == 0


def test_one_image_cannot_be_divided(evaluate, root):
    for protocol in ("knn", "logistic", "svm"):
        words = words_of(protocol, ("--train", "two", "--limit", "1"))
        status, lines = evaluate(protocol, "cnn", *words)
        assert (status, len(lines)) == (2, 1)


def test_features_of_another_network_are_refused():
    x, y, wide = np.eye(6, dtype=np.float32), np.array([0, 1] * 3), np.ones((6, 7), np.float32)
    tags = np.stack([y, 1 - y], axis=1)
    for call in (
        lambda: knn(x, y, wide, y),
        lambda: knn_map(x, tags, wide, tags, ks=(1,)),
        lambda: logistic(x, y, wide, y),
        lambda: svm(x, y, wide, y, costs=parse_costs("1")),
        lambda: low_shot(x, y, wide, y, shots=(1,), costs=parse_costs("1")),
    ):
        with pytest.raises(
            ValueError, match="train has 6 features per image and test 7; embed both with the same network"
        ):
            call()


def test_a_rate_that_is_too_high_is_named(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=r"loss is not finite in epoch \d; give a lower --trunk-rate"):
        api.evaluate("finetune", "cnn", train="two", epochs=9, trunk_rate=1e9, head_rate=1e9, tune_batch=4)


def test_sobel_filters_are_in_front_of_maps_of_any_size(root, monkeypatch, tmp_path):
    """Networks of DeepCluster and DeeperCluster: their inner functions take edges, not images."""
    from selfcluster.models.backbones import make_backbone
    from selfcluster.models.maps import feature_maps

    module = make_backbone("tiny_layout", channels=3, image_size=16, sobel=2).eval()
    images = torch.rand(2, 3, 24, 16)
    torch.testing.assert_close(feature_maps(module, images).places, feature_maps(module, images, "layer5").places)
    save_backbone(tmp_path / "edges", module, (0.5,) * 3, (0.5,) * 3, 16)
    monkeypatch.chdir(root)
    for protocol, words in (("video", {"train": "davis", "frame_side": 32}), ("copies", {"test": "copydays"})):
        result = api.evaluate(protocol, tmp_path / "edges", workers=1, **words)
        assert all(np.isfinite(value) for value in result.values())
