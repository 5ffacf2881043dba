"""Curves."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np

from selfcluster.reporting.curves import loss_curve, other_curves
from selfcluster.runs.contents import read_contents


def contents(tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return read_contents(tmp_path)


def test_the_chance_level_is_drawn_and_named(tmp_path):
    run = contents(tmp_path, [{"step": i, "loss": 1.0, "chance_loss": float(np.log(3000))} for i in range(5)])
    curve = loss_curve(run)
    assert curve is not None
    assert "8.01 = ln 3,000" in curve.meaning
    assert "var(--chance)" in curve.svg
    plain = loss_curve(contents(tmp_path, [{"step": i, "loss": 1.0} for i in range(2)]))
    assert plain is not None
    assert plain.svg
    assert "var(--chance)" not in plain.svg


def test_a_level_that_is_no_logarithm_is_not_called_one(tmp_path):
    curve = loss_curve(contents(tmp_path, [{"step": i, "loss": 1.0, "chance_loss": 2.0} for i in range(2)]))
    assert curve is not None
    assert "ln" not in curve.meaning.split("is chance")[0].removeprefix("the dashed line")


def test_unknown_numbers_are_drawn_and_their_names_stay_out_of_the_drawing(tmp_path):
    name = "$\\frac{<script>\U0001f600"
    rows = [{"step": i, name: i, "rankme": 2.0, "flat": None} for i in range(3)]
    rank, other = other_curves(contents(tmp_path, rows))
    assert (rank.title, other.title, other.last) == ("Feature rank (RankMe)", name, 2.0)
    assert "frac" not in other.svg
    assert ET.fromstring(other.svg).tag.endswith("svg")


def test_drawings_are_bounded_and_equal_each_time(tmp_path):
    rng = np.random.default_rng(0)
    run = contents(tmp_path, [{"step": i, "loss": float(v)} for i, v in enumerate(rng.random(20_000))])
    first, second = loss_curve(run), loss_curve(run)
    assert first is not None
    assert first == second
    assert len(first.svg) < 40_000


def test_one_value_of_the_loss_is_said_in_words(tmp_path):
    rows = [{"step": 0, "loss": None}, {"step": 1500, "loss": 2.34567, "chance_loss": float(np.log(3000))}]
    curve = loss_curve(contents(tmp_path, rows))
    assert curve is not None
    assert curve.svg == ""
    assert curve.meaning == (
        "2.35 at step 1,500 is the only value that was logged, so there is no curve; chance is 8.01 = ln 3,000"
    )


def test_no_loss_no_curve(tmp_path):
    assert loss_curve(contents(tmp_path, [{"step": 0, "loss": None}])) is None


def test_what_a_clustering_logs_has_a_title_and_a_meaning(tmp_path):
    names = ("change_ratio", "remade_at_start", "inertia", "inertia_super", "clusters", "largest_cluster", "row_error")
    curves = other_curves(contents(tmp_path, [{"step": i, **dict.fromkeys(names, float(i))} for i in range(2)]))
    assert len(curves) == len(names)
    assert all(curve.title not in names and curve.meaning for curve in curves)
    assert ("Labels that changed", "share of the images of a step that moved to another cluster") in {
        (curve.title, curve.meaning) for curve in curves
    }


def test_one_point_is_no_curve_and_steps_that_were_never_skipped_are_left_out(tmp_path):
    rows = [{"step": s, "loss": 1.0, "skipped_steps": 0, "rankme": 3.0 + s} for s in (1, 2)]
    rows[1]["nmi_previous"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [curve.title for curve in other_curves(read_contents(tmp_path))] == ["Feature rank (RankMe)"]
