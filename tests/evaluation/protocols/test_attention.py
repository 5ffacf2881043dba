"""Masks of attention heads against true masks: scores by hand, layouts, and a network that was not trained."""

import numpy as np
import pytest
import torch
from PIL import Image

from selfcluster import api
from selfcluster.evaluation.protocols.attention import head_scores, masks_of, objects_of, pairs


def test_the_best_head_counts_for_each_object():
    mask = np.array([[1, 1, 0, 2], [1, 1, 0, 255]], np.uint8)
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :2] = True
    right[:, 3] = True
    assert objects_of(mask) == [1, 2]
    scores = head_scores(np.stack([left, right]), mask, [1, 2])
    np.testing.assert_array_equal(scores, [[1, 0], [0, 1]])  # the void pixel takes nothing from the second head
    assert objects_of(np.array([[0, 255]], np.uint8)) == [255]
    assert head_scores(np.array([[[True, True]]]), np.array([[0, 255]], np.uint8), [255]) == [[0.5]]


def test_masks_hold_the_share_and_have_the_images_size():
    attention = torch.zeros(1, 2, 5, 5)  # a class token and 2 x 2 patches
    attention[0, 0, 0, 1:] = torch.tensor([0.7, 0.1, 0.1, 0.1])
    attention[0, 1, 0, 1:] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    masks = masks_of(attention, (2, 2), (4, 6), 0.6)
    assert masks.shape == (2, 4, 6)
    assert masks[0].sum() == 6  # one patch of four
    assert masks[0, :2, :3].all()
    assert masks[1].sum() == 12  # 0.4 and 0.3 hold 60 %
    assert masks[1, 2:].all()


@pytest.fixture
def voc(tmp_path):
    for folder in ("JPEGImages", "SegmentationObject"):
        (tmp_path / folder).mkdir()
    for n, value in enumerate((1, 2, 0)):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (40, 56, 3), np.uint8)).save(
            tmp_path / "JPEGImages" / f"{n}.jpg"
        )
        mask = np.zeros((40, 56), np.uint8)
        mask[10:30, 10:30] = value
        Image.fromarray(mask).save(tmp_path / "SegmentationObject" / f"{n}.png")
    return tmp_path


def test_it_runs_on_both_layouts(voc, tmp_path):
    result = api.evaluate("attention", "vit_tiny_patch4_32", train=voc, side=40)
    assert (result["images"], result["empty"]) == (2, 1)
    assert 0 < result["jaccard"] < 0.6
    assert [row["objects"] for row in result.table] == [1, 1]
    with pytest.raises(ValueError, match="attention maps need a vision transformer"):
        api.evaluate("attention", "resnet18", train=voc)
    (voc / "JPEGImages" / "1.jpg").unlink()
    with pytest.raises(ValueError, match="which is missing"):
        list(pairs(voc))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="DAVIS's layout"):
        list(pairs(tmp_path / "nothing"))


def test_masks_without_any_object_are_refused(voc):
    for n in range(3):
        Image.fromarray(np.zeros((40, 56), np.uint8)).save(voc / "SegmentationObject" / f"{n}.png")
    with pytest.raises(ValueError, match="marks an object"):
        api.evaluate("attention", "vit_tiny_patch4_32", train=voc, side=40)
