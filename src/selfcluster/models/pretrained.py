"""Pretrained networks by one word: `starter`, `timm:NAME`, a weights file, `NETWORK=FILE`, or an exported backbone.

Each network comes with its own preprocessing (mean, std, size, interpolation, crop) and its license, so that its
features are those that its authors get.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfcluster.models.backbones import (
    Backbone,
    load_backbone,
    make_backbone,
    preprocessing_of,
    probe,
    untrained_backbone,
)
from selfcluster.models.folding import full_name
from selfcluster.models.origin import STARTER, TIMM, check_word, find_origin, is_export, means_a_file
from selfcluster.models.preprocessing import Preprocessing, default_preprocessing, resized

UNTRAINED = "untrained:"  # before a run or an export: the same network with random weights


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
            from its cache or the internet); a weights file, whose network is recognized by its tensors; NETWORK=FILE;
            an exported backbone or a run folder; a folder of the Hugging Face hub; the plain name of a timm network,
            which is not trained; or `untrained:FOLDER`, the network of a run or an export with random weights.
        image_size: side of the images in pixels; default the network's own.
        channels: of the images, for a network that is not trained. A pretrained one keeps its own.
        allow_partial: load a file that leaves parts of the network random.

    Raises:
        ValueError: an unknown word, weights of another network, or several networks that a file may belong to.
        FileNotFoundError: no such file, or the starter is not installed.
        RuntimeError: timm cannot get the weights.
    """
    if str(model).startswith(UNTRAINED):
        return _untrained_like(Path(str(model).removeprefix(UNTRAINED)), image_size)
    if not is_pretrained_word(str(model)) and not means_a_file(str(model)):
        return _untrained(str(model), image_size, channels)
    origin = find_origin(model)
    if origin.weights is not None and is_export(origin.weights):
        module = load_backbone(origin.weights)[0]  # as its description says, with what no other word can say
        report = f"weights {origin.weights}"
    else:
        module = origin.make(image_size=image_size, allow_partial=allow_partial)
        report = module.load_report if not origin.note.startswith(STARTER) else ""
        report = "; ".join(dict.fromkeys(part for part in (report, origin.note) if part))
    return _network(module, resized(origin.preprocessing, image_size), report, origin.license)


def is_pretrained_word(word: str) -> bool:
    """Whether `load_network` reads the word as pretrained weights rather than as the name of an untrained network."""
    name, equals, file = word.partition("=")
    return word == STARTER or word.startswith(TIMM) or Path(word).exists() or bool(equals and name and file)


def describe(network: Network) -> str:
    """Return the network, its images and its weights in one line.

    A person reads it before a long computation starts.
    """
    size = f"{network.image_size} px, {network.interpolation}"
    weights = network.load_report or "not trained: the weights are random"
    return f"{network.name} ({network.module.num_features} features, {size}); {weights}"


def _network(
    module: Backbone, preprocessing: Preprocessing, report: str, license: str | None, trained: bool = True
) -> Network:
    probe(module, preprocessing.channels, preprocessing.image_size)
    p = preprocessing
    module.spec["pretrained_cfg_overlay"] |= p.as_config()
    if license is not None:
        module.spec["pretrained_cfg_overlay"]["license"] = license
    name = full_name(module.spec)
    fields = (p.mean, p.std, p.image_size, p.interpolation, p.crop_pct, p.crop_mode)
    return Network(module.eval(), *fields, license, name, report, trained)


def _untrained(name: str, image_size: int | None, channels: int) -> Network:
    check_word(name)
    size = image_size or 224
    module = make_backbone(name, channels=channels, image_size=size)
    return _network(module, default_preprocessing(channels, size), "", None, trained=False)


def _untrained_like(folder: Path, image_size: int | None) -> Network:
    module = untrained_backbone(folder)
    return _network(module, resized(preprocessing_of(module), image_size), "", None, trained=False)
