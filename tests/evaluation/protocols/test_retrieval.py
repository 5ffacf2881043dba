"""Retrieval of landmarks and of copies, on small sets made here in the published layouts."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from selfcluster import api
from selfcluster.evaluation.layouts.landmarks import read_landmarks

GROUPS, EACH = 3, 4


def picture(group, variant, size=(48, 36)):
    """A scene of its own colors a group; the variants are brighter or darker."""
    rng = np.random.default_rng(group)
    small = rng.integers(40, 200, (6, 8, 3)).astype(np.int64) + 8 * variant
    return Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def truth(folder, names, kinds):
    rows = []
    for group in range(GROUPS):
        own = [i for i, name in enumerate(names) if name.startswith(f"g{group}")]
        rows.append({"bbx": [0, 0, 48, 36], **{kind: own[k :: len(kinds)] for k, kind in enumerate(kinds)}})
    return {"imlist": names, "qimlist": [f"query{g}" for g in range(GROUPS)], "gnd": rows}


@pytest.fixture
def landmarks(tmp_path):
    root = tmp_path / "set"
    (root / "jpg").mkdir(parents=True)
    names = [f"g{group}_{variant}" for group in range(GROUPS) for variant in range(EACH)]
    for group in range(GROUPS):
        for variant in range(EACH):
            picture(group, variant).save(root / "jpg" / f"g{group}_{variant}.jpg", quality=95)
        picture(group, 1).save(root / "jpg" / f"query{group}.jpg", quality=95)
    (root / "gnd_small.json").write_text(json.dumps(truth(root, names, ("easy", "hard", "junk"))))
    return root


@pytest.mark.parametrize("pooling", ["rmac", "gem", "token"])
def test_a_revisited_set(landmarks, pooling):
    result = api.evaluate("retrieval", "resnet18", train=landmarks, test=landmarks, pooling=pooling, side=96, whiten=4)
    assert (result["queries"], result["images"]) == (3, 12)
    assert result["map_medium"] > 0.8
    assert 0 <= result["map_hard"] <= 1
    assert {"map_easy", "mp_easy@1", "mp_hard@10"} <= set(result)


def test_without_whitening_and_with_whole_queries(landmarks):
    chosen = {"side": 48, "whiten": 0, "pooling": "token", "crop_queries": False}
    result = api.evaluate("retrieval", "resnet18", test=landmarks, train=landmarks, **chosen)
    assert 0 < result["map_medium"] <= 1


def test_an_original_set_scores_its_own_way(landmarks):
    (landmarks / "gnd_small.json").unlink()
    folder = landmarks / "gt"
    folder.mkdir()
    for group in range(GROUPS):
        (folder / f"q{group}_1_query.txt").write_text(f"oxc1_g{group}_0 0.0 0.0 48.0 36.0\n")
        (folder / f"q{group}_1_good.txt").write_text(f"g{group}_0\ng{group}_1\n")
        (folder / f"q{group}_1_ok.txt").write_text(f"g{group}_2\n")
        (folder / f"q{group}_1_junk.txt").write_text(f"g{group}_3\n")
    found = read_landmarks(landmarks)
    assert not found.is_revisited
    assert [len(q.images["ok"]) for q in found.queries] == [3, 3, 3]
    result = api.evaluate("retrieval", "resnet18", train=landmarks, test=landmarks, side=96, whiten=0)
    assert result["map"] > 0.7
    (folder / "q0_1_ok.txt").write_text("elsewhere\n")
    with pytest.raises(ValueError, match="names elsewhere, which is not in"):
        read_landmarks(landmarks)


def test_a_pickle_is_read_and_never_run(landmarks, tmp_path):
    plain = json.loads((landmarks / "gnd_small.json").read_text())
    for row in plain["gnd"]:
        row["easy"] = np.array(row["easy"])
    (landmarks / "gnd_small.json").unlink()
    (landmarks / "gnd_small.pkl").write_bytes(pickle.dumps(plain))
    assert len(read_landmarks(landmarks).queries) == GROUPS

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    (landmarks / "gnd_small.pkl").write_bytes(pickle.dumps({"imlist": Evil()}))
    with pytest.raises(ValueError, match="not the ground truth"):
        read_landmarks(landmarks)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", "no 'imlist'"),
        ("[", "not the ground truth"),
        ('{"imlist": [], "qimlist": [], "gnd": []}', "not the ground"),
    ],
)
def test_other_content_is_refused_by_name(landmarks, content, sentence):
    (landmarks / "gnd_small.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_landmarks(landmarks)


def test_what_is_missing_is_named(landmarks, tmp_path):
    with pytest.raises(ValueError, match="--test"):
        api.evaluate("retrieval", "resnet18", train=landmarks)
    with pytest.raises(ValueError, match="no folder jpg"):
        read_landmarks(tmp_path)
    (landmarks / "jpg" / "query0.jpg").unlink()
    with pytest.raises(ValueError, match="no image query0"):
        read_landmarks(landmarks)


@pytest.fixture
def copydays(tmp_path):
    root = tmp_path / "copydays"
    for name in ("original", "jpeg/15", "others"):
        (root / name).mkdir(parents=True)
    for scene in range(6):
        picture(scene, 0, (64, 64)).save(root / "original" / f"20{scene:02}00.jpg", quality=95)
        picture(scene, 0, (64, 64)).save(root / "jpeg/15" / f"20{scene:02}01.jpg", quality=15)
        picture(scene + 50, 0, (64, 64)).save(root / "others" / f"{scene}.jpg")
    return root


@pytest.mark.parametrize("network", ["resnet18", "vit_tiny_patch4_32"])
def test_compressed_copies_find_their_originals(copydays, network):
    result = api.evaluate(
        "copies",
        network,
        train=copydays / "others",
        test=copydays,
        block="jpeg/15",
        side=64,
        distractors=str(copydays / "others"),
    )
    assert (result["copies"], result["originals"], result["distractors"]) == (6, 6, 6)
    assert result["map"] > 0.7


def test_whitened_copies_and_refusals(copydays):
    result = api.evaluate(
        "copies", "resnet18", train=copydays / "others", test=copydays, block="jpeg/15", side=64, whiten=4
    )
    assert 0 < result["map"] <= 1
    with pytest.raises(ValueError, match="strong holds no images"):
        api.evaluate("copies", "resnet18", train=copydays, test=copydays, side=64)
    picture(0, 0).save(copydays / "jpeg/15" / "9999.jpg")
    with pytest.raises(ValueError, match=r"9999.jpg has no original"):
        api.evaluate("copies", "resnet18", train=copydays, test=copydays, block="jpeg/15", side=64)
