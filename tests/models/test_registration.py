"""timm knows our networks once it is asked to, and importing selfcluster changes nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = """
import sys
finders = list(sys.meta_path)
import selfcluster
assert not {"torch", "timm", "numpy"} & set(sys.modules), "import selfcluster must stay light"
assert sys.meta_path == finders, "imports stay as they are"
"""
ASKED = """
import timm
import selfcluster
assert not timm.is_model("tiny_layout")
selfcluster.register_with_timm()
selfcluster.register_with_timm()  # again changes nothing, and warns of nothing
assert timm.create_model("tiny_layout", num_classes=0).num_features == 512
assert timm.is_model("resnet50_w2") and timm.is_model("deepcluster_alexnet")
"""
MADE = """
from selfcluster.models.backbones import make_backbone
assert make_backbone("tiny_layout", channels=1, image_size=16).num_features == 512
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [LIGHT, ASKED, MADE], ids=["import alone", "asked", "networks made here"])
def test_networks_are_registered_when_asked_for(code):
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=300)
