"""Curation: rows are checked, replayed, undone, appended and merged; nothing is lost or done twice."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcluster.runs import curation
from selfcluster.runs.curation import (
    CURATION,
    CurationError,
    append_rows,
    in_force,
    merge_rows,
    parse_rows,
    read_curation,
    read_rows,
    replay,
    set_aside,
)

START = {"a": 0, "b": 0, "c": 1, "d": 2, "e": -1}
TIME = "2026-11-27T10:00:00.000Z"


def row(action, **fields):
    return {"time": TIME, "action": action, **fields}


def test_rows_lead_to_the_state():
    rows = [
        row("rename", cluster=0, name="shoes"),
        row("split", cluster=0, images=["b"], name="boots"),  # makes cluster 3
        row("merge", cluster=2, into=1),
        row("rubbish", cluster=1),
        row("rubbish", cluster=0),
        row("keep", cluster=0),
        row("select", images=["d", "a"]),
        row("unselect", images=["a", "c"]),
        row("split", cluster=-1, images=["e"], name=""),  # makes cluster 4
        row("merge", cluster=4, into=3),
    ]
    state = replay(rows, START)
    assert {image: state.cluster_of(image) for image in START} == {"a": 0, "b": 3, "c": 1, "d": 1, "e": 3}
    assert [state.name_of(number) for number in (0, 3, 1, -1)] == ["shoes", "boots", "cluster 1", "no cluster"]
    assert state.rubbish == {1}
    assert list(state.selected) == ["d"]
    assert replay([*rows, row("undo"), row("undo")], START) == replay(rows[:-2], START)
    assert replay([row("rename", cluster=0, name="x"), row("rename", cluster=0, name="")], START).names == {}


def test_an_undo_takes_back_the_newest_action_that_is_left():
    rows = [row("rubbish", cluster=c) for c in (0, 1)] + [row("undo"), row("rubbish", cluster=2), row("undo")]
    assert in_force(rows) == [0]
    assert in_force([*rows, row("undo")]) == []
    with pytest.raises(CurationError, match=r"here, line 7: there is no action before this undo"):
        replay([*rows, row("undo"), row("undo")], START, "here")


IMAGES = st.lists(st.sampled_from(sorted(START)), min_size=1, max_size=3, unique=True)
CLUSTER = st.integers(0, 5)
ACTIONS = st.one_of(
    st.builds(row, st.just("rename"), cluster=CLUSTER, name=st.sampled_from(["", "x", "y"])),
    st.builds(row, st.just("merge"), cluster=CLUSTER, into=CLUSTER),
    st.builds(row, st.just("split"), cluster=st.integers(-1, 5), images=IMAGES, name=st.sampled_from(["", "z"])),
    st.builds(row, st.sampled_from(["rubbish", "keep"]), cluster=CLUSTER),
    st.builds(row, st.sampled_from(["select", "unselect"]), images=IMAGES),
    st.just(row("undo")),
)


@given(st.lists(ACTIONS, max_size=12), st.lists(ACTIONS, max_size=8))
@settings(deadline=None, max_examples=200)
def test_undoing_any_sequence_returns_the_state_before(before, after):
    """Rows that do not fit are left out, as the server refuses them."""

    def fitting(rows, more):
        for new in more:
            try:
                replay([*rows, new], START)
            except CurationError:
                continue
            rows = [*rows, new]
        return rows

    first = fitting([], before)
    state, held = replay(first, START), len(in_force(first))
    rows = list(first)
    for new in fitting(first, [r for r in after if r["action"] != "undo"])[len(first) :]:
        rows.append(new)
    undone = rows + [row("undo")] * (len(in_force(rows)) - held)
    assert replay(undone, START) == state
    assert all(replay(undone, START).cluster_of(image) == state.cluster_of(image) for image in START)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "not an object"),
        ("{]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("", "not JSON"),
        ('{"action": "explode"}', 'action "explode" must be one of rename, merge'),
        ('{"action": ["undo"]}', "must be one of"),
        (json.dumps(row("undo") | {"time": 3}), "time 3 is not an ISO date"),
        ('{"action": "undo"}', "time null is not an ISO date"),
        (json.dumps(row("undo", script="x")), 'undo has no field "script"'),
        (json.dumps(row("rename", cluster=1)), "rename lacks the field name"),
        (json.dumps(row("rubbish", cluster=True)), "cluster true is not the number of a cluster"),
        (json.dumps(row("rubbish", cluster=-1)), "cluster -1 is not the number"),
        (json.dumps(row("rubbish", cluster=1e3)), "cluster 1000.0 is not the number"),
        (json.dumps(row("rubbish", cluster=1 << 40)), "is not the number"),
        (json.dumps(row("rename", cluster=1, name=None)), "name null is not a text"),
        (json.dumps(row("rename", cluster=1, name="a\nb")), "invisible or control characters"),
        (json.dumps(row("rename", cluster=1, name="a\u202eb")), "invisible or control characters"),
        (json.dumps(row("rename", cluster=1, name="a" * 201)), "has 201 characters; at most 200"),
        (json.dumps(row("select", images="a")), "images is not a list"),
        (json.dumps(row("select", images=[])), "images is not a list"),
        (json.dumps(row("select", images=["a", 3])), "holds 3, which is not an image id"),
        (json.dumps(row("select", images=["a", "a"])), "names an image twice"),
    ],
)
def test_a_hostile_row_is_refused_with_its_line(line, message):
    good = json.dumps(row("rubbish", cluster=1))
    with pytest.raises(CurationError) as caught:
        parse_rows(f"{good}\n{line}\n{good}\n".encode(), "file.jsonl")
    assert str(caught.value).startswith("file.jsonl, line 2: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (row("rename", cluster=9, name="x"), "no cluster 9 in the table"),
        (row("merge", cluster=0, into=0), "cannot be merged into itself"),
        (row("merge", cluster=1, into=0), "cluster 1 was merged into 2"),
        (row("merge", cluster=2, into=1), "cluster 1 was merged into 2"),
        (row("split", cluster=0, images=["c"], name=""), 'image "c" is in cluster 2, not 0'),
        (row("select", images=["../../etc/passwd"]), 'no image "../../etc/passwd" in the table'),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, new, message):
    append_rows(tmp_path, [row("merge", cluster=1, into=2)], START)
    before = (tmp_path / CURATION).read_bytes()
    with pytest.raises(CurationError, match=r"curation.jsonl, line 3: ") as caught:
        append_rows(tmp_path, [row("rubbish", cluster=0), new], START)
    assert message in str(caught.value)
    assert (tmp_path / CURATION).read_bytes() == before


def test_appended_rows_are_read_again(tmp_path):
    assert read_rows(tmp_path) == []
    rows = append_rows(tmp_path, [{"action": "rename", "cluster": 0, "name": "Ärmel"}], START)
    assert read_rows(tmp_path) == rows == append_rows(tmp_path, [], START)
    assert rows[0]["time"].endswith("+00:00")
    assert read_curation(tmp_path, START).name_of(0) == "Ärmel"


def test_a_row_that_is_sent_again_for_want_of_an_answer_is_kept_once(tmp_path):
    split, undo = row("split", cluster=0, images=["b"], name=""), row("undo")
    rows = append_rows(tmp_path, [split], START, once=True)
    assert append_rows(tmp_path, [split], START, once=True) == rows == read_rows(tmp_path)
    assert append_rows(tmp_path, [split, undo], START, once=True) == [split, undo]
    untimed = {"action": "rubbish", "cluster": 1}
    for count in (3, 4):  # rows without a time are actions of their own
        assert len(append_rows(tmp_path, [untimed], START, once=True)) == count


def test_two_tabs_at_once_lose_nothing(tmp_path):
    def add(i):
        append_rows(tmp_path, [row("rename", cluster=i % 3, name=str(i))], START)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert sorted(int(r["name"]) for r in read_rows(tmp_path)) == list(range(40))


def test_a_row_cut_short_by_a_crash_is_left_out_and_a_whole_one_is_kept(tmp_path):
    whole, cut = json.dumps(row("rubbish", cluster=0)), '{"time": "2026'
    path = tmp_path / CURATION
    path.write_text(f"{whole}\n{cut}")
    assert len(read_rows(tmp_path)) == 1
    append_rows(tmp_path, [row("rubbish", cluster=1)], START)
    assert [r["cluster"] for r in read_rows(tmp_path)] == [0, 1]
    path.write_text(whole)  # an editor may leave out the end of the line
    append_rows(tmp_path, [row("rubbish", cluster=1)], START)
    assert [r["cluster"] for r in read_rows(tmp_path)] == [0, 1]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    append_rows(tmp_path, [row("rubbish", cluster=0)], START)
    before = (tmp_path / CURATION).read_bytes()
    write, calls = os.write, []

    def full(descriptor, data):
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:20])

    with monkeypatch.context() as patch:
        patch.setattr(curation.os, "write", full)
        with pytest.raises(OSError, match=r"curation\.jsonl cannot be written, the disk is full"):
            append_rows(tmp_path, [row("rubbish", cluster=1)], START)
    assert (tmp_path / CURATION).read_bytes() == before
    assert len(append_rows(tmp_path, [row("rubbish", cluster=1)], START)) == 2


def test_a_downloaded_file_is_merged_once(tmp_path):
    first, second = row("rename", cluster=0, name="x"), row("rubbish", cluster=1)
    append_rows(tmp_path, [first], START)
    downloaded = [first, second, second, row("undo")]
    assert merge_rows(tmp_path, downloaded, START, "d.jsonl") == [second, second, row("undo")]
    before = (tmp_path / CURATION).read_bytes()
    assert merge_rows(tmp_path, downloaded, START, "d.jsonl") == []
    assert (tmp_path / CURATION).read_bytes() == before
    assert read_rows(tmp_path) == downloaded


def test_an_undo_of_a_downloaded_file_never_takes_back_another_action(tmp_path):
    mine, theirs = row("rename", cluster=0, name="x"), row("rubbish", cluster=1)
    append_rows(tmp_path, [theirs, mine], START)
    for file in ([theirs, row("undo")], [row("undo")]):
        with pytest.raises(CurationError, match=r"d.jsonl, line \d undoes an action that is not the last one"):
            merge_rows(tmp_path, file, START, "d.jsonl")
    assert read_rows(tmp_path) == [theirs, mine]


def test_rows_about_other_clusters_are_set_aside(tmp_path):
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        append_rows(tmp_path, [row("rubbish", cluster=0)], START)
        assert set_aside(tmp_path) == tmp_path / f"curation-{number}.jsonl"
    assert read_rows(tmp_path) == []


def test_equal_rows_are_counted_when_a_file_is_merged(tmp_path):
    again = row("rubbish", cluster=1)
    append_rows(tmp_path, [again], START)
    assert merge_rows(tmp_path, [again, again], START, "d.jsonl") == [again]
    assert merge_rows(tmp_path, [again, again], START, "d.jsonl") == []
