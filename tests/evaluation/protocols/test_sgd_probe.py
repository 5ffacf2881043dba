"""The SGD probe: rates by hand, and a probe that learns what can be learned."""

import math

import numpy as np
import pytest

from selfcluster import api
from selfcluster.evaluation.protocols.linear import PRESETS, rate_at


def test_rates_by_hand():
    swav, moco, deepcluster, vissl = (PRESETS[name] for name in ("swav", "moco", "deepcluster", "vissl"))
    assert rate_at(swav, 0.3, 0, 100, 0) == 0.3
    assert rate_at(swav, 0.3, 50, 100, 7) == pytest.approx(0.15)
    assert [rate_at(moco, 30.0, e, 100, 0) for e in (59, 60, 80)] == pytest.approx([30.0, 3.0, 0.3])
    assert rate_at(moco, 30.0, 6, 10, 0) == pytest.approx(3.0)  # a shorter run keeps the shares
    assert rate_at(deepcluster, 0.01, 3, 90, 100) == pytest.approx(0.01 / math.sqrt(1 + 0.01 * 1e-4 * 100))
    assert [rate_at(vissl, 0.01, e, 28, 0) for e in (7, 8, 16, 24)] == pytest.approx([0.01, 0.001, 1e-4, 1e-5])


@pytest.mark.parametrize("preset", ["swav", "vissl", "odc"])
def test_kinds_that_differ_in_layout_are_told_apart_and_results_are_kept(preset, tiny, tmp_path, pictures):
    tiny("swav", tmp_path / "run")
    folder = tmp_path / "images"
    from PIL import Image

    for i, picture in enumerate(pictures):
        (folder / f"kind{i % 4}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"kind{i % 4}" / f"{i}.png")
    settings = {"preset": preset, "epochs": 8, "probe_batch": 12, "learning_rate": 2.0}
    result = api.evaluate("linear", tmp_path / "run", train=folder, labels_from="folders", split=0.25, **settings)
    assert result["classes"] == 4
    assert result["n_train"] + result["n_test"] == 48
    assert result["top1"] >= 0.5  # of four kinds
    assert np.isfinite(result["loss"])
    assert len(list((tmp_path / "run/evaluations").glob("linear-*.json"))) == 1
    again = api.evaluate("linear", tmp_path / "run", train=folder, labels_from="folders", split=0.25, **settings)
    assert again.numbers == result.numbers
