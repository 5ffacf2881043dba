"""The shared flags of training: one table that the command line, the Python API and `config.yaml` all follow.

No torch here: a help text is made of this. A value is looked for in the flags, then `--config`, the recipe, the paper.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from selfcluster.settings.schema import Schema, Setting


@dataclass(frozen=True)
class Option:
    """One shared flag. `kind` is int, float, str, pair (two numbers), numbers or switch; `auto`: set from the data.

    Numbers must be finite, and within `least` and `most`.
    """

    name: str
    kind: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    auto: bool = False
    least: float | None = None
    most: float | None = None


SHARED = (
    Option("backbone", "str", "resnet50", "network, by timm's name", auto=True),
    Option("init", "str", None, "a run, an exported backbone or a file of weights to start from"),
    Option("image_size", "int", 224, "side of the full-resolution views, in pixels", auto=True, least=4),
    Option("channels", "int", 3, "3 for color, 1 for grayscale", auto=True),
    Option("sobel", "switch", False, "show the network two edge channels instead of colors"),
    Option("global_crops", "int", 2, "full-resolution views an image", least=1),
    Option("local_crops", "int", 0, "small views an image", auto=True, least=0),
    Option("local_size", "int", 96, "side of the small views, in pixels", auto=True, least=4),
    Option(
        "global_scale",
        "pair",
        (0.08, 1.0),
        "share of the image's area that a full-resolution view covers",
        auto=True,
        least=0,
        most=1,
    ),
    Option("local_scale", "pair", (0.05, 0.14), "share of the image's area that a small view covers", least=0, most=1),
    Option("augment", "str", "color", "named set of view operations", auto=True),
    Option("epochs", "float", 100.0, "passes over the images", auto=True, least=0),
    Option("images_seen", "int", None, "length of the run in images, instead of --epochs", least=1),
    Option("batch_size", "int", 256, "images a step, over all processes", auto=True, least=1),
    Option("optimizer", "str", "sgd", "optimizer", ("sgd", "adamw", "larc", "lars"), auto=True),
    Option(
        "schedule",
        "str",
        "cosine",
        "course of the learning rate",
        ("cosine", "constant", "step", "multistep"),
        auto=True,
    ),
    Option("milestones", "numbers", (), "epochs of the schedule's drops", auto=True),
    Option("drop", "float", 0.1, "factor of the schedule's drops"),
    Option("learning_rate", "float", 0.1, "highest learning rate, for this batch size", auto=True, least=0),
    Option("final_learning_rate", "float", 0.0, "last learning rate of the cosine", auto=True, least=0),
    Option("warmup_epochs", "float", 0.0, "epochs in which the learning rate rises", auto=True, least=0),
    Option("warmup_learning_rate", "float", 0.0, "learning rate at the first step of the warm-up", auto=True, least=0),
    Option("weight_decay", "float", 1e-4, "weight decay", auto=True, least=0),
    Option("final_weight_decay", "float", None, "weight decay at the end, along a cosine", auto=True, least=0),
    Option("momentum", "float", 0.9, "momentum of sgd, larc and lars", least=0, most=1),
    Option("clip", "float", None, "bound on the norm of all gradients"),
    Option("clip_each", "float", None, "bound on the norm of each parameter's gradient"),
    Option("accumulate", "int", 1, "micro-batches a step, where the method allows it", least=1),
    Option("seed", "int", 0, "seed of everything random"),
    Option("workers", "int", None, "threads that read and decode images; default: one a core", least=0),
    Option("device", "str", "auto", "cpu, cuda or auto"),
    Option("precision", "str", "auto", "arithmetic", ("auto", "bf16", "fp32")),
    Option("limit", "int", None, "use N images only, drawn by the seed", least=1),
    Option("classes", "str", None, "use the classes listed in this file only; needs labels"),
    Option("long_tail", "float", None, "thin classes out to this ratio of largest to smallest; needs labels"),
    Option("label_noise", "float", None, "share of labels made wrong; needs labels", least=0, most=1),
    Option("labels_from", "str", None, "folders, column:NAME or a CSV file; no labels are read without it"),
    Option("max_bad", "float", 0.01, "share of unreadable images above which the run fails", least=0, most=1),
    Option("on_collapse", "str", "warn", "what to do when nothing is learned", ("warn", "stop")),
    Option("checkpoint_every", "int", None, "also save every N steps", least=1),
    Option("tensorboard", "switch", False, "also write TensorBoard files"),
)

_SHARES = ("dropout", "drop_path", "distill_weight")  # with momenta, in [0, 1]

# what may differ between the start of a run and its resumption without making it another run
FREE = frozenset({"workers", "device", "precision", "on_collapse", "checkpoint_every", "tensorboard", "max_bad"})


def option_of(setting: Setting) -> Option:
    """A method's own setting as a flag, with the bounds that its kind has.

    An integer is 1 or more, or 0 where the help says what 0 does; momenta and shares lie in [0, 1]; what the method
    divides by is above 0 (a teacher at temperature 0 takes its largest output).
    """
    kind = {"int": "int", "float": "float", "bool": "switch", "str": "str"}[setting.type.split(" ")[0]]
    name = setting.name
    least = 1 if kind == "int" and "0:" not in setting.help else 0
    if ("temperature" in name and "teacher" not in name) or name in ("epsilon", "sharpness"):
        least = 1e-4
    most = 1 if kind == "float" and ("momentum" in name or name in _SHARES) else None
    return Option(name, kind, setting.default, setting.help, least=least, most=most)


def options_for(schema: Schema) -> dict[str, Option]:
    """All flags of training a method, by name; no setting may bear a shared flag's name."""
    own = {setting.name: option_of(setting) for setting in schema.settings}
    shared = {option.name: option for option in SHARED}
    clash = own.keys() & shared.keys()
    if clash:
        raise TypeError(f"{schema.name}: the settings {sorted(clash)} bear the names of shared flags")
    return shared | own


def check_names(given: Iterable[str], known: Mapping[str, Option]) -> None:
    """Raise ValueError for a name that is no flag, with the nearest that is."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"no setting named {name!r}{hint}")


def checked(option: Option, value: Any) -> Any:
    """The value in its own type; raises ValueError naming flag and value."""
    flag = "--" + option.name.replace("_", "-")
    if value is None:
        return None
    try:
        if option.kind == "int":
            if float(value) != int(value):
                raise ValueError
            value = int(value)
        elif option.kind == "float":
            value = float(value)
        elif option.kind in ("pair", "numbers"):
            value = tuple(float(part) for part in value)
            if option.kind == "pair" and not (len(value) == 2 and value[0] <= value[1]):
                raise ValueError
        elif option.kind == "switch":
            if not isinstance(value, bool):
                raise ValueError
        else:
            value = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    except (TypeError, ValueError) as error:
        wanted = {"pair": "two rising numbers", "numbers": "numbers", "switch": "true or false"}
        raise ValueError(f"{flag} {value}: expects {wanted.get(option.kind, option.kind)}") from error
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_bounds(option, flag, number)
    if option.choices and value not in option.choices:
        near = difflib.get_close_matches(str(value), option.choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{flag} {value}: choose from {', '.join(option.choices)}{hint}")
    return value


def _check_bounds(option: Option, flag: str, number: float) -> None:
    if not math.isfinite(number):
        raise ValueError(f"{flag} {number}: must be a finite number")
    if option.least is not None and number < option.least:
        raise ValueError(f"{flag} {number:g}: must be {option.least:g} or more")
    if option.most is not None and number > option.most:
        raise ValueError(f"{flag} {number:g}: must be {option.most:g} or less")
