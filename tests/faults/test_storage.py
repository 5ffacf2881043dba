"""Row 24 for every command: a run on a disk that is read-only or full. What must write says so before it works.

One process for each disk runs all commands, in a mount namespace of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.programs import in_its_own_mounts, may_mount, run

pytestmark = [
    pytest.mark.skipif(not may_mount(), reason="mounting is for root, on Linux"),
    pytest.mark.slow,
]

# RUN is on the disk that takes nothing, and so is PLACE; DATA, IMAGE and FREE are elsewhere
READING = {
    "search": "search RUN IMAGE",
    "audit": "audit DATA --quiet",
    "sample": "sample RUN --n 5",
    "verify": "verify RUN",
    "sort, a trial": "sort RUN --into PLACE/sorted --dry-run",
    "embed": "embed RUN DATA --out FREE/vectors.parquet",
    "cluster": "cluster RUN --k 3 --out FREE/clusters.parquet",
    "export": "export RUN --out FREE/export",
    "report": "report RUN --out FREE/page.html",
    "attention": "attention VIT IMAGE --out FREE/attention",
}
WRITING = {
    "train": "train rotnet DATA --out PLACE/new --backbone tiny_layout --epochs 1",
    "train, an earlier run": "train swav DATA --out RUN",
    "demo": "demo --out PLACE/demo --quiet",
    "embed": "embed RUN",
    "embed --out": "embed RUN DATA --out PLACE/vectors.parquet",
    "cluster": "cluster RUN --k 3",
    "cluster images": "cluster DATA --model RUN --k 3 --out PLACE/clusters",
    "evaluate": "evaluate knn RUN --train DATA --labels-from folders",
    "evaluate without labels": "evaluate unlabeled RUN",
    "report": "report RUN",
    "report --out": "report RUN --out PLACE/page.html",
    "report --apply": "report RUN --apply CURATION",
    "compare --out": "compare RUN --out PLACE/table.html",
    "search --out": "search RUN IMAGE --out PLACE/rows.csv",
    "attention --out": "attention VIT IMAGE --out PLACE/attention",
    "figures": "figures RUN --filters 2 --steps 2",
    "audit --hashes": "audit DATA --quiet --hashes PLACE/hashes.csv",
    "export": "export RUN",
    "export onnx": "export RUN --format onnx",
    "export csv": "export RUN --format csv",
    "export contact sheets": "export RUN --format contact-sheets",
    "sort": "sort RUN --into PLACE/sorted",
    "sort --copy": "sort RUN --into PLACE/copies --copy",
    "sample --out": "sample RUN --n 5 --out PLACE/sample.csv",
}
PROGRAM = """
import contextlib, io, json, sys
from selfcluster.cli import main
for name, words in json.loads(sys.argv[1]).items():
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(words)
    print(json.dumps([name, code, out.getvalue(), errors.getvalue()]), flush=True)
"""
FULL = (
    "mount -t tmpfs -o size=8m none {place} && cp -r {copy}/. {place}"
    " && {{ cat /dev/zero > {place}/fill 2> /dev/null || true; }}"
)
DISKS = {
    "read-only": "mount --bind {place} {place} && mount -o remount,ro,bind {place}",
    "full": FULL,
    "nearly full": FULL + " && truncate -s -12K {place}/fill",
}


@pytest.fixture
def words(photos, tiny, pictures, tmp_path):
    """A function that turns a command into words with this test's paths, made once there is a run in the place."""
    for number, picture in enumerate(pictures):
        (tmp_path / f"data/kind{number % 4}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"data/kind{number % 4}/{number:02d}.png")
    (tmp_path / "free").mkdir()
    tiny("swav", tmp_path / "place/run", data=tmp_path / "data", epochs=1)
    cluster = int(np.unique([line.split(",")[2] for line in rows_of(tmp_path / "place/run/clusters.csv")])[0])
    (tmp_path / "curation.jsonl").write_text(
        json.dumps({"time": "2026-01-01T00:00:00", "action": "rename", "cluster": cluster, "name": "a"}) + "\n"
    )
    shutil.copytree(tmp_path / "place", tmp_path / "copy")
    places = {
        "RUN": "place/run",
        "PLACE": "place",
        "DATA": "data",
        "IMAGE": "data/kind0/00.png",
        "FREE": "free",
        "CURATION": "curation.jsonl",
    }
    where = {name: str(tmp_path / path) for name, path in places.items()} | {"VIT": "vit_tiny_patch16_224"}
    return lambda command: [re.sub("|".join(where), lambda m: where[m.group()], word) for word in command.split()]


def rows_of(table: Path) -> list[str]:
    return table.read_text().splitlines()[1:]


def outcomes(disk: str, tmp_path: Path, commands: dict[str, list[str]]) -> dict[str, tuple[int, str, str]]:
    """The exit status, output and errors of each command, with the place on such a disk."""
    script = DISKS[disk].format(place=tmp_path / "place", copy=tmp_path / "copy")
    done = run(in_its_own_mounts(script, sys.executable, "-c", PROGRAM, json.dumps(commands)), TIMM_OFFLINE="1")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in lines] == list(commands)
    return {name: (code, out, errors) for name, code, out, errors in lines}


@pytest.mark.parametrize("disk", ["read-only", "full"])
def test_row_24_every_command_that_writes_names_the_place_and_the_reason(words, tmp_path, disk):
    reason = {"read-only": "Read-only file system", "full": "No space left on device, 0 bytes are free"}[disk]
    found = outcomes(disk, tmp_path, {name: words(command) for name, command in WRITING.items()})
    for name, (code, out, errors) in found.items():
        message = errors.splitlines()[-1]
        assert (code, out) in ((1, ""), (2, "")), (name, code, out)
        assert message.startswith(f"selfcluster: {tmp_path / 'place'}") or name == "report --apply", (name, message)
        assert reason in message or (name == "report --apply" and "curation.jsonl" in message), (name, message)
        assert "Errno" not in errors, name
        assert "Traceback" not in errors, name


@pytest.mark.parametrize("disk", ["read-only", "full"])
def test_row_24_commands_that_write_elsewhere_or_not_at_all_read_such_a_run(words, tmp_path, disk):
    found = outcomes(disk, tmp_path, {name: words(command) for name, command in READING.items()})
    assert {name: errors for name, (code, _, errors) in found.items() if code} == {}


def test_row_38_every_command_that_finds_the_disk_full_later_names_the_file_and_the_bytes(words, tmp_path):
    """Three pages of 4 KB are free: enough for the trial at the start, and not for the result of most commands."""
    found = outcomes("nearly full", tmp_path, {name: words(command) for name, command in WRITING.items()})
    failed = {name: errors for name, (code, _, errors) in found.items() if code}
    assert len(failed) > len(found) / 2, failed.keys()
    for name, errors in failed.items():
        message = errors.splitlines()[-1]
        assert str(tmp_path / "place") in message, (name, message)
        assert re.search(r"[\d,]+ (bytes )?(are )?free", message), (name, message)
        assert "Errno" not in errors, name
        assert "Traceback" not in errors, name
