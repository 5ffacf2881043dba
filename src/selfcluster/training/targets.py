"""Make the targets that `supervised` and `clusterfit` predict, once, from labels or from a teacher's features.

They are stored in the run folder as `targets.npy`, (T, N) int64; a resumed run reads this file.
k-means gets each rank's share of the rows, uses all shares together, and returns labels of this rank's share.
T targets per image (one per teacher), N images, n on this rank, F features, K clusters, L labels; -1 = none.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfcluster import distributed, randomness
from selfcluster.choice import RunSettings
from selfcluster.clustering.assign import unit_rows
from selfcluster.data.loader import Loader
from selfcluster.data.sources import Source
from selfcluster.files import reason_of, write_atomically
from selfcluster.methods.clusterfit import allot, cluster, cluster_by_label, prototypes
from selfcluster.models.backbones import ARCHITECTURE, load_backbone, make_backbone, preprocessing_of
from selfcluster.models.frozen import Frozen
from selfcluster.models.initialize import OtherInput, read_classifier
from selfcluster.models.origin import STARTER, TIMM, starter_file
from selfcluster.models.pretrained import Network, describe, load_network
from selfcluster.runs.checkpoint import load_newest
from selfcluster.runs.console import Console
from selfcluster.runs.folder import CHECKPOINTS, RunError, is_run
from selfcluster.settings.requirements import AT_EACH_STEP, check_needs, layers_in, means_a_path, teachers_in
from selfcluster.training.embedding import make_embed
from selfcluster.training.precision import pick_device, pick_precision
from selfcluster.training.state import section

TARGETS_FILE = "targets.npy"


def make_targets(
    config: RunSettings, source: Source, run: Path, console: Console, train: Callable[..., object]
) -> None:
    """Write the run's `targets.npy` if its method needs one and there is none yet. All ranks take part.

    `train(config=, out=)` trains a run with a configuration; it is used for the earlier rounds of ClusterFit.
    """
    there = distributed.broadcast_object((run / TARGETS_FILE).is_file())
    if config["method"] not in ("supervised", "clusterfit") or there:
        return
    check_needs(config["method"], config, source)
    if config.get("rounds", 1) > 1:
        before = run / "before"
        train(config={**config, "rounds": config["rounds"] - 1}, out=before)
        distributed.broadcast_object(None)  # the first rank has written that round's network
        config = {**config, "teacher": str(before), "teacher_layer": None}
    labels = np.full(len(source), -1)
    if source.labels is not None and source.labels.ndim == 1:
        labels = source.labels
    if config.get("target") == "per_label":
        # an error should come before the teacher embeds the images
        allot(np.bincount(labels[labels >= 0]), config["num_prototypes"])
    targets = labels[None]
    if config["method"] == "clusterfit":
        targets = np.stack([_targets(*of, config, source, labels, console) for of in _teachers(config)])
    if distributed.rank() == 0:
        content = io.BytesIO()
        np.save(content, targets.astype(np.int64))
        write_atomically(run / TARGETS_FILE, content.getvalue())
    distributed.broadcast_object(None)  # no rank reads the file before it is written


def read_targets(run: Path | None, num_images: int) -> Tensor | None:
    """Return the targets (T, N), or None if the run has none; raise RunError if the file is damaged."""
    if run is None or not (run / TARGETS_FILE).is_file():
        return None
    try:
        targets = np.load(run / TARGETS_FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{run / TARGETS_FILE}: cannot be read ({reason_of(error)})") from error
    if targets.ndim != 2 or targets.dtype != np.int64 or targets.shape[1] != num_images:
        raise RunError(f"{run / TARGETS_FILE}: {targets.dtype} {targets.shape} are not targets of {num_images} images")
    return torch.from_numpy(targets)


def teachers_of(config: RunSettings, mean: Sequence[float], std: Sequence[float]) -> list[Frozen] | None:
    """Return the teachers that the method runs at each step, on views normalized by `mean` and `std`; None if none."""
    if config["method"] != "clusterfit" or config["target"] not in AT_EACH_STEP:
        return None
    return [open_teacher(name, config, layer, mean, std) for name, layer in _teachers(config)]


def open_teacher(
    name: str,
    config: RunSettings,
    layer: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    console: Console | None = None,
) -> Frozen:
    """Return the network of `--teacher`: starter, timm:NAME, a run, an export, FILE, NETWORK=FILE, or a timm name.

    A plain timm name means random weights. NETWORK=FILE gets timm's image size for the network. `mean` and `std`: those
    by which the views are normalized that the teacher gets at each step.
    """
    classifier, distills = None, config["target"] == "distill"
    found = _published(name)
    if found is not None:
        network = found.module
        if distills:
            file = starter_file() if name == STARTER else Path(name if Path(name).exists() else name.partition("=")[2])
            classifier = read_classifier(network, file)
        if console is not None:
            console.say(f"{name}: {describe(found)}")
    elif Path(name).exists():
        network = load_backbone(name)[0]
        classifier = _classifier(Path(name)) if distills else None
    else:
        import timm

        network_name, _, weights = name.partition("=")
        if not weights and means_a_path(name):
            raise RunError(f"--teacher {name} is missing, but the run still needs it; restore it")
        known = timm.get_pretrained_cfg(network_name) if weights else None
        size = known.input_size[1] if known else config["image_size"]
        torch.manual_seed(randomness.key(config["seed"], "teacher") >> 1)
        make = partial(
            make_backbone,
            network_name,
            # gray images get the teacher's number of channels
            channels=known.input_size[0] if known else config["channels"],
            image_size=size,
            init=weights or None,
            mean=known.mean if known else None,
            std=known.std if known else None,
        )
        try:
            network = make()
        except OtherInput:
            network = make(sobel=True)
        if console is not None and weights:
            console.say(f"{name}: {network.load_report}")
        elif console is not None:
            console.warn(f"{name} is an untrained network; give --teacher {name}=WEIGHTS-FILE for a trained one")
    return Frozen(network, layer=layer, classifier=classifier, mean=mean, std=std)


def _published(name: str) -> Network | None:
    """The network of a word, prepared as its authors do; None for one that selfcluster saved or that sees edges."""
    if Path(name).exists():
        return None if _is_saved(Path(name)) else load_network(name)
    if name == STARTER or name.startswith(TIMM):
        return load_network(name)
    import timm

    network_name, _, weights = name.partition("=")
    if not weights or timm.get_pretrained_cfg(network_name) is None:
        return None
    try:
        return load_network(name)
    except OtherInput:
        return None


def _is_saved(path: Path) -> bool:
    """Whether selfcluster saved this network, as a run or an export, with its description beside the weights."""
    return ((path if path.is_dir() else path.parent) / ARCHITECTURE).is_file() or is_run(path)


def _classifier(run: Path) -> torch.nn.Linear | None:
    loaded, _ = load_newest(run / CHECKPOINTS) if is_run(run) else (None, [])
    if loaded is None:
        raise RunError(f"--target distill: {run} has no checkpoint, so there is no classifier")
    weights = section(loaded.tensors, "method.heads.0.")
    head = torch.nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
    head.load_state_dict(weights)
    return head


def _teachers(config: RunSettings) -> list[tuple[str, str | None]]:
    """Return each teacher with its layer."""
    names = teachers_in(config["teacher"])
    return list(zip(names, layers_in(config["teacher_layer"], len(names)), strict=True))


def _targets(
    teacher: str, layer: str | None, config: RunSettings, source: Source, labels: np.ndarray, console: Console
) -> np.ndarray:
    """Return the targets (N,) of one teacher."""
    kind = config["target"]
    if kind in AT_EACH_STEP:
        return labels if kind == "distill" else np.full(len(source), -1)
    rows, index = teacher_rows(open_teacher(teacher, config, layer, console=console), source, config)
    mine = torch.from_numpy(labels)[index.cpu()].to(rows.device)
    if kind == "prototypes":
        found = prototypes(rows, mine)
    else:
        found = cluster(rows, index, config) if kind == "kmeans" else cluster_by_label(rows, index, mine, config)
    targets = torch.full((len(source),), -1)
    targets[distributed.all_gather(index).cpu()] = distributed.all_gather(found).cpu()
    sizes = torch.bincount(targets[targets >= 0])
    sizes = sizes[sizes > 0]
    console.say(f"{teacher}: {len(sizes)} targets of {int(sizes.min())} to {int(sizes.max())} images")
    return targets.numpy()


def teacher_rows(teacher: Frozen, source: Source, config: RunSettings) -> tuple[Tensor, Tensor]:
    """Return unit features (n, F) of the center crops of this rank's images, and the positions (n,) of these images."""
    device = pick_device(config["device"])
    loader = Loader(
        source,
        **preprocessing_of(teacher.network).loader_arguments(),
        device=device,
        rank=distributed.rank(),
        world=distributed.world_size(),
        batch_size=config["batch_size"],
        workers=config["workers"],
        max_bad=config["max_bad"],
    )
    embed = make_embed(
        teacher.to(device), loader, None, device=device, precision=pick_precision(config["precision"], device)
    )
    found = embed(lambda views: teacher.features(views[0]))
    loader.close()
    return unit_rows(found.rows), found.index
