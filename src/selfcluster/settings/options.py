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
    Option("backbone", "str", "resnet50", "network, by timm's name", auto=True),
    Option("patch_size", "int", None, "side of a transformer's patches in pixels; default the network's", least=1),
    Option("init", "str", None, "weights to start from: starter, timm:NAME, a run, an export, FILE or NETWORK=FILE"),
    Option("allow_partial", "switch", False, "accept weights of --init that leave parts of the network random"),
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
    Option(
        "minutes",
        "float",
        None,
        "length of the run in minutes on this machine, instead of --epochs",
        auto=True,
        least=0.01,
    ),
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
    Option("trust_coefficient", "float", 0.001, "eta of larc and lars", auto=True, least=0),
    Option("clip_rate", "switch", False, "larc and lars: a layer's rate is at most the learning rate"),
    Option("exclude_flat", "switch", False, "biases and norms get no weight decay and no scaling by larc and lars"),
    Option("freeze_norm", "str", "no", "what stays of the backbone's norms", ("no", "statistics", "all"), auto=True),
    Option(
        "freeze_layers",
        "float",
        0.0,
        "early layers of the backbone that stay: a number, or a share below 1",
        auto=True,
        least=0,
    ),
    Option(
        "layer_decay",
        "float",
        1.0,
        "factor of the learning rate from each layer of the backbone to the one before",
        auto=True,
        least=0,
        most=1,
    ),
    Option("clip", "float", None, "bound on the norm of all gradients"),
    Option("clip_each", "float", None, "bound on the norm of each parameter's gradient"),
    Option("accumulate", "int", 1, "micro-batches a step, where the method allows it", least=1),
    Option("seed", "int", 0, "seed of everything random"),
    Option("workers", "int", None, "threads that read and decode images; default: one a core", least=0),
    Option("device", "str", "auto", "cpu, cuda or auto"),
    Option("precision", "str", "auto", "arithmetic", ("auto", "bf16", "fp32")),
    Option("compile", "switch", False, "compile the network before the first step: minutes, then faster steps"),
    Option("limit", "int", None, "use N images only, drawn by the seed", least=1),
    Option("classes", "str", None, "use the classes listed in this file only; needs labels"),
    Option("long_tail", "float", None, "thin classes out to this ratio of largest to smallest; needs labels"),
    Option("label_noise", "float", None, "share of labels made wrong; needs labels", least=0, most=1),
    Option(
        "labels_from",
        "str",
        None,
        "folders, voc, column:NAME, tags:FILE.csv or a CSV file; no labels are read without it",
    ),
    Option(
        "range",
        "pair",
        None,
        "values of images deeper than 8 bits that become 0 and 255; default: measured in a sample of the images",
    ),
    Option(
        "max_megapixels",
        "float",
        64.0,
        "most pixels of an image, in millions; larger JPEGs are decoded at 1/2, 1/4 or 1/8 of their size",
        least=0.001,
    ),
    Option("timeout", "float", 600.0, "seconds after which a read that hangs ends the run", least=1),
    Option("max_bad", "float", 0.01, "share of unreadable images above which the run fails", least=0, most=1),
    Option("on_collapse", "str", "warn", "what to do when nothing is learned", ("warn", "stop")),
    Option("checkpoint_every", "int", None, "also save every N steps", least=1),
    Option(
        "keep",
        "str",
        None,
        "network that the run hands over: start, end, half (their mean) or best; default: best with --init, else end",
        ("start", "half", "end", "best"),
    ),
    Option("judge_sample", "int", 1000, "images on which start and end are compared; 0: no comparison", least=0),
    Option("judge_every", "int", 0, "also measure the network every N epochs, without labels; 0: at the end", least=0),
    Option(
        "probe_labels",
        "str",
        None,
        "train a linear classifier beside the method on these labels, to watch it: folders, column:NAME or a CSV file",
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
