"""`--accept-data-change`: an unfinished run goes on with data that has changed, where its method can (fault 17)."""

import json
import os
import signal

import pytest
import yaml
from PIL import Image

from selfcluster.methods import METHODS
from selfcluster.runs.folder import RunError
from selfcluster.training.loop import Preempted


@pytest.fixture
def photos(tmp_path, pictures):
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"photos/{number:02d}.png")
    return tmp_path / "photos"


@pytest.fixture
def stopped(tiny, tmp_path, photos, monkeypatch):
    """A function that trains a method until SIGTERM: it stops after step 5, in its second epoch of three steps."""

    def train(method):
        with monkeypatch.context() as patch:
            kind = METHODS[method]
            before = kind.on_step_end

            def end(self, progress, outputs):
                before(self, progress, outputs)
                if progress.step == 3:  # the loop stops after the next step
                    os.kill(os.getpid(), signal.SIGTERM)

            patch.setattr(kind, "on_step_end", end)
            with pytest.raises(Preempted):
                tiny(method, tmp_path / "run", data=photos)

    return train


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["swav", "deepcluster_v2"])
def test_row_17_an_edited_image_is_refused_or_accepted_and_the_epoch_begins_again(
    method, tiny, stopped, tmp_path, photos, pictures, capsys
):
    stopped(method)
    Image.fromarray(pictures[5]).rotate(90).save(photos / "05.png")
    with pytest.raises(RunError, match=r"other sizes.*\. To resume, restore the data, or add --accept-data-change"):
        tiny(method, tmp_path / "run", data=photos)
    capsys.readouterr()
    tiny(method, tmp_path / "run", data=photos, accept_data_change=True, quiet=False)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "epoch 1 begins again resuming at step 3" in said
    assert steps(tmp_path / "run") == [3, 6, 9]
    about = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["about"]
    assert len(about["data_changes"]) == 1
    assert "other sizes" in about["data_changes"][0]
    tiny(method, tmp_path / "run", data=photos)  # the data is the run's now


def test_row_17_fewer_images_make_other_epochs(tiny, stopped, tmp_path, photos):
    stopped("swav")
    (photos / "05.png").unlink()
    summary = tiny("swav", tmp_path / "run", data=photos, accept_data_change=True)
    assert summary["images"] == 47
    assert summary["steps"] == 6  # three epochs of two steps: the first of three counts as one
    assert steps(tmp_path / "run") == [3, 4, 6]


@pytest.mark.parametrize("other", ["05b.png", None])
def test_row_17_a_method_with_a_value_for_each_image_needs_the_same_images(tiny, stopped, tmp_path, photos, other):
    stopped("deepcluster_v2")
    if other:
        (photos / "05.png").rename(photos / other)
    else:
        (photos / "05.png").unlink()
    with pytest.raises(RunError, match=r"DeepClusterV2 stores a value for each image, .*choose another --out"):
        tiny("deepcluster_v2", tmp_path / "run", data=photos, accept_data_change=True)


def test_row_17_a_finished_run_stays_what_it_is(tiny, tmp_path, photos):
    tiny("swav", tmp_path / "run", data=photos, epochs=1)
    config = (tmp_path / "run/config.yaml").read_bytes()
    (photos / "05.png").unlink()
    with pytest.raises(RunError, match=r"\. The run is finished\. Choose another --out to train on the new data$"):
        tiny("swav", tmp_path / "run", data=photos, epochs=1, accept_data_change=True)
    assert (tmp_path / "run/config.yaml").read_bytes() == config
