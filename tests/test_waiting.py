"""Threads of OpenMP sleep while they wait, unless the user has decided."""

import os
import subprocess
import sys

PROGRAM = (
    "import os, sys; from selfcluster.cli import main; main(['recipes']); print(os.environ.get('OMP_WAIT_POLICY'))"
)


def policy(**environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + "; assert 'torch' not in sys.modules"],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def test_the_policy_is_set_before_torch_is_loaded_and_the_users_is_kept():
    assert policy() == "PASSIVE"
    assert policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
    assert policy(GOMP_SPINCOUNT="1000") == "None"
