"""What all protocols share: train and test are limited apart, sizes are honored, unknown classes count as errors."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from selfcluster import api
from selfcluster.evaluation.subject import Subject, held_out
from tests.conftest import TINY, TINY_SETTINGS

SIZE = 24
ARGUMENTS = {
    "linear": {"epochs": 1},
    "finetune": {"epochs": 1},
    "semi": {"epochs": 1, "share": 0.5},
    "low_shot": {"samples": 1, "shots": "2"},
}
# what the others need is in their own tests: masks, a classifier, several labels
LABELED = ("knn", "logistic", "linear", "finetune", "semi", "svm", "low_shot")


@pytest.fixture(scope="module")
def sets(tmp_path_factory, pictures):
    """Images of three kinds to train on, and of four to test on, one of them unknown."""
    folder = tmp_path_factory.mktemp("sets")
    for i, picture in enumerate(pictures):
        for part in ("train", "test") if i % 4 < 3 else ("test",):
            (folder / part / f"kind{i % 4}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / part / f"kind{i % 4}" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sets):
    out = tmp_path_factory.mktemp("runs")
    api.train("swav", sets / "train", out=out / "swav", **TINY | TINY_SETTINGS["swav"] | {"epochs": 1})
    shared = TINY | {"epochs": 1, "labels_from": "folders"}
    api.train("supervised", sets / "train", out=out / "supervised", **shared)
    return out


@pytest.fixture
def sides():
    """Sides of the images that any part of a network is given."""
    seen = set()

    def record(module, arguments):
        images = [x for x in arguments if isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] == 3]
        seen.update(x.shape[-1] for x in images if len(x) > 4)  # a new network is tried with less

    handle = torch.nn.modules.module.register_module_forward_pre_hook(record)
    yield seen
    handle.remove()


@pytest.mark.parametrize("name", LABELED)
def test_a_class_that_training_lacks_counts_as_an_error(name, runs, sets):
    """A quarter of the test images is of a kind that no training image has: nobody can be right in more than 3/4."""
    run = runs / "swav"
    found = api.evaluate(name, run, train=sets / "train", test=sets / "test", **ARGUMENTS.get(name, {}))
    known = [path for path in (sets / "test").glob("*/*.png") if path.parent.name != "kind3"]
    assert (found["n_test"], len(known)) == (48, 36)
    assert found["top1"] <= 36 / 48
    assert found["top1"] * 48 == pytest.approx(round(found["top1"] * 48))  # all 48 are counted


def test_a_supervised_runs_classifier_meets_an_unknown_class(runs, sets):
    found = api.evaluate("classifier", runs / "supervised", test=sets / "test")
    assert found["n_test"] == 48
    assert found["top1"] <= 36 / 48


@pytest.mark.parametrize("name", [*LABELED, "classifier", "clusters", "unlabeled", "metadata"])
def test_a_runs_network_sees_images_of_the_size_asked_for(name, runs, sets, sides, tmp_path):
    run = runs / ("supervised" if name == "classifier" else "swav")
    more = {"test": sets / "test"} if name not in ("clusters", "unlabeled", "metadata") else {}
    more |= {"train": sets / "train"} if more and name != "classifier" else {}
    if name == "metadata":
        table = tmp_path / "about.csv"
        rows = [
            f"{path.relative_to(sets / 'train')},{i % 3}" for i, path in enumerate((sets / "train").glob("*/*.png"))
        ]
        table.write_text("path,number\n" + "\n".join(rows))
        more = {"table": str(table)}
    shutil.rmtree(run / "evaluations/features", ignore_errors=True)  # or they would be read and not made
    found = api.evaluate(name, run, image_size=SIZE, **more, **ARGUMENTS.get(name, {}))
    assert found.subject["image_size"] == SIZE
    assert sides == {SIZE}


def test_clusters_at_another_size_are_those_of_the_method(runs, sets):
    """The table's at the run's own size; at another size SwAV's prototypes decide, and a network has none at all."""
    own = Subject(model=str(runs / "swav"))
    np.testing.assert_array_equal(own.assigned(own.all_features), own.clusters().clusters)
    other = Subject(model=str(runs / "swav"), image_size=SIZE)
    from selfcluster.training.load import own_clusters

    np.testing.assert_array_equal(
        other.assigned(other.all_features), own_clusters(runs / "swav", other.all_features.vectors)[0]
    )
    with pytest.raises(ValueError, match="give the number of k-means clusters with --k"):
        Subject(model="tiny_layout", train=sets / "train").clusters()


def test_train_and_test_are_limited_apart(runs, sets):
    both = api.evaluate("knn", runs / "swav", train=sets / "train", test=sets / "test", limit=20, test_limit=7)
    assert (both["n_train"], both["n_test"]) == (20, 7)
    held = api.evaluate("knn", runs / "swav", split=0.5, test_limit=5)
    assert (held["n_train"], held["n_test"]) == (18, 5)
    trained = api.evaluate("finetune", runs / "swav", split=0.5, test_limit=5, limit=20, epochs=1)
    assert (trained["n_train"], trained["n_test"]) == (10, 5)


@pytest.mark.parametrize("name", ["knn", "linear", "finetune"])
def test_images_without_a_label_are_counted_in_the_result(name, runs, sets, tmp_path):
    """Every third image has an empty label or "None": neither is a class."""
    paths = sorted(path.relative_to(sets / "train").as_posix() for path in (sets / "train").glob("*/*.png"))
    labels = [("None", "x", "y", "", "y", "x")[i % 6] for i in range(len(paths))]
    table = tmp_path / "labels.csv"
    table.write_text("id,label\n" + "".join(f"{path},{label}\n" for path, label in zip(paths, labels)))
    found = api.evaluate(name, runs / "swav", labels_from=str(table), **ARGUMENTS.get(name, {}))
    assert found["n_train"] + found["n_test"] == 24
    assert "12 of 36 images have no label and were left out." in found.notes
    whole = api.evaluate(name, runs / "swav", **ARGUMENTS.get(name, {}))
    assert not any("label" in note for note in whole.notes)


def test_a_limited_share_is_part_of_the_whole_one():
    kept, held = held_out(50, 0.4, 3)
    same, few = held_out(50, 0.4, 3, 6)
    np.testing.assert_array_equal(kept, same)
    assert len(few) == 6
    assert set(few) < set(held)
