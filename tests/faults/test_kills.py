"""Real processes that die at a named point: what they leave is whole, or is recognized (faults 24 and 37)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from selfcluster.runs import tables
from selfcluster.runs.folder import is_unused

OPEN = "import sys; from pathlib import Path; from selfcluster.runs.folder import RunFolder; "
OPEN += "RunFolder(Path(sys.argv[1])).write_config({'method': 'swav'})"

CLUSTERS = """
import sys
from pathlib import Path
import numpy as np
from selfcluster.runs.tables import ClusterTable, write_clusters
value = int(sys.argv[2])
write_clusters(Path(sys.argv[1]), ClusterTable(["a", "b"], ["a", "b"], np.array([value, 0]), np.zeros(2, np.float32)))
"""


def run(code: str, *words: str, fault: str = "") -> int:
    environment = {**os.environ, "SELFCLUSTER_FAULT": fault}
    return subprocess.run([sys.executable, "-c", code, *words], env=environment, timeout=120).returncode


def test_row_37_a_run_that_was_killed_in_its_first_moments_starts_again(tmp_path):
    folder = tmp_path / "run"
    assert run(OPEN, str(folder), fault="files.before_rename:kill") == -signal.SIGKILL
    left = sorted(path.name for path in folder.iterdir())
    assert left[0] == ".lock"
    assert len(left) == 2  # and the unfinished config.yaml
    assert is_unused(folder)
    assert run(OPEN, str(folder)) == 0
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.yaml"]


def test_files_of_the_user_are_never_taken_for_ours(tmp_path):
    (tmp_path / ".config.yaml.7").write_text("")
    assert not is_unused(tmp_path)
    assert not is_unused(tmp_path / ".config.yaml.7")  # a file


@pytest.mark.parametrize(
    "point", ["files.before_rename:kill:1", "files.before_rename:kill:2", "files.after_rename:kill"]
)
def test_row_37_tables_of_a_killed_command_are_both_old_or_known_to_differ(tmp_path, caplog, point):
    path = tmp_path / "clusters.parquet"
    assert run(CLUSTERS, str(path), "1") == 0
    assert tables.check_table(path) == ""
    assert run(CLUSTERS, str(path), "2", fault=point) == -signal.SIGKILL
    expected = 2 if "after" in point else 1
    assert tables.read_clusters(path).clusters.tolist() == [expected, 0]
    assert path.with_suffix(".csv").read_text().splitlines()[1] == '"a","a",1,0'
    told = "clusters.csv beside it has other values" if "after" in point else ""
    assert tables.check_table(path) == told
    assert bool(told) == ("differs from" in caplog.text)


def test_a_changed_value_of_a_table_is_found_by_its_hash(tmp_path):
    path = tmp_path / "embeddings.parquet"
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    tables.write_embeddings(path, ["a", "b"], ["a", "b"], vectors)
    assert tables.check_table(path) == ""
    table = pq.read_table(path)
    metadata = table.schema.metadata
    vectors[1, 2] += 1
    tables.write_embeddings(path, ["a", "b"], ["a", "b"], vectors)
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    assert tables.check_table(path) == "its values are not those that were written"
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read" in tables.check_table(path)
