"""Our networks are timm's, whichever of the two is imported first, and nobody waits for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

CREATE = "assert timm.create_model('tiny_layout', num_classes=0).num_features == 512"
BEFORE = f"""
import sys, importlib.util
import selfcluster
assert not {{"torch", "timm", "numpy"}} & set(sys.modules), "import selfcluster must stay light"
assert importlib.util.find_spec("timm") is not None  # only asking leaves the hook in place
from timm.models import create_model
import timm
{CREATE}
assert not any(type(f).__name__ == "_AfterTimm" for f in sys.meta_path), "done with timm, gone"
"""
AFTER = f"""
import timm
import selfcluster
{CREATE}
import selfcluster.models.registration as registration
registration.register_with_timm()  # again is free, and warns of nothing
"""
OURS = f"""
import selfcluster.models.FILE  # brings timm, whose arrival registers all files while this one is half read
import timm
{CREATE}
assert timm.is_model("resnet50_w2") and timm.is_model("deepcluster_alexnet")
"""
FILES = ["classic", "classic_vit", "alexnet_vgg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [BEFORE, AFTER, *(OURS.replace("FILE", f) for f in FILES)], ids=["before timm", "after timm", *FILES]
)
def test_every_import_order_registers(code):
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=300)
