"""Finds the originals of manipulated copies, as in Copydays; distractors can be added.

Douze et al. 2009; Caron et al. 2021 (DINO), table 4: the class token and the generalized mean (p = 4) of the last
map are concatenated, whitened on other images, and compared by the cosine. Original and copy share the first four
characters of their names. Average precision uses the best 20 images.
Departs: the whitening subtracts the mean before it computes the covariance; DINO's code subtracts it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfcluster.evaluation.descriptors import describe_all, fit_whitening, map_of, token_and_gem
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.retrieval import retrieval_scores
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_KEY = 4  # first characters of a name, which a copy shares with its original
_BEST = 20


@dataclass(frozen=True, kw_only=True)
class CopiesSettings:
    block: str = setting("strong", "folder of copies beside original/, such as strong, jpeg/75 or crops/50")
    distractors: str | None = setting(None, "folder of further images to search, in addition to the originals")
    side: int = setting(224, "width and height of the images in pixels", least=16)
    gem_power: float = setting(4.0, "p, power of the generalized mean", least=1)
    whiten: int = setting(0, "dimensions to keep in a whitening learned on --train; 0: no whitening", least=0)


class Copies(Protocol):
    Settings = CopiesSettings
    needs = ("network",)
    labels = "none"

    def run(self, subject: Subject, settings: CopiesSettings) -> Result:
        if subject.test is None:
            raise ValueError("copies: name the folder that holds original/ and its copies with --test")
        if settings.whiten and subject.train is None:
            raise ValueError("copies: --whiten is learned on other images; name them with --train")
        root = Path(subject.test)
        originals, copies = images_in(root / "original"), images_in(root / settings.block)
        others = [] if settings.distractors is None else images_in(Path(settings.distractors))
        learned = images_in(Path(subject.train)) if settings.whiten else []
        keys = np.array([file.name[:_KEY] for file in originals])
        right = [np.flatnonzero(keys == file.name[:_KEY]) for file in copies]
        lost = next((file for file, found in zip(copies, right, strict=True) if not len(found)), None)
        if lost is not None:
            raise ValueError(f"{lost} has no original: no name in {root / 'original'} begins with {lost.name[:_KEY]!r}")
        network, device = subject.network_on_device()

        def describe(file: Path) -> Tensor:
            maps = map_of(file, network, settings.side, shape="square", layer=subject.layer, device=device)
            return token_and_gem(maps, settings.gem_power)

        database, queries = describe_all([*originals, *others], describe), describe_all(copies, describe)
        if settings.whiten:
            whitening = fit_whitening(torch.from_numpy(describe_all(learned, describe)), settings.whiten)
            database, queries = whitening.transform(database), whitening.transform(queries)
        none = [np.empty(0, np.int64)] * len(copies)
        numbers = {"map": retrieval_scores(queries @ database.T, right, none, _BEST)["map"]}
        counts = {"copies": len(copies), "originals": len(originals), "distractors": len(others)}
        return result_of("copies", {**numbers, **counts}, subject, settings)


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder and of those below, by name; raise ValueError if there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"{folder} holds no images")
    return found
