"""The table of faults is whole: every row has tests, every test a row, and the page says what the last run found."""

import re

from tests.faults import rows


def test_all_46_rows_have_tests():
    assert sorted(rows.ROWS) == list(range(1, 47))
    assert [number for number, tests in rows.tests_of().items() if not tests] == []


def test_the_page_has_every_row_as_it_stands_here():
    lines = rows.PAGE.read_text("utf-8").splitlines()
    for row in rows.ROWS.values():
        line = next(line for line in lines if line.startswith(f"| {row.number} |"))
        assert line.startswith(f"| {row.number} | {row.fault} | {row.follows} | ")
        assert re.search(r"\| passed.*\(\d+ tests?", line), line


def test_a_row_fails_where_a_test_fails_or_none_ran():
    ended = {number: ["passed"] for number in rows.ROWS} | {1: ["passed", "failed"], 2: [], 20: ["skipped"]}
    lines = rows.page(ended).splitlines()
    assert [line.split(" | ")[0] for line in lines if "**fails**" in line] == ["| 1", "| 2"]
    assert any(line.startswith("| 20 ") and line.endswith("passed (0 tests, 1 skipped here) |") for line in lines)
