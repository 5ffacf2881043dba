"""Real processes: killed at random moments, and two under torchrun (faults 35, 36, 40)."""

import json
import subprocess
import sys

import numpy as np
import pytest

from selfcluster.runs.checkpoint import load_newest
from tests.conftest import TINY, TINY_SETTINGS
from tests.faults.programs import as_words, environment, torchrun
from tests.methods.test_contract import assert_same_run

pytestmark = pytest.mark.slow

# imports once, then forks a child for each life of the run
KILLER = """
import json, os, random, signal, sys, time
out, pictures, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
import numpy as np, torch, timm, sklearn.cluster, pyarrow.parquet
torch.set_num_threads(1)
from selfcluster import api
from selfcluster.training import loop, finish
from selfcluster.training import start
data = np.load(pictures)

def child(folder):
    pid = os.fork()
    if pid == 0:
        try:
            api.train("deepcluster_v2", data, out=folder, **settings)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    return pid

start = time.monotonic()
assert os.waitpid(child(out + "/whole"), 0)[1] == 0
whole = time.monotonic() - start
rng, kills = random.Random(int(settings["seed"])), 0
while kills < 10:
    pid = child(out + "/killed")
    time.sleep(rng.uniform(0.03, 0.15) * whole)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    kills += 1
assert os.waitpid(child(out + "/killed"), 0)[1] == 0
print(json.dumps({"kills": kills, "seconds": whole}))
"""


@pytest.mark.faults
def test_row_40_killed_at_random_moments_the_run_ends_in_the_same_bytes(tmp_path, pictures):
    np.save(tmp_path / "pictures.npy", pictures)
    settings = TINY | TINY_SETTINGS["deepcluster_v2"] | {"epochs": 30, "seed": 3, "checkpoint_every": 2}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), str(tmp_path / "pictures.npy"), json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] == 10
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


# Of every method, `test_contract.py` compares two processes with one; two methods go through torchrun as well, and the
# others in `make faults`: 20 seconds each.
@pytest.mark.parametrize(
    "method",
    [
        "swav",
        "odc",
        *(
            pytest.param(method, marks=pytest.mark.faults)
            for method in ("deepcluster_v2", "simclr", "dino", "npid", "moco_v2", "deepcluster", "sela", "rotnet")
        ),
    ],
)
def test_row_36_two_processes_under_torchrun_make_the_run_of_one(method, tmp_path, pictures, tiny):
    """Same order, same global batches, same memories: the losses of every epoch agree to float32's rounding."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"photos/{number:02d}.png")
    settings = TINY | TINY_SETTINGS[method] | {"learning_rate": 1e-4}
    where = [str(tmp_path / "photos"), "--out", str(tmp_path / "two"), "--device", "cpu"]
    command = [*torchrun("-m", "selfcluster", "train", method), *where, *as_words(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    tiny(method, tmp_path / "one", data=tmp_path / "photos", learning_rate=1e-4)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)
        assert a.get("used_codes") == b.get("used_codes")
        assert a["rankme"] == pytest.approx(b["rankme"], rel=1e-2)
    states = [load_newest(tmp_path / name / "checkpoints")[0].tensors for name in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        if key.endswith(("written", "count")):
            assert tensor.equal(states[1][key]), key
    assert (tmp_path / "two/clusters.csv").read_text().count("\n") == 49
