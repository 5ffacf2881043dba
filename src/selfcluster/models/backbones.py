"""Backbones by timm's names: made for a data set's images, saved so that timm alone can load them again.

A backbone is timm's own module, without a wrapper and with timm's names in its `state_dict`; what we know of it hangs
on it as attributes. timm is imported inside the functions: it takes seconds, and a help text must not wait for it.

B images, C channels, F features.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfcluster.files import reason_of, write_together
from selfcluster.models.folding import full_name, parts_of
from selfcluster.models.initialize import initialize
from selfcluster.models.preprocessing import Preprocessing, default_preprocessing, from_config
from selfcluster.models.registration import check_name
from selfcluster.models.sobel import CHANNELS, put_before

WEIGHTS = "backbone.safetensors"
ARCHITECTURE = "backbone.json"
SMALL = 64  # pixels: up to here a residual network gets the stem for small images
_EDGES = "input: Sobel edges of the normalized image, two channels; zeros around the image:"
# In the header of the weights: the hash of the description shows that the two files belong together; behind it stands
# that of the tensors. One entry, because safetensors writes several in any order, and equal runs have equal files.
_HASH = "sha256 of backbone.json"
# entries of timm's `pretrained_cfg` that describe a network; the others say where weights are downloaded or loaded from
_DESCRIBING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "license", "notes")
_DESCRIBING += ("num_classes", "first_conv", "classifier", "pool_size", "description", "paper_ids", "paper_name")
_LOADING = ("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit")
_SMALL_STEM = ("resnet18", "resnet34", "resnet50")


class Backbone(nn.Module):
    """What `make_backbone` and `load_backbone` promise of timm's module; never instantiated.

    `num_features` is F, `spec` the JSON-able arguments of `timm.create_model(**spec)`, `load_report` what became of the
    weights asked for with `init` ("" without). Calling it maps images (B, C, h, w) to features (B, F).
    """

    num_features: int
    spec: dict[str, Any]
    load_report: str

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


def make_backbone(
    name: str,
    *,
    channels: int,
    image_size: int,
    init: str | Path | None = None,
    drop_path: float = 0.0,
    sobel: bool | int = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocessing: Preprocessing | None = None,
    pretrained: bool = False,
    allow_partial: bool = False,
    **create: Any,
) -> Backbone:
    """Return a network without a classifier, freshly initialized or with weights.

    Args:
        name: a network of timm or of this package. For images of up to 64 pixels, `resnet18`, `resnet34` and
            `resnet50` become their `*_small` variants; `spec["model_name"]` holds the final name.
            "folded_sobel/NETWORK/PADDING" is a network whose first convolution is large enough to include the Sobel
            filters; PADDING is their zero padding, 1 or 2. Exports of networks with Sobel input use such names
            (`folding.py`).
        channels: C.
        image_size: side of the full-resolution views in pixels. It sets the stem and the position embeddings.
        init: a `.safetensors`, `.pt` or `.pth` file of weights (nothing in it is executed), or a folder with a
            `backbone.safetensors`: an exported backbone or a finished run. `.load_report` lists what matched.
        drop_path: rate of stochastic depth.
        sobel: compute two edge channels (`sobel.py`) inside the network; callers still pass images. A number is the
            width of the zero padding around the image: 1 (the same as True), or 2, with which folding is exact. A
            transformer needs whole patches and always has 1.
        mean, std: of the images' normalization, one number per channel; default ImageNet's for RGB, else 0.5.
        preprocessing: mean, std, interpolation and crop of a pretrained network. The network then keeps its own stem,
            also for small images.
        pretrained: load timm's published weights, from its cache or the internet.
        allow_partial: accept a file of weights that leaves parts of the network random.
        **create: further arguments of `timm.create_model`, such as a vision transformer's `patch_size` in pixels.

    Returns:
        timm's module with `num_features`, `spec` and `load_report` added (see `Backbone`).

    Raises:
        ValueError: an unknown name (the message lists similar names), an argument that the network does not take,
            images that it cannot process, or weights of another network.

    >>> backbone = make_backbone("resnet18", channels=3, image_size=32)
    >>> backbone.spec["model_name"], backbone.num_features, backbone(torch.zeros(2, 3, 32, 32)).shape
    ('resnet18_small', 512, torch.Size([2, 512]))
    """
    real = f"{name}_small" if image_size <= SMALL and name in _SMALL_STEM and preprocessing is None else name
    check_name(real)
    if preprocessing is None:
        preprocessing = default_preprocessing(channels, image_size)
        preprocessing = replace(
            preprocessing, mean=tuple(mean or preprocessing.mean), std=tuple(std or preprocessing.std)
        )
    if preprocessing.channels != channels:
        raise ValueError(
            f"mean {preprocessing.mean} and std {preprocessing.std} need one number for each of {channels} channels"
        )
    _check_patches(create.get("patch_size"), image_size)
    spec: dict[str, Any] = {**parts_of(real), "num_classes": 0, **create}
    spec["in_chans"] = CHANNELS if sobel else channels
    if drop_path:
        spec["drop_path_rate"] = drop_path
    spec["pretrained_cfg_overlay"] = preprocessing.as_config()
    optional = {
        "img_size": image_size,
        "dynamic_img_size": True,  # a vision transformer meets crops of several sizes
        "zero_init_last": False,  # as in the papers' ResNets; a zero scale would also defeat LARC's first step
    }
    once = {"pretrained": True} if pretrained else {}
    module = _create(_plain(spec), {k: v for k, v in optional.items() if k not in create}, **once)
    if sobel:
        whole = hasattr(module, "patch_embed")
        module.spec["pretrained_cfg_overlay"]["notes"] = [f"{_EDGES} {1 if whole else int(sobel)}"]
    module = _with_edges(module)
    _measure(module, channels, image_size)
    module.load_report = ""
    if init is not None:
        module.load_report = initialize(module, _weights_file(init), allow_partial=allow_partial)
    return module


def save_backbone(
    folder: str | Path, module: nn.Module, mean: Sequence[float], std: Sequence[float], size: int
) -> Path:
    """Write `backbone.safetensors` and `backbone.json`; timm alone rebuilds the network from the two.

    A file appears under its name only when it is complete and on the disk.

    Args:
        folder: made if it does not exist.
        module: from `make_backbone` or `load_backbone` (not wrapped in DDP).
        mean, std: of the images' normalization, one number a channel.
        size: side of the images in pixels.

    Returns:
        The path of the weights.

    Raises:
        ValueError: a module of other origin, or mean and std of another length than the channels.

    >>> json_file, weights = "run/backbone.json", "run/backbone.safetensors"
    >>> selfcluster.register_with_timm()  # for networks that timm lacks  # doctest: +SKIP
    >>> timm.create_model(**json.load(open(json_file)), checkpoint_path=weights)  # doctest: +SKIP
    """
    import safetensors.torch

    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper
    spec: Any = getattr(module, "spec", None)
    if spec is None:
        raise ValueError(f"{type(module).__name__} has no spec: only what make_backbone or load_backbone gave is saved")
    config = preprocessing_of(module).as_config()
    config |= {"input_size": [config["input_size"][0], size, size], "mean": list(mean), "std": list(std)}
    if not len(mean) == len(std) == config["input_size"][0]:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} need one number for each of the network's channels")
    spec = spec | {"pretrained_cfg_overlay": spec["pretrained_cfg_overlay"] | config}
    # safetensors takes neither channels_last nor a tensor that shares its memory with another
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in module.state_dict().items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = json.dumps(_plain(spec), indent=2) + "\n"
    weights = safetensors.torch.save(state, {_HASH: f"{_digest(spec)} {_tensors_digest(state)}"})
    write_together({folder / ARCHITECTURE: description, folder / WEIGHTS: weights})
    return folder / WEIGHTS


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of `backbone.json`: arguments of `timm.create_model` that load nothing from elsewhere.

    Raises:
        ValueError: not such a description, an entry that names other weights, or one that belongs to other weights.
    """
    path = folder / ARCHITECTURE
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {reason_of(error)}. Export the network again.") from error
    overlay = spec.get("pretrained_cfg_overlay") if isinstance(spec, dict) else None
    if not isinstance(overlay, dict) or not isinstance(spec.get("model_name"), str) or "input_size" not in overlay:
        raise ValueError(f"{path} does not describe a network: it needs model_name, and pretrained_cfg_overlay")
    foreign = [n for n in spec if n in _LOADING or (n.startswith("pretrained") and n != "pretrained_cfg_overlay")]
    foreign += [f"pretrained_cfg_overlay.{name}" for name in overlay if name not in _DESCRIBING]
    if foreign:
        raise ValueError(
            f"{path}: selfcluster does not write {', '.join(foreign)} there; such entries may load other files or "
            "open internet connections. Remove them, or export the network again."
        )
    if (folder / WEIGHTS).is_file():
        hashes = _hashes(folder / WEIGHTS)
        if hashes and hashes[0] != _digest(spec):
            raise ValueError(
                f"{path} and {WEIGHTS} beside it do not belong together: one was edited, or an export was "
                "interrupted. Export the network again."
            )
    return spec


def _digest(spec: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def _tensors_digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_weights(file: Path) -> str | None:
    """What is wrong with the tensors of a safetensors file, in words; empty: nothing. None: it has no hash of them.

    Raises:
        ValueError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {reason_of(error)}") from error
    hashes = _hashes(file)
    if len(hashes) < 2:
        return None
    return "" if hashes[1] == _tensors_digest(state) else "its tensors are not those that were written"


def _hashes(weights: Path) -> list[str]:
    """Those of the description and of the tensors, in a file's header; empty where it has none or cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "pt") as file:
            return (file.metadata() or {}).get(_HASH, "").split()
    except (SafetensorError, OSError):
        return []


def load_backbone(path: str | Path) -> tuple[Backbone, tuple[float, ...], tuple[float, ...], int]:
    """Read what `save_backbone` wrote.

    Args:
        path: the folder, or either of the two files in it.

    Returns:
        The network in evaluation mode, mean, std (one number a channel) and the side of its images in pixels.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the two do not belong together, or the description would load something else.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    for needed in (folder / ARCHITECTURE, folder / WEIGHTS):
        if not needed.is_file():
            raise FileNotFoundError(f"{path} is not an export: {needed} is missing")
    spec = read_description(folder)
    check_name(full_name(spec))
    overlay = spec["pretrained_cfg_overlay"]
    channels, size, _ = overlay["input_size"]
    module = _create(spec, {}, checkpoint_path=str(folder / WEIGHTS))
    module = _with_edges(module)
    _measure(module, channels, size)
    module.load_report = ""
    return module.eval(), tuple(overlay["mean"]), tuple(overlay["std"]), size


def untrained_backbone(folder: str | Path) -> Backbone:
    """Return the network that `save_backbone` described in a folder, with new random weights, in training mode.

    Raises:
        FileNotFoundError: the folder has no description.
        ValueError: the description would load something else.
    """
    path = Path(folder) / ARCHITECTURE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not an export: {path} is missing")
    spec = read_description(Path(folder))
    check_name(full_name(spec))
    channels, size, _ = spec["pretrained_cfg_overlay"]["input_size"]
    module = _with_edges(_create(spec, {}))
    _measure(module, channels, size)
    module.load_report = ""
    return module


def preprocessing_of(module: nn.Module) -> Preprocessing:
    """Return how the images of a network from `make_backbone` or `load_backbone` are prepared."""
    spec: Any = getattr(module, "_orig_mod", module).spec
    return from_config(spec["pretrained_cfg_overlay"])


@torch.no_grad()
def probe(module: Backbone, channels: int, size: int) -> Tensor:
    """What the network gives for an image of zeros, (1, C, size, size).

    Raises ValueError where it cannot process such images: a transformer wants whole patches, some networks one size.
    """
    training = module.training
    first = next(module.parameters())
    try:
        return module.eval()(torch.zeros(1, channels, size, size, device=first.device, dtype=first.dtype))
    except (RuntimeError, AssertionError, ValueError) as error:
        name = module.spec["model_name"]
        raise ValueError(f"{name} cannot process images of {channels} x {size} x {size}: {error}") from error
    finally:
        module.train(training)


def final_relu(network: nn.Module, features: Tensor) -> Tensor:
    """Its features as a linear layer wants them: behind the last ReLU, which some networks' features stop before."""
    return features.relu() if getattr(network, "stops_before_relu", False) else features


def _create(spec: dict[str, object], optional: dict[str, object], **once: Any) -> Any:
    """timm's module, with as many of the optional arguments as its class takes; they become part of its spec."""
    import timm

    while True:
        try:
            module: Any = timm.create_model(**spec, **optional, **once)
        except TypeError as error:
            # only the class knows its arguments, and it refuses before it has built anything
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused is None:
                raise
            if refused[1] not in optional:
                flag = {"drop_path_rate": "drop_path"}.get(refused[1], refused[1])
                raise ValueError(f"{spec['model_name']} takes no {flag}") from error
            optional = {k: v for k, v in optional.items() if k != refused[1]}
        else:
            module.spec = spec | optional
            return module


def _check_patches(side: int | None, image_size: int) -> None:
    """Raise ValueError where images do not divide into patches of `side` pixels; timm's error names no way out."""
    if side is None or image_size % side == 0:
        return
    below = image_size // side * side
    sizes = " or ".join(str(size) for size in (below, below + side) if size)
    raise ValueError(
        f"--patch-size {side}: the image size, {image_size} px, is not a multiple of it; use --image-size {sizes}"
    )


def _with_edges(module: Backbone) -> Backbone:
    """With the filters before it that the notes in its spec speak of."""
    said = [note for note in module.spec["pretrained_cfg_overlay"].get("notes", ()) if note.startswith(_EDGES)]
    return put_before(module, int(said[0].removeprefix(_EDGES))) if said else module


def _measure(module: Backbone, channels: int, size: int) -> None:
    """Set num_features to what really comes out: some of timm's networks have a wider layer behind it."""
    features = probe(module, channels, size)
    if features.dim() != 2:
        raise ValueError(
            f"{module.spec['model_name']} gives {tuple(features.shape)} for an image where one row of features is "
            "needed; ask for another global_pool"
        )
    module.num_features = features.shape[1]


def _weights_file(init: str | Path) -> Path:
    return Path(init) / WEIGHTS if Path(init).is_dir() else Path(init)


def _plain(spec: Mapping[str, object]) -> dict[str, Any]:
    """The spec as JSON gives it back, so that what is saved is what was built."""
    return json.loads(json.dumps(spec))
