"""Pictures of what a vision transformer looks at: one a head, and the image with the rest of it dimmed.

H heads, h x w patches, S side of the image in pixels. Drawn with Pillow, enlarged where the image is small.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from selfcluster.choice import RunSettings
from selfcluster.data.decode import BadImage, decode
from selfcluster.data.ranges import ValueRange
from selfcluster.files import make_writable, reason_of
from selfcluster.reporting.thumbnails import write_picture
from selfcluster.runs.folder import CHECKPOINTS, RunError, is_run, read_config
from selfcluster.settings.files import run_config

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from selfcluster.models.backbones import Backbone
    from selfcluster.models.preprocessing import Preprocessing

# timm 1.0.31's networks with plain attention, plain patches and a class token, and the kinds that lack one of these
_CLASS_TOKEN = re.compile(r"vit_|deit|flexivit_|beit3_|eva_large_|test_vit$")
_OTHERS = re.compile(
    r"_gap|siglip|rope|relpos|_rpn|_xp_|_pe_|dinov3|sapiens|lingbot|_mci_|18x2|_r\d*_s\d|resnet|reg4_map"
)
_ARCHITECTURE = "backbone.json"  # `models/backbones.py` has the name, too, but loads torch
_SIDE = 224  # pixels: smaller images are enlarged to this, or patches could not be told apart
_HEAT = 0.6  # share of the colors where they lie over a gray image
_DIM = 0.2  # brightness of what is outside the mask
# from little attention to much; lightness rises evenly, so that a gray print says the same
_SCALE = np.array([[13, 8, 35], [92, 25, 98], [178, 52, 84], [238, 122, 60], [252, 245, 184]], dtype=np.float64)


def write_attention(
    run: Path, files: Sequence[Path], out: Any, share: float, image_size: int | None, device: str
) -> dict[str, object]:
    """Show image files to the network of `run` and draw what it looks at; see `api.attention`."""
    if not files:
        raise ValueError("attention: name at least one image file")
    if not 0 < share <= 1:
        raise ValueError(f"--share {share:g}: must be above 0 and at most 1")

    from selfcluster.models.attention import mass_mask

    folder = Path(out) if out is not None else run / "attention" if run.is_dir() else Path("attention")
    images, look = _open(run, image_size, device)
    make_writable(folder)
    used = ValueRange.of(read_config(run).get("range") if is_run(run) else None)
    stems = [file.stem for file in files]
    pictures: list[Path] = []
    heads, grid = 0, (0, 0)
    for number, file in enumerate(files):
        try:
            decoded = decode(file.read_bytes(), channels=images.channels, value_range=used)
        except (BadImage, OSError) as error:
            raise ValueError(f"{file}: {reason_of(error)}; name image files") from error
        pixels, maps, grid = look(decoded)
        heads = len(maps)
        name = file.stem if stems.count(file.stem) == 1 else f"{number}-{file.stem}"
        pictures += draw_attention(pixels, maps.numpy(), mass_mask(maps.mean(dim=0), share).numpy(), folder, name)
    return {"out": str(folder), "heads": heads, "grid": list(grid), "pictures": [str(path) for path in pictures]}


def _open(
    run: Path, image_size: int | None, device: str
) -> tuple[Preprocessing, Callable[[np.ndarray], tuple[np.ndarray, Tensor, tuple[int, int]]]]:
    """How the network of `run` takes images, and a function from an image (height, width, C) to what the network saw
    of it (S, S, C), its maps (H, h, w) and h, w."""
    import torch

    from selfcluster.models.attention import class_maps, last_attention
    from selfcluster.training.precision import pick_device
    from selfcluster.views.crops import center

    module, images = _network(run, image_size)
    target = pick_device(device)
    network = module.to(target).eval()
    offset, scale = torch.tensor(images.mean)[:, None, None], torch.tensor(images.std)[:, None, None]

    def look(decoded: np.ndarray) -> tuple[np.ndarray, Tensor, tuple[int, int]]:
        pixels = center(decoded, images.image_size, images.interpolation, images.crop_pct, images.crop_mode)
        image = (torch.from_numpy(pixels) / 255 - offset) / scale
        whole, grid = last_attention(network, image[None].to(target))
        return pixels.transpose(1, 2, 0), class_maps(whole, grid)[0].cpu(), grid

    return images, look


def _network(run: Path, image_size: int | None) -> tuple[Module, Preprocessing]:
    """A run's network: the exported one; else that of its newest checkpoint, or the one that embedded its images."""
    from selfcluster.training.load import has_method, load_network, trained_method

    if (run / _ARCHITECTURE).exists() or not is_run(run):
        opened = load_network(str(run), image_size)
        return opened.module, opened.preprocessing
    config = run_config(run)
    if not has_method(run):
        opened = load_network(config["model"], image_size or config.get("image_size"))
        return opened.module, opened.preprocessing
    from selfcluster.models.folding import for_images
    from selfcluster.models.preprocessing import resized
    from selfcluster.training.build import run_preprocessing

    images = run_preprocessing(cast(RunSettings, config))  # `run_config` has checked them
    module, _ = for_images(cast("Backbone", trained_method(run)[0].exported()))
    return module, images if image_size is None else resized(images, image_size)


def is_transformer(run: Path) -> bool:
    """Whether the network of a run is a vision transformer with a class token, by its name; nothing is loaded."""
    name = _network_name(run)
    return name is not None and bool(_CLASS_TOKEN.match(name)) and not _OTHERS.search(name)


def _network_name(run: Path) -> str | None:
    """The architecture that is exported, or else the one that is being trained or embedded the images."""
    try:
        return str(json.loads((run / _ARCHITECTURE).read_text("utf-8"))["model_name"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        config = read_config(run)
        if config.get("method") is None:
            return str(config["about"]["input"]["architecture"])
        return str(config["backbone"]) if any((run / CHECKPOINTS).glob("step-*")) else None
    except (RunError, KeyError, TypeError):
        return None


class AttentionPictures:
    """Pictures of what the network of a run looks at, the mean of its heads over the image; loaded at the first one.

    Calls from several threads take turns.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._lock, self._opened = run, threading.Lock(), None

    def picture(self, read: Callable[[int], np.ndarray]) -> bytes:
        """Return a square picture as PNG.

        Args:
            read: gives the image (height, width, C) uint8 for a number of channels C.

        Raises:
            ValueError: the network has no such attention.
        """
        with self._lock:
            if self._opened is None:
                self._opened = _open(self._run, None, "cpu")
            images, look = self._opened
            pixels, maps, _ = look(read(images.channels))
        side = max(_SIDE, pixels.shape[0])
        seen = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)).convert("L")
        heat = Image.fromarray(colored(maps.mean(dim=0).numpy())).resize((side, side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        Image.blend(seen.resize((side, side)).convert("RGB"), heat, _HEAT).save(buffer, "PNG")
        return buffer.getvalue()


def draw_attention(image: np.ndarray, maps: np.ndarray, mask: np.ndarray, folder: Path, name: str) -> list[Path]:
    """Write `NAME-head-1.png` to `NAME-head-H.png` and `NAME-mask.png`.

    Args:
        image: (S, S, 1 or 3) uint8, what the network saw.
        maps: (H, h, w), attention from the class token.
        mask: (h, w) booleans, the patches that hold most of it.
        folder: made if it does not exist.
        name: how the files' names begin.

    Returns:
        The files, in this order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = (max(_SIDE, image.shape[1]), max(_SIDE, image.shape[0]))
    files = []
    for number, grid in enumerate(maps, start=1):
        files.append(folder / f"{name}-head-{number}.png")
        write_picture(Image.fromarray(colored(grid)).resize(size, Image.Resampling.BICUBIC), files[-1])
    shown = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)).convert("RGB")
    shown = np.asarray(shown.resize(size, Image.Resampling.NEAREST if image.shape[0] < _SIDE else None))
    inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    files.append(folder / f"{name}-mask.png")
    write_picture(Image.fromarray(np.where(inside[:, :, None], shown, shown * _DIM).astype(np.uint8)), files[-1])
    return files


def colored(grid: np.ndarray) -> np.ndarray:
    """A map (h, w) as colors (h, w, 3) uint8, its least value dark and its greatest light."""
    low, high = float(grid.min()), float(grid.max())
    place = (grid - low) / (high - low) * (len(_SCALE) - 1) if high > low else np.zeros(grid.shape)
    steps = np.arange(len(_SCALE))
    return np.stack([np.interp(place, steps, _SCALE[:, c]) for c in range(3)], axis=2).round().astype(np.uint8)
