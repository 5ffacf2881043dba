"""One batch ahead: the same batches, the same errors, the same end."""

import pytest

from selfcluster.data.ahead import Ahead


def letters(log: list[str], fails: bool = False):
    for letter in "abc":
        log.append(letter)
        yield letter
    if fails:
        raise OSError("gone")


def test_the_next_is_made_before_it_is_asked_for_and_only_once():
    log: list[str] = []
    ahead = Ahead(letters(log), wanted=True)
    assert next(ahead) == "a"
    ahead.prepare()
    ahead.prepare()
    assert log == ["a", "b"]
    assert list(ahead) == ["b", "c"]


def test_nothing_is_made_ahead_where_it_is_not_wanted():
    log: list[str] = []
    ahead = Ahead(letters(log), wanted=False)
    ahead.prepare()
    assert log == []
    assert list(ahead) == ["a", "b", "c"]


def test_an_error_and_the_end_come_when_the_batch_is_asked_for():
    ahead = Ahead(letters([], fails=True), wanted=True)
    assert [next(ahead) for _ in range(3)] == ["a", "b", "c"]
    ahead.prepare()
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    ahead.prepare()
    assert next(ahead, None) is None
