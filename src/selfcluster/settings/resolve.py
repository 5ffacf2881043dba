"""From what the user said to a complete configuration: flag, then `--config`, then the recipe, then the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selfcluster.settings.options import check_names, checked, options_for
from selfcluster.settings.recipes import RECIPES, DataSummary
from selfcluster.settings.schema import Schema, read_schema, training_defaults

# rates that a paper gives for a batch of `images_per_rate`
SCALED = ("learning_rate", "final_learning_rate", "warmup_learning_rate")
# prototypes that are learned directions: there may be more of them than images, as in the papers
_DIRECTIONS = ("swav", "dino")
# flags, and the values of another under which they do nothing
_IDLE: tuple[tuple[tuple[str, ...], str, tuple[Any, ...]], ...] = (
    (("teacher_momentum",), "teacher_rule", ("epoch", "iteration", "copy")),
    (("center_momentum",), "centering", ("sinkhorn", "softmax", "none")),
    (("dim",), "bottleneck", (False,)),
    (("temperature",), "loss", ("mse",)),
    (("teacher_temperature", "warmup_teacher_temperature", "teacher_warmup_epochs"), "loss", ("mse", "infonce")),
    (("exclude_self",), "num_negatives", (0,)),
    (("max_clusters",), "clustering", ("kmeans",)),
    (("num_prototypes", "kmeans_iterations"), "clustering", ("pic",)),
    (("distill_weight", "distill_temperature"), "target", ("kmeans", "per_label", "prototypes", "regress")),
    (("kmeans_iterations", "kmeans_sample", "teacher_pca"), "target", ("prototypes", "distill", "regress")),
    (("kmeans_sample_iterations",), "kmeans_sample", (None,)),
)
# clusters of what the last epoch wrote, which leaves out images beyond the last whole batch
_OF_LAST_EPOCH = ("deepcluster_v2", "sela_v2")


@dataclass(frozen=True)
class Resolved:
    """`config`: a value for every flag, flat; `reasons`: why the recipe chose what it chose."""

    config: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)


def images_per_rate(schema: Schema) -> int:
    """The batch that the paper's rates are for."""
    return {**training_defaults("Training"), **schema.paper}["per"]


def paper_values(schema: Schema) -> dict[str, Any]:
    """The paper's values under the flags' names; rates are still for a batch of `per` images."""
    training = {**training_defaults("Training"), **schema.paper}
    crops = {**training_defaults("Crops"), **training.pop("crops")}
    crops["image_size"] = crops.pop("global_size")
    values = {key: value for key, value in (training | crops).items() if key != "per"}
    return values | {setting.name: setting.default for setting in schema.settings}


def resolve(
    method: str,
    facts: DataSummary,
    given: Mapping[str, Any] | None = None,
    config_file: Mapping[str, Any] | None = None,
    recipe: str = "auto",
) -> Resolved:
    """A value for every flag of `method` on data with these facts.

    `given` are the user's flags and `config_file` the mapping of `--config`; both may leave out anything.
    Raises ValueError for unknown names, values out of range, and settings that would have no effect.
    """
    schema = read_schema(method)
    options = options_for(schema)
    said: dict[str, Any] = {}
    foreign = [name for name in config_file or {} if name not in options]
    if len(foreign) > 1:  # one alone is a slip, for which `check_names` has a suggestion
        raise ValueError(f"--config is of another method: {method} has no {', '.join(foreign)}; leave those lines out")
    for source in (config_file or {}, given or {}):
        check_names(source, options)
        said |= {name: checked(options[name], value) for name, value in source.items()}
    if recipe not in RECIPES:
        raise ValueError(f"no recipe named {recipe!r}; there are {', '.join(RECIPES)}")

    values = {name: option.default for name, option in options.items()} | paper_values(schema)
    choices = RECIPES[recipe](schema, facts, said)
    values |= {name: choice.value for name, choice in choices.items()}
    values |= said
    reasons = {name: choice.reason for name, choice in choices.items() if name not in said}
    per = images_per_rate(schema)
    for name in SCALED:
        if name not in said and name not in choices and values[name]:
            values[name] = values[name] * values["batch_size"] / per
    values["channels"] = values["channels"] if "channels" in said else facts.channels
    config = {name: checked(options[name], values[name]) for name in options}
    _check(schema, config, facts)
    _check_effect(given or {}, config)
    return Resolved(config, reasons)


def _check(schema: Schema, config: dict[str, Any], facts: DataSummary) -> None:
    if config["epochs"] <= 0:
        raise ValueError(f"--epochs {config['epochs']}: must be above 0")
    if config["global_crops"] < 2 <= schema.paper.get("crops", {}).get("global_crops", 2):
        raise ValueError(f"--global-crops {config['global_crops']}: {schema.name} compares two full views of an image")
    if config["local_crops"] and config["local_size"] >= config["image_size"]:
        raise ValueError(
            f"--local-size {config['local_size']}: small views must be smaller than the full ones, "
            f"--image-size {config['image_size']}"
        )
    if config["channels"] not in (1, 3):
        raise ValueError(f"--channels {config['channels']}: images have 1 (grayscale) or 3 (color)")
    if facts.num_images < 2:
        raise ValueError(f"{facts.num_images} image: training needs at least 2")
    if config["batch_size"] > facts.num_images:
        raise ValueError(
            f"--batch-size {config['batch_size']} is more than the {facts.num_images} images; "
            f"use --batch-size {max(2, facts.num_images // 4)}"
        )
    k, most = config.get("num_prototypes"), facts.num_images
    if k is not None and k < 2:
        raise ValueError(f"--num-prototypes {k}: must be 2 or more")
    if schema.name in _OF_LAST_EPOCH:
        most = most // config["batch_size"] * config["batch_size"]
    unused = config.get("clustering") == "pic" or config.get("target", "kmeans") not in ("kmeans", "per_label")
    if k is not None and k > most and schema.name not in _DIRECTIONS and not unused:
        what = "the number of images"
        if most < facts.num_images:
            what = f"those of the {facts.num_images} images that an epoch's whole batches hold"
        raise ValueError(f"--num-prototypes {k}: must be 2 to {what}, {most}")
    together = config.get("centering") in ("sinkhorn", "softmax") or config.get("loss") == "infonce"
    if config["accumulate"] > 1 and (together or not schema.supports_accumulation):
        raise ValueError(
            f"--accumulate {config['accumulate']}: {schema.name} looks at all images of a batch together, so "
            "several small batches are not one large one; use a smaller --batch-size (SwAV: with --queue-length)"
        )
    if config["accumulate"] > 1 and config.get("weighting") in ("inverse", "inverse_sqrt"):
        raise ValueError(
            f"--accumulate {config['accumulate']}: --weighting {config['weighting']} divides by the weights of a whole "
            "batch, so several small batches are not one large one; use a smaller --batch-size or --weighting uniform"
        )
    groups = 4 * config.get("num_super_clusters", 0)
    if groups and config["batch_size"] % groups:
        raise ValueError(
            f"--batch-size {config['batch_size']}: a batch holds equally many images of each of the {groups} "
            f"super-classes (4 rotations times --num-super-clusters); use --batch-size "
            f"{max(groups, config['batch_size'] // groups * groups)}"
        )
    if config["batch_size"] % config["accumulate"]:
        raise ValueError(f"--batch-size {config['batch_size']} does not divide by --accumulate {config['accumulate']}")
    if config["schedule"] in ("step", "multistep") and not config["milestones"]:
        raise ValueError(f"--schedule {config['schedule']} needs --milestones")
    if config["schedule"] not in ("step", "multistep") and config["milestones"]:
        raise ValueError(f"--milestones has no effect under --schedule {config['schedule']}")


def _check_effect(given: Mapping[str, Any], config: dict[str, Any]) -> None:
    for names, other, values in _IDLE:
        said = [name for name in names if given.get(name) is not None]
        if not said or other not in config or config[other] not in values:
            continue
        flag, under = said[0].replace("_", "-"), other.replace("_", "-")
        if config[other] is None:
            raise ValueError(f"--{flag} has no effect without --{under}")
        under = f"no-{under}" if config[other] is False else f"{under} {config[other]}"
        raise ValueError(f"--{flag} has no effect under --{under}; leave one of the two out")
