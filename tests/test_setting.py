"""Declared settings: bounds and choices are data, and every value is checked with the flag's own name."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Literal

import pytest

from selfcluster.methods import METHODS, NAMES
from selfcluster.setting import check_names, check_settings, checked, options_of, setting
from selfcluster.settings.schema import _Source, read_schema, schema_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    length: int = setting(0, "Q; 0 means no queue", least=0)
    rate: float = setting(0.5, "a share", least=0, most=1)
    loss: Literal["cross_entropy", "mse"] = setting("mse", "what is minimized")
    share: float | None = setting(None, "of the momentum", least=0, most=1)
    layer: str | None = setting(None, "a layer", repeat=True)
    on: bool = setting(False, "a switch")


OPTIONS = options_of(Settings)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("length", 0, 0),
        ("length", 3.0, 3),
        ("length", "7", 7),
        ("rate", 1, 1.0),
        ("loss", "cross_entropy", "cross_entropy"),
        ("share", None, None),
        ("layer", ["a", Path("b/c")], "a,b/c"),
        ("on", True, True),
    ],
)
def test_values_come_in_the_settings_own_type(name, value, expected):
    result = checked(OPTIONS[name], value)
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("length", -1, "--length -1: must be 0 or more"),
        ("length", 2.5, "--length 2.5: expects a whole number"),
        ("length", True, "--length True: expects a whole number"),
        ("length", 10**400, "--length 1000.*: expects a whole number"),
        ("length", None, "--length: needs a whole number, not null"),
        ("length", [1], r"--length 1: expects a whole number"),
        ("rate", math.nan, "--rate nan: must be a finite number"),
        ("rate", 1.5, "--rate 1.5: must be 1 or less"),
        ("rate", {}, "--rate {}: expects a number"),
        ("loss", "xent", "--loss xent: choose from cross_entropy, mse"),
        ("loss", "mes", "--loss mes: choose from cross_entropy, mse; did you mean mse?"),
        ("loss", ["mse"], "--loss mse: expects text"),
        ("on", "yes", "--on yes: expects true or false"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_flag_value_and_way_out(name, value, message):
    with pytest.raises(ValueError, match=message):
        checked(OPTIONS[name], value)


def test_an_object_of_settings_is_checked_as_well():
    check_settings(Settings())
    with pytest.raises(ValueError, match="loss='xent': choose from cross_entropy, mse"):
        check_settings(Settings(loss="xent"))
    with pytest.raises(ValueError, match="length=-3: must be 0 or more"):
        check_settings(Settings(length=-3))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no setting named 'lenght'; did you mean length"):
        check_names(["lenght"], OPTIONS)


def test_a_field_that_is_not_declared_is_an_error_of_ours():
    plain = dataclasses.make_dataclass("Plain", [("k", int, 3)], frozen=True)
    with pytest.raises(TypeError, match=r"Plain\.k is not declared with setting"):
        options_of(plain)


@pytest.mark.parametrize("name", NAMES)
def test_source_and_class_give_the_same_schema(name):
    assert read_schema(name) == schema_of(name, METHODS[name])


def test_meaning_is_not_read_from_the_help_and_defaults_may_be_expressions(tmp_path):
    file = tmp_path / "method.py"
    file.write_text(
        '"""Mine: a method."""\nBATCH = 256\n'
        "class MineSettings:\n"
        '    queue_length: int = setting(15 * BATCH, "0 means none", least=0)\n'
        '    scale: float = setting(-2.0 / 4, "any")\n'
        "class Mine:\n    Settings = MineSettings\n    paper = Training(epochs=2 * 10, "
        "crops=Crops(local_crops=1 + 1))\n"
    )
    schema = _Source(file).schema("mine", "Mine")
    length, scale = schema.settings
    assert (length.default, scale.default, schema.summary) == (3840, -0.5, "Mine: a method.")
    assert checked(length, 0) == 0
    assert schema.paper == {"epochs": 20, "crops": {"local_crops": 2}}


def test_reading_all_schemas_imports_no_torch():
    import subprocess

    code = "import sys; from selfcluster.settings.schema import read_schema as r; from selfcluster.methods import NAMES"
    code += "; [r(n) for n in NAMES]; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
