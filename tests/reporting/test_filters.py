"""Pictures of filters: colors where there are three channels, gray parts where there are others, rows of ten images."""

import numpy as np
from PIL import Image

from selfcluster import api
from selfcluster.reporting.filters import ascent_sheet, filter_grid, stretched
from tests.conftest import TINY, TINY_SETTINGS


def test_a_filter_is_stretched_from_black_to_white():
    weights = np.zeros((1, 3, 2, 2))
    weights[0, 0, 0, 0], weights[0, :, 1, 1] = 1, -1  # red is highest at the left top, all lowest at the right bottom
    sheet = np.asarray(filter_grid(weights, cell=2))[4:6, 4:6]
    np.testing.assert_array_equal(sheet, [[[255, 128, 128], [128] * 3], [[128] * 3, [0] * 3]])


def test_channels_of_edges_stand_next_to_one_another():
    weights = np.stack([np.zeros((3, 3)), np.ones((3, 3))])[None]
    sheet = np.asarray(filter_grid(weights, cell=3))[4:7, 4:10]
    assert (sheet[:, :3] == 0).all()
    assert (sheet[:, 3:] == 255).all()


def test_an_image_of_any_values_is_shown_around_its_middle():
    images = np.concatenate([np.zeros((1, 1, 4, 2)), np.ones((1, 1, 4, 2))], axis=3) * 1000 - 7
    shown = stretched(images)
    assert shown.shape == (1, 4, 4, 3)
    # two values lie one deviation from their mean: a quarter of the range to either side
    np.testing.assert_array_equal(np.unique(shown), [64, 191])


def test_a_gap_is_left_for_an_image_that_cannot_be_read():
    made = np.zeros((2, 8, 8, 3), np.uint8)
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    sheet = np.asarray(ascent_sheet(made, [[red, None], [None, red]]))
    assert (sheet[50, 50] == 0).all()
    assert (sheet[50, 150] == [255, 0, 0]).all()
    assert (sheet[50, 250] == 255).all()
    assert (sheet[150, 250] == [255, 0, 0]).all()


def test_the_command_draws_all_three(tmp_path, pictures):
    for i, picture in enumerate(pictures):
        (tmp_path / f"photos/kind{i % 4}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"photos/kind{i % 4}/{i}.png")
    api.train("rotnet", tmp_path / "photos", out=tmp_path / "run", **TINY | TINY_SETTINGS["rotnet"] | {"epochs": 1})
    found = api.figures(tmp_path / "run", labels_from="folders", filters=2, steps=3)
    assert found["files"] == ["first-filters.png", "filters.png", "classes.png"]
    for name in found["files"]:
        with Image.open(tmp_path / "run/figures" / name) as picture:
            picture.verify()
    assert len(found["filters"]) == 2
    # the nine strongest are those of the layer's features
    from selfcluster.evaluation.subject import Subject

    images = Subject(model=str(tmp_path / "run"), labeled=False).features(layer=found["layer"])
    best = images.vectors[:, found["filters"][0]].argsort()[::-1][:9]
    assert found["strongest"][0] == [images.ids[i] for i in best]
    without = api.figures("tiny_layout", out=tmp_path / "plain")
    assert without["files"] == ["first-filters.png"]
