"""Names and ids: every byte string has one printable id, and no two share it (faults row 9)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcluster.data.names import Names, to_id, to_name


def test_row_9_an_id_by_hand():
    assert to_id(b"caf\xc3\xa9/\xff\n.jpg") == "café/\\xff\n.jpg"
    assert to_id(b"plain\\name") == "plain\\name"
    assert to_id(b"looks\\xff") == "looks\\x5cxff"  # not the byte ff


@given(st.binary(max_size=40))
def test_row_9_a_name_comes_back_from_its_id_and_the_id_can_be_stored(name):
    id = to_id(name)
    assert to_name(id) == name
    assert json.loads(json.dumps(id)) == id
    id.encode("utf-8")


@given(st.lists(st.binary(max_size=12), max_size=30))
def test_names_are_a_sequence_and_sort_by_bytes(raw):
    names = Names.of(raw)
    assert [names.raw(i) for i in range(len(names))] == raw
    assert list(names) == [to_id(x) for x in raw] == names[:]
    assert [names.take(names.order()).raw(i) for i in range(len(raw))] == sorted(raw)


def test_names_keep_no_object_a_name():
    names = Names.of(b"%07d" % i for i in range(1000))
    assert len(names.buffer) == 7000
    assert names.offsets.nbytes == 8 * 1001
    assert names[-1] == "0000999"
    with pytest.raises(IndexError):
        names[1000]
    assert names.take(np.array([3, 1]))[:] == ["0000003", "0000001"]
