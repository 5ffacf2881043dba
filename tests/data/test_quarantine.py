"""The list of bad images: one line each, whoever finds them, and the limit's rule."""

from __future__ import annotations

import json

import pytest

from selfcluster.data.decode import BadImage
from selfcluster.data.names import Names
from selfcluster.data.quarantine import Quarantine, TooManyBadImages

BAD = BadImage("truncated", "JPEG: cut")


def names(n: int) -> Names:
    return Names.of(b"%04d\xff.jpg" % i for i in range(n))


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_bad_image_has_one_line(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(names(1000), path, 0.01, rank=0)
    for row in (7, 3, 7):
        quarantine.add(row, BAD)
    quarantine.sync()
    assert lines(path) == [
        {"path": "0007\\xff.jpg", "reason": "truncated", "detail": "JPEG: cut"},
        {"path": "0003\\xff.jpg", "reason": "truncated", "detail": "JPEG: cut"},
    ]
    assert quarantine.bad.nonzero()[0].tolist() == [3, 7]
    assert len(quarantine) == 2


def test_a_later_run_knows_them_and_forgives_a_cut_line(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(names(1000), path, 0.01, rank=0).add(7, BAD)
    with open(path, "a") as file:
        file.write('{"path": "another set.jpg", "reason": "empty", "detail": ""}\n{"path": "0009\\\\x')
    later = Quarantine(names(1000), path, 0.01, rank=0)
    assert later.bad.nonzero()[0].tolist() == [7]
    later.add(7, BAD)
    later.add(8, BAD)
    assert json.loads(path.read_text().splitlines()[-1])["path"] == "0008\\xff.jpg"


@pytest.mark.parametrize(
    ("n", "max_bad", "allowed"),
    [(20, 0.01, 1), (199, 0.01, 1), (200, 0.01, 2), (1000, 0.01, 10), (20, 0.0, 0), (20, 1.0, 20)],
)
def test_the_limit_is_a_share_but_never_less_than_one_file(n, max_bad, allowed):
    quarantine = Quarantine(names(n), None, max_bad, rank=0)
    for row in range(allowed):
        quarantine.add(row, BAD)
    if allowed < n:
        with pytest.raises(TooManyBadImages):
            quarantine.add(allowed, BAD)


def test_the_error_names_counts_share_images_and_the_way_out(tmp_path):
    quarantine = Quarantine(names(50), tmp_path / "q.jsonl", 0.01, rank=0)
    quarantine.add(4, BAD)
    with pytest.raises(TooManyBadImages) as caught:
        quarantine.add(5, BadImage("empty"))
    for part in (
        "2 of 50",
        "4.0%",
        "1 truncated, 1 empty",
        "--max-bad 0.01 allows 1",
        "0004\\xff.jpg (truncated)",
        "q.jsonl",
        "--max-bad 0.04 accepts them",
    ):
        assert part in str(caught.value)
    assert len(lines(tmp_path / "q.jsonl")) == 2


def test_other_ranks_leave_the_file_alone(tmp_path):
    quarantine = Quarantine(names(1000), tmp_path / "q.jsonl", 0.01, rank=1)
    quarantine.add(4, BAD)
    assert not (tmp_path / "q.jsonl").exists()


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match="--max-bad 2: must be from 0 to 1"):
        Quarantine(names(3), None, 2, rank=0)


def test_row_25_a_full_disk_is_told_once_and_the_list_is_written_later(tmp_path, caplog):
    (tmp_path / "full").write_text("")
    quarantine = Quarantine(names(9), tmp_path / "full" / "list.jsonl", 1.0, 0)  # below a file
    for row in range(2):
        quarantine.add(row, BadImage("truncated", "ends early"))
    assert len(quarantine) == 2
    assert len(caplog.records) == 1
    assert "bad images are left out all the same" in caplog.text
    (tmp_path / "full").unlink()
    quarantine.add(2, BadImage("truncated", "ends early"))
    assert len((tmp_path / "full" / "list.jsonl").read_text().splitlines()) == 3


def test_the_list_makes_its_folder(tmp_path):
    Quarantine(names(1000), tmp_path / "new/more.quarantine.jsonl", 0.01, rank=0).add(7, BAD)
    assert len(lines(tmp_path / "new/more.quarantine.jsonl")) == 1
