"""Results read like dicts, become tables, and show themselves in a notebook."""

import subprocess
import sys

import numpy as np
import pytest

from selfcluster.cli import visible
from selfcluster.commands.results import Clustered, Embedded, Hits, Trained


def clustered(**more) -> Clustered:
    labels, distances = np.array([0, 1, -1]), np.array([0.5, 0.25, 0.0], "f")
    return Clustered("c.parquet", "c.csv", 3, 2, 1, 1, 1, ["a", "b", "<c>"], labels, distances, **more)


def test_a_result_reads_like_a_dict_without_what_is_not_set():
    result = clustered()
    assert result["clusters"] == result.clusters == 2
    assert "k" not in result
    assert clustered(k=4)["k"] == 4
    assert "{clusters} of {images}".format(**result) == "2 of 3"
    with pytest.raises(KeyError):
        result["report"]


def test_a_field_without_default_stays_even_where_it_is_none():
    result = Embedded(None, ["a"], ["p/a"], np.ones((1, 4), "f"), None, None)
    assert dict(result)["labels"] is None
    assert result["vectors"].shape == (1, 4)


def test_a_notebook_shows_the_table_and_escapes_names():
    shown = clustered()._repr_html_()
    assert "&lt;c&gt;" in shown
    assert "<c>" not in shown
    assert shown.count("<tr>") == 4
    assert "<th>loss</th>" in Trained(loss=1.5)._repr_html_()


def test_tables_become_data_frames():
    pytest.importorskip("pandas", reason="pandas is optional")
    assert clustered().to_pandas()["cluster"].tolist() == [0, 1, -1]
    assert Hits([{"rank": 1, "id": "a"}]).to_pandas()["id"].tolist() == ["a"]


def test_control_characters_are_escaped():
    assert visible("a\x1b[2Jb\n\tc\x9b") == "a\\x1b[2Jb\n\tc\\x9b"


def test_a_stream_that_is_not_utf_8_gets_escapes_and_no_traceback():
    code = "from selfcluster.cli import main; raise SystemExit(main(['train', 'swav', '/no/sch\u00f6n\u4e2d']))"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"} | _pythonpath()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"\\u4e2d" in done.stderr


def _pythonpath() -> dict[str, str]:
    import os

    return {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
