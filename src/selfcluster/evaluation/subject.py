"""The subject of an evaluation: a network, its features of labeled images, and a run's clusters, each made on demand.

N training images, M test images, F features.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfcluster import randomness
from selfcluster.data.sources import Source, open_source
from selfcluster.evaluation.clustering import check_k
from selfcluster.evaluation.labeled import SEVERAL
from selfcluster.files import COPY_RUN, make_writable, write_atomically
from selfcluster.models.origin import check_word
from selfcluster.models.pretrained import Network
from selfcluster.runs.folder import RunError, is_run
from selfcluster.runs.tables import CLUSTERS, EMBEDDINGS, ClusterTable, image_names, read_clusters, read_embeddings
from selfcluster.settings.files import part_of, reading_of, run_config
from selfcluster.training.features import embed_source
from selfcluster.training.load import has_method, load_network, own_clusters, projected
from selfcluster.training.precision import pick_device

_CACHE = "evaluations/features"


@dataclass(frozen=True)
class LabeledFeatures:
    """Features (n, F) float32 of images; labels (n,) with -1 = none, or (n, L) of 0 and 1.

    `rows` (n,) are the images' positions in their source, `class_names` what labels number.
    """

    vectors: np.ndarray
    labels: np.ndarray | None
    ids: list[str]
    paths: list[str]
    class_names: list[str] | None
    rows: np.ndarray

    def take(self, rows: np.ndarray) -> LabeledFeatures:
        """Return some of the images."""
        labels = None if self.labels is None else self.labels[rows]
        ids, paths = ([names[i] for i in rows] for names in (self.ids, self.paths))
        return LabeledFeatures(self.vectors[rows], labels, ids, paths, self.class_names, self.rows[rows])


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network or a run, with the images to measure it on.

    Args:
        model: a run folder, or any name that `load_network` takes.
        train: labeled images; None: those of the run.
        test: labeled images to score on; None: a seeded share of `train` is held out.
        split: the held-out share.
        labels_from: source of the labels, see `open_source`; None: as in the run, else the folders' names.
        labeled: the protocol needs labels. If False, folders' names are labels only if `labels_from` says so.
        several: the protocol takes several labels per image.
        seed: of the split and of all other random draws.
        layer: a module of the network whose output is taken; None: the network's features.
        image_size: side of the images; None: the network's own.
        limit, test_limit: use only this many training and test images, drawn by the seed. If a test share is held out,
            `limit` counts the images before the split, and `test_limit` the images that are held out.
        embedding: further arguments of `embed_source`.
    """

    model: str
    train: Any = None
    test: Any = None
    split: float = 0.2
    labels_from: str | None = None
    labeled: bool = True
    several: bool = True
    seed: int = 0
    layer: str | None = None
    image_size: int | None = None
    limit: int | None = None
    test_limit: int | None = None
    embedding: Mapping[str, Any] = field(default_factory=dict)
    subset: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.split < 1:
            raise ValueError(f"--split {self.split}: must be a share between 0 and 1")
        if self.test_limit is not None and self.test_limit < 1:
            raise ValueError(f"--test-limit {self.test_limit}: must be at least 1")
        if self.train is None and self.test is None:
            self._check_train()

    def _check_train(self) -> None:
        if self.train is None and self.run is None:
            check_word(self.model, "images, ")
            raise RunError(f"{self.model} is not a run folder, so it has no images of its own: name some with --train")

    @property
    def run(self) -> Path | None:
        """The run folder, or None if the model is not a run."""
        return Path(self.model) if is_run(Path(self.model)) else None

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The run's configuration; empty if the model is not a run."""
        return {} if self.run is None else run_config(self.run)

    def describe(self) -> dict[str, object]:
        """Return what was measured, as JSON."""
        plain = {name: None if (value := getattr(self, name)) is None else str(value) for name in ("train", "test")}
        numbers = {name: getattr(self, name) for name in ("seed", "layer", "image_size", "limit", "test_limit")}
        split = None if self.test is not None else self.split
        return {"model": self.model, **plain, **numbers, "split": split, "labels_from": self.labels_from}

    def source(self, part: str = "train") -> Source:
        """Return the images of a part, "train" or "test", with their labels."""
        own = self.train is None
        if part == "train":
            self._check_train()
        images = self.test if part == "test" else self.config["data"] if own else self.train
        chosen = part_of(self.config) if own and part == "train" else reading_of(self.config)
        if own and part == "test" and self.config.get("classes"):
            chosen["classes"] = self.config["classes"]
        usual = "labels" if str(images).startswith("builtin:") else "folders" if self.labeled else None
        labels_from = self.labels_from or chosen.get("labels_from") or usual
        limit = self.test_limit if part == "test" else self.limit
        limits = {} if limit is None else {"limit": limit, "seed": self.seed}
        source = open_source(images, **{**chosen, **self.subset, **limits, "labels_from": labels_from})
        if self.labeled and source.labels is not None and source.labels.ndim == 1:
            self._unlabeled[part] = int((source.labels < 0).sum()), len(source)
        return source

    @functools.cached_property
    def _unlabeled(self) -> dict[str, tuple[int, int]]:
        """By part: how many of its images have no label, and how many images it has."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each part some of whose images have no label."""
        return tuple(
            f"{count:,} of {total:,} {'' if self.test is None else part + ' '}images have no label and were left out."
            for part, (count, total) in self._unlabeled.items()
            if count
        )

    def refuse_test(self, protocol: str) -> None:
        """Raise ValueError where test images are named for a protocol that takes none."""
        if self.test is not None:
            raise ValueError(f"--test has no effect on {protocol}, which takes the images of --train; leave --test out")

    def folder(self, protocol: str, layout: str) -> Path:
        """Return the folder of a protocol that takes one, of --test or of --train; raise ValueError for none or two."""
        if self.test is not None and self.train is not None:
            raise ValueError(f"{protocol}: --train and --test both name a folder in {layout}; leave --train out")
        where = self.test if self.test is not None else self.train
        if not isinstance(where, str | os.PathLike):
            raise ValueError(f"{protocol}: name a folder in {layout} with --test")
        return Path(where)

    def network(self, source: Source | None = None) -> Network:
        """Return a new copy of the network. An untrained one gets its weights by the seed, its size by `source`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.key(self.seed, "untrained") >> 1)
            return load_network(self.model, self.image_size, source)

    def network_on_device(self) -> tuple[Network, torch.device]:
        """Return the network, new at each call, on the requested device; and that device."""
        network, device = self.network(), pick_device(self.embedding.get("device", "auto"))
        network.module.to(device)
        return network, device

    @functools.cached_property
    def all_features(self) -> LabeledFeatures:
        """All training images, before a test share is held out."""
        return self.features("train")

    @functools.cached_property
    def parts(self) -> tuple[LabeledFeatures, LabeledFeatures]:
        """Training and test images; the test labels have the numbers of the training labels.

        A test image of a class that training lacks gets a new, higher number, and counts as an error.
        """
        train = self.source("train")
        self.check_labels(train, "train", classes=2)
        test = None if self.test is None else self.source("test")
        if test is None:
            images = self._embedded(train)
            kept, held = held_out(len(images.ids), self.split, self.seed, self.test_limit)
            return images.take(kept), images.take(held)
        self.check_labels(test, "test")  # before any image is embedded
        images = self._embedded(train)
        return images, renumbered(self._embedded(test), images.class_names)

    @functools.cached_property
    def sources(self) -> tuple[Source, Source]:
        """Labeled training and test images, numbered as in `parts`; nothing is embedded."""
        train = self.source("train")
        if train.labels is None:
            raise ValueError(f"{train.where} has no labels; say where they are with --labels-from")
        if self.test is None:
            kept, held = held_out(len(train), self.split, self.seed, self.test_limit)
            return train.take(kept), train.take(held)
        test = self.source("test")
        if test.labels is not None and test.class_names is not None and train.class_names is not None:
            test.labels, test.class_names = renumbered_labels(test.labels, test.class_names, train.class_names)
        return train, test

    def features(self, part: str = "train", layer: str | None = None) -> LabeledFeatures:
        """Return features of the images of a part; those of a run are kept in its folder and reused."""
        source = self.source(part)
        self.check_labels(source, part)
        return self._embedded(source, layer)

    def check_labels(self, source: Source, part: str, classes: int = 0) -> None:
        """Raise ValueError where a protocol that needs labels cannot use those of a part, "train" or "test".

        `classes`: so many different labels are needed; 0: any number.
        """
        if not self.labeled:
            return
        y = source.labels
        if y is None:
            raise ValueError(f"{part}: {source.where} has no labels; say where they are with --labels-from")
        if y.ndim == 2 and not self.several:
            raise ValueError(f"{part}: {SEVERAL}")
        if not (y > 0).any() if y.ndim == 2 else not (y >= 0).any():
            raise ValueError(f"{part}: none of the {len(source)} images has a label")
        if y.ndim == 1 and len(found := np.unique(y[y >= 0])) < classes:
            raise ValueError(f"{part} has one class only, {found[0]}: at least two are needed")

    def _embedded(self, source: Source, layer: str | None = None) -> LabeledFeatures:
        index, vectors = self._cached(source, layer or self.layer)
        ids, paths = image_names(source, index)
        labels = None if source.labels is None else source.labels[index]
        return LabeledFeatures(vectors, labels, ids, paths, source.class_names, index)

    def _cached(self, source: Source, layer: str | None) -> tuple[np.ndarray, np.ndarray]:
        arguments = {"max_bad": self.config.get("max_bad", 0.01), **self.embedding}
        if self.run is None:
            return _finite(*embed_source(source, self.network(source), layer=layer, **arguments), self.model)
        if layer is None and self.image_size in (None, self.config["image_size"]):
            known = self._from_run(source)
            if known is not None:
                return known
        weights = (self.run / "backbone.safetensors").stat() if (self.run / "backbone.safetensors").exists() else None
        stamp = None if weights is None else (weights.st_size, weights.st_mtime_ns)
        key = json.dumps([stamp, source.fingerprint, len(source), layer, self.image_size])
        file = self.run / _CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        if stamp is not None and file.exists():
            try:
                with np.load(file, allow_pickle=False) as stored:
                    return stored["index"], stored["vectors"]
            except (OSError, ValueError, KeyError):
                file.unlink()
        if stamp is not None:
            make_writable(file.parent, COPY_RUN)
        index, vectors = _finite(*embed_source(source, self.network(source), layer=layer, **arguments), self.model)
        if stamp is not None:
            size = index.nbytes + vectors.nbytes

            def write(temporary: Path) -> None:
                with temporary.open("wb") as stream:  # a name without .npz, which NumPy would append
                    np.savez(stream, index=index, vectors=vectors)

            write_atomically(file, write, size)
        return index, vectors

    def _from_run(self, source: Source) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the features that training wrote, if they cover all images of the source that can be read."""
        file = (self.run or Path()) / EMBEDDINGS
        if self.train is not None or source.location != self.config["data"] or not file.is_file():
            return None
        table = read_embeddings(file)
        place = {name: row for row, name in enumerate(table.ids)}
        rows = np.array([place.get(name, -1) for name in source.ids])
        index = np.flatnonzero(rows >= 0)
        # the run's own images: training could not read those that its table lacks
        whole = len(source) == self.config["about"]["source"]["images"] and len(index) == len(table.ids)
        complete = whole or len(index) == len(source)
        if not complete:
            return None
        in_order = np.array_equal(rows[index], np.arange(len(table.ids)))  # then a copy is saved
        return index, table.vectors if in_order else table.vectors[rows[index]]

    def clusters(self) -> ClusterTable:
        """Return the run's clusters; raise ValueError if the model is not a run or has no clusters."""
        if self.run is None or not (self.run / CLUSTERS).exists():
            raise ValueError(f"{self.model} has no clusters of its own; give the number of k-means clusters with --k")
        return read_clusters(self.run / CLUSTERS)

    def check_clusters(self, k: int | None) -> None:
        """Raise ValueError where k-means cannot make k clusters of the images, or, for None, a run has none."""
        if k is None:
            self.clusters()
        else:
            check_k(k, len(self.source()))

    def assigned(self, images: LabeledFeatures) -> np.ndarray:
        """Return the clusters (n,) of images from the run's table.

        Images that are not in the table, or that were embedded at another size, get the clusters that the run's method
        assigns to their features. Raises ValueError if it cannot.
        """
        of = self.clusters().by_id()
        missing = [name for name in images.ids if name not in of]
        same_size = self.layer is not None or self.image_size in (None, self.config.get("image_size"))
        if same_size and not missing:
            return np.array([of[name] for name in images.ids])
        if self.run is None or self.layer is not None or not has_method(self.run) or (same_size and self.train is None):
            what = (
                f"cluster for {missing[0]} ({len(missing)} images)" if missing else "clusters at another --image-size"
            )
            raise ValueError(f"{self.model} has no {what}; give the number of k-means clusters with --k")
        return own_clusters(self.run, images.vectors)[0]

    def projected(self, vectors: np.ndarray) -> np.ndarray:
        """Return features in the space in which the run's method compares images; unchanged for other models."""
        return vectors if self.run is None else projected(self.run, vectors)


def _finite(index: np.ndarray, vectors: np.ndarray, model: str) -> tuple[np.ndarray, np.ndarray]:
    bad = int((~np.isfinite(vectors)).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{model}: the features of {bad} of {len(vectors)} images are not finite, so they cannot be scored"
        )
    return index, vectors


def held_out(n: int, share: float, seed: int, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows kept and the rows held out, both sorted; at least one of each.

    `limit`: return only this many held-out rows, the first in the seeded order; the others are in neither part.
    """
    if n < 2:
        raise ValueError(f"{n} image cannot be divided into training and test images; name test images with --test")
    order = np.random.default_rng(seed).permutation(n)
    held = min(n - 1, max(1, round(n * share)))
    return np.sort(order[held:]), np.sort(order[: held if limit is None else min(held, limit)])


def renumbered(features: LabeledFeatures, class_names: list[str] | None) -> LabeledFeatures:
    """Return the features with labels numbered by `class_names`; new classes get the next numbers."""
    if features.labels is None or class_names is None or features.class_names is None:
        return features
    labels, names = renumbered_labels(features.labels, features.class_names, class_names)
    return replace(features, labels=labels, class_names=names)


def renumbered_labels(labels: np.ndarray, names: list[str], class_names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return labels (n,) or (n, L) of `names` numbered by `class_names`, and the names, new ones at the end."""
    numbers = {name: number for number, name in enumerate(class_names)}
    place = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    if labels.ndim == 2:
        wide = np.zeros((len(labels), len(numbers)), labels.dtype)
        wide[:, place] = labels
        return wide, list(numbers)
    return np.where(labels >= 0, place[labels], -1), list(numbers)
