"""The shared flags of training: one table that the command line, the Python API and `config.yaml` all follow.

No torch here: a help text is made of this. A value comes from the flags, then `--config`, then the recipe, then the
paper.
"""

from __future__ import annotations

from collections.abc import Mapping

from selfcluster.setting import Option, check_names, checked
from selfcluster.settings.schema import Schema

__all__ = ["FREE", "SHARED", "Option", "check_names", "checked", "options_for"]

SHARED = (
    Option("backbone", "str", "resnet50", "timm's name of the network", auto=True),
    Option("patch_size", "int", None, "side of a transformer's patches in pixels; default: the network's", least=1),
    Option("init", "str", None, "weights to start from: starter, timm:NAME, a run, an export, FILE or NETWORK=FILE"),
    Option("allow_partial", "switch", False, "accept weights of --init that leave parts of the network random"),
    Option("image_size", "int", 224, "side of the full-resolution views, in pixels", auto=True, least=4),
    Option("channels", "int", 3, "3 for color, 1 for grayscale", auto=True),
    Option("sobel", "switch", False, "show the network two edge channels instead of colors"),
    Option("global_crops", "int", 2, "full-resolution views per image", least=1),
    Option("local_crops", "int", 0, "small views per image", auto=True, least=0),
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
    Option(
        "images_seen",
        "int",
        None,
        "length of the run: number of images shown, repetitions counted; instead of --epochs",
        least=1,
    ),
    Option(
        "minutes",
        "float",
        None,
        "length of the run in minutes on this machine, instead of --epochs",
        auto=True,
        least=0.01,
    ),
    Option("batch_size", "int", 256, "images per step, over all processes", auto=True, least=1),
    Option("optimizer", "str", "sgd", "optimizer", ("sgd", "adamw", "larc", "lars"), auto=True),
    Option(
        "schedule",
        "str",
        "cosine",
        "how the learning rate changes over the run",
        ("cosine", "constant", "step", "multistep"),
        auto=True,
    ),
    Option("milestones", "numbers", (), "epochs at which the schedule lowers the learning rate", auto=True),
    Option("drop", "float", 0.1, "factor by which the schedule lowers the learning rate"),
    Option("learning_rate", "float", 0.1, "highest learning rate, for this batch size", auto=True, least=0),
    Option("final_learning_rate", "float", 0.0, "learning rate at the end of the cosine", auto=True, least=0),
    Option("warmup_epochs", "float", 0.0, "epochs in which the learning rate rises", auto=True, least=0),
    Option("warmup_learning_rate", "float", 0.0, "learning rate at the first step of the warm-up", auto=True, least=0),
    Option("weight_decay", "float", 1e-4, "weight decay", auto=True, least=0),
    Option("final_weight_decay", "float", None, "weight decay at the end, along a cosine", auto=True, least=0),
    Option("momentum", "float", 0.9, "momentum of sgd, larc and lars", least=0, most=1),
    Option("trust_coefficient", "float", 0.001, "eta of larc and lars", auto=True, least=0),
    Option("clip_rate", "switch", False, "larc and lars: limit each layer's rate to the learning rate"),
    Option(
        "exclude_flat",
        "switch",
        False,
        "apply neither weight decay nor the scaling of larc and lars to biases and normalization layers",
    ),
    Option(
        "freeze_norm",
        "str",
        "no",
        "batch-norm layers of the backbone: freeze nothing (no), the statistics, or all (statistics and weights)",
        ("no", "statistics", "all"),
        auto=True,
    ),
    Option(
        "freeze_layers",
        "float",
        0.0,
        "early layers of the backbone to freeze: a number, or a share below 1",
        auto=True,
        least=0,
    ),
    Option(
        "layer_decay",
        "float",
        1.0,
        "each layer's learning rate is this factor times that of the next layer",
        auto=True,
        least=0,
        most=1,
    ),
    Option("clip", "float", None, "limit for the norm of all gradients together"),
    Option("clip_each", "float", None, "limit for the gradient norm of each parameter"),
    Option("accumulate", "int", 1, "micro-batches per step, if the method allows it", least=1),
    Option("seed", "int", 0, "seed of all random numbers"),
    Option("workers", "int", None, "threads that read and decode images; default: one per core", least=0),
    Option("device", "str", "auto", "cpu, cuda or auto"),
    Option("precision", "str", "auto", "number format of the computation", ("auto", "bf16", "fp32")),
    Option(
        "compile", "switch", False, "compile the network before the first step: takes minutes, makes the steps faster"
    ),
    Option("limit", "int", None, "use N images only, drawn by the seed", least=1),
    Option("classes", "str", None, "use only images of the classes in this file (one name per line); needs labels"),
    Option(
        "long_tail",
        "float",
        None,
        "remove images so that the largest class has X times as many images as the smallest; at least 1; needs labels",
        least=1,
    ),
    Option(
        "label_noise", "float", None, "share of labels to make wrong, as an experiment; needs labels", least=0, most=1
    ),
    Option(
        "labels_from",
        "str",
        None,
        "source of labels: folders, voc, column:NAME, FILE.csv (id, label), or several per image: columns:A,B or "
        "tags:FILE.csv; default: none",
    ),
    Option(
        "range",
        "pair",
        None,
        "for images deeper than 8 bits: values that become 0 and 255; default: measured in a sample",
    ),
    Option(
        "max_megapixels",
        "float",
        64.0,
        "most pixels per image, in millions; larger JPEGs are decoded at 1/2, 1/4 or 1/8 of their size",
        least=0.001,
    ),
    Option("timeout", "float", 600.0, "seconds to wait for a read before the run stops", least=1),
    Option(
        "max_bad",
        "float",
        0.01,
        "the run fails if more than this share of the images is unreadable; unless it is 0, one unreadable image is "
        "always allowed",
        least=0,
        most=1,
    ),
    Option(
        "on_collapse",
        "str",
        "warn",
        "what to do if the features collapse or the loss stays at chance",
        ("warn", "stop"),
    ),
    Option("checkpoint_every", "int", None, "also save every N steps", least=1),
    Option(
        "keep",
        "str",
        None,
        "network to keep: start, end (trained), half (mean of both weights) or best (half if it is clearly better, "
        "else start); start and half need --init; default: best with --init, else end",
        ("start", "half", "end", "best"),
    ),
    Option(
        "judge_sample",
        "int",
        1000,
        "number of images for the comparison with the start network; 0: no comparison, and with --init "
        "also give --keep start, half or end",
        least=0,
    ),
    Option(
        "judge_every", "int", 0, "also measure the network every N epochs, without labels; 0: only at the end", least=0
    ),
    Option(
        "probe_labels",
        "str",
        None,
        "watch training with a linear classifier on these labels: folders, column:NAME or a CSV file",
    ),
    Option("tensorboard", "switch", False, "also write TensorBoard files"),
)

# settings that may change when a run resumes
FREE = frozenset(
    {
        "workers",
        "device",
        "precision",
        "compile",
        "on_collapse",
        "checkpoint_every",
        "keep",
        "tensorboard",
        "max_bad",
        "max_megapixels",
    }
    | {"timeout"}
)


def options_for(schema: Schema) -> Mapping[str, Option]:
    """Return all options of training a method, by name; raise TypeError where a setting has a shared flag's name."""
    own = {option.name: option for option in schema.settings}
    shared = {option.name: option for option in SHARED}
    clash = own.keys() & shared.keys()
    if clash:
        raise TypeError(f"{schema.name}: the settings {sorted(clash)} have the names of shared flags")
    return shared | own
