"""A complete configuration: a value comes from the flag, then from `--config`, then the recipe, then the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from selfcluster.choice import RunSettings
from selfcluster.methods import METHODS
from selfcluster.runs.formats import with_modern_names
from selfcluster.setting import check_names, checked
from selfcluster.settings.options import options_for
from selfcluster.settings.recipes import RECIPES, DataSummary
from selfcluster.settings.schema import Schema, read_schema, training_defaults

# rates that a paper gives for a batch of `images_per_rate`
SCALED = ("learning_rate", "final_learning_rate", "warmup_learning_rate")


@dataclass(frozen=True)
class Resolved:
    """`config`: a value for every flag, flat; `reasons`: the recipe's reason for each of its choices."""

    config: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)


def images_per_rate(schema: Schema) -> int:
    """Return the batch size for which the paper gives its learning rates."""
    return {**training_defaults("Training"), **schema.paper}["per"]


def paper_values(schema: Schema) -> dict[str, Any]:
    """Return the paper's values by flag name; learning rates are for a batch of `per` images."""
    training = {**training_defaults("Training"), **schema.paper}
    crops = {**training_defaults("Crops"), **training.pop("crops")}
    crops["image_size"] = crops.pop("global_size")
    values = {key: value for key, value in (training | crops).items() if key != "per"}
    return values | {option.name: option.default for option in schema.settings}


def validated(
    method: str, given: Mapping[str, object], config_file: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return the user's settings in their own types; flags override `config_file`. Needs neither data nor torch.

    Raises:
        ValueError: a name is unknown, a type is wrong, or a value is out of bounds; the message names the flag.
    """
    options = options_for(read_schema(method))
    foreign = [name for name in with_modern_names(config_file or {}) if name not in options]
    if len(foreign) > 1:  # a single unknown name is a typing error; `check_names` suggests the nearest
        raise ValueError(
            f"--config belongs to another method: {method} has no setting {', '.join(foreign)}; remove those lines"
        )
    merged = with_modern_names({**(config_file or {}), **given})
    check_names(merged, options)
    return {name: checked(options[name], value) for name, value in merged.items()}


def resolve(
    method: str,
    facts: DataSummary,
    given: Mapping[str, object] | None = None,
    config_file: Mapping[str, object] | None = None,
    recipe: str = "auto",
) -> Resolved:
    """Return a value for every option of `method`, for data that `facts` describes.

    Args:
        method: its name.
        facts: number, size and channels of the images.
        given: the user's flags; all are optional.
        config_file: the mapping of `--config`; all entries are optional.
        recipe: name of the recipe that sets what the user left out.

    Raises:
        ValueError: a name is unknown, a value is out of bounds, or a setting has no effect.
    """
    schema = read_schema(method)
    options = options_for(schema)
    said = validated(method, given or {}, config_file)
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
    settings = cast(RunSettings, config)  # each value has passed `checked`
    _check(schema, settings, facts)
    flags = given or {}
    if flags.get("minutes") is not None and "epochs" in flags:  # a stored configuration may have both
        raise ValueError("--minutes and --epochs both set the length of the run; leave one of them out")
    METHODS[schema.name].check(settings, facts.num_images)
    _check_effect(schema, flags, config)
    return Resolved(config, reasons)


def _check(schema: Schema, config: RunSettings, facts: DataSummary) -> None:
    if config["epochs"] <= 0:
        raise ValueError(f"--epochs {config['epochs']}: must be above 0")
    if config["minutes"] is not None and config["images_seen"] is not None:
        raise ValueError("--minutes and --images-seen both set the length of the run; leave one of them out")
    if config["global_crops"] < 2 <= schema.paper.get("crops", {}).get("global_crops", 2):
        raise ValueError(
            f"--global-crops {config['global_crops']}: {schema.name} compares two full views "
            "of an image, so at least 2 are needed"
        )
    if config["local_crops"] and config["local_size"] >= config["image_size"]:
        raise ValueError(
            f"--local-size {config['local_size']}: small views must be smaller than the full ones, "
            f"--image-size {config['image_size']}"
        )
    if config["channels"] not in (1, 3):
        raise ValueError(f"--channels {config['channels']}: must be 1 (grayscale) or 3 (color)")
    if facts.num_images < 2:
        raise ValueError(f"{facts.num_images} image: training needs at least 2")
    keep = config["keep"]
    if config["init"] is None and keep in ("start", "half"):
        raise ValueError(f"--keep {keep} needs --init: without it the run stores no start network")
    if config["init"] is not None and keep in (None, "best") and not config["judge_sample"]:
        raise ValueError(
            "--judge-sample 0: without a comparison it is unknown whether training improved the start network. Leave "
            "--judge-sample out, or choose the network with --keep start, half or end"
        )
    if config["batch_size"] > facts.num_images:
        raise ValueError(
            f"--batch-size {config['batch_size']} is more than the {facts.num_images} images; "
            f"use --batch-size {max(2, facts.num_images // 4)}"
        )
    if config["accumulate"] > 1 and not schema.supports_accumulation:
        queue = " with --queue-length" if schema.name == "swav" else ""  # codes of a small batch need more features
        raise ValueError(
            f"--accumulate {config['accumulate']}: {schema.name} compares the images of a batch with each other, so "
            f"several small batches do not equal a large one. Use a smaller --batch-size{queue}"
        )
    if config["batch_size"] % config["accumulate"]:
        raise ValueError(
            f"--batch-size {config['batch_size']} must be a multiple of --accumulate {config['accumulate']}"
        )
    if config["schedule"] in ("step", "multistep") and not config["milestones"]:
        raise ValueError(f"--schedule {config['schedule']} needs --milestones")
    if config["schedule"] not in ("step", "multistep") and config["milestones"]:
        raise ValueError(f"--milestones has no effect under --schedule {config['schedule']}")


def _check_effect(schema: Schema, given: Mapping[str, object], config: Mapping[str, object]) -> None:
    for names, other, values in schema.idle:
        useless = [name for name in names if given.get(name) is not None]
        if not useless or config[other] not in values:
            continue
        flag, under = useless[0].replace("_", "-"), other.replace("_", "-")
        if config[other] is None:
            raise ValueError(f"--{flag} has no effect without --{under}")
        under = f"no-{under}" if config[other] is False else f"{under} {config[other]}"
        raise ValueError(f"--{flag} has no effect under --{under}; leave one of the two out")
