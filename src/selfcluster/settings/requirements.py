"""What a method needs beside images: labels, or a trained network. Refused in time: no torch here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfcluster.data.sources import Source
from selfcluster.runs.folder import is_run, read_config, read_status

# what ClusterFit's heads learn, and whether labels are needed for it
TARGETS = {"kmeans": False, "per_label": True, "prototypes": True, "distill": True, "regress": False}
AT_EACH_STEP = ("distill", "regress")  # the teacher is asked at each step
_TEACHER = "starter, timm:NAME, a run folder, an export, FILE, NETWORK=FILE or an untrained network's name"


def check_needs(method: str, said: Mapping[str, Any], source: Source) -> None:
    """Raise ValueError where `method` needs labels or a teacher that are not there, or cannot be used.

    `said` are the user's settings, from flags and file; what a recipe chooses has no part in it.
    """
    if method == "supervised":
        _check_labels(method, source)
    if method != "clusterfit":
        return
    target, rounds = said.get("target", "kmeans"), said.get("rounds", 1)
    if target not in TARGETS:
        near = difflib.get_close_matches(str(target), TARGETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--target {target}: choose from {', '.join(TARGETS)}{hint}")
    teachers = teachers_in(said.get("teacher"))
    if not teachers:
        raise ValueError(f"clusterfit learns from a trained network: add --teacher NETWORK. NETWORK is {_TEACHER}")
    alone = target == "distill" and said.get("distill_weight") == 1  # the teacher's predictions without labels
    for teacher in teachers:
        _check_teacher(teacher, target, alone)
    if TARGETS[target] and not alone:
        _check_labels(f"--target {target}", source)
    for teacher in teachers if target == "distill" and not alone else ():
        _check_classes(teacher, source)
    layers_in(said.get("teacher_layer"), len(teachers))
    if target == "distill" and said.get("teacher_layer"):
        raise ValueError("--teacher-layer has no effect under --target distill, which uses the teacher's classifier")
    if isinstance(rounds, int) and (rounds < 1 or (rounds > 1 and target in AT_EACH_STEP)):
        wanted = (
            "must be 1 or more" if rounds < 1 else f"--target {target} uses one fixed teacher, so --rounds must be 1"
        )
        raise ValueError(f"--rounds {rounds}: {wanted}")


def teachers_in(named: str | Sequence[str] | None) -> list[str]:
    """The teachers that --teacher names: between commas, or given several times."""
    text = named if isinstance(named, str) else ",".join(named or ())
    return [part.strip() for part in text.split(",") if part.strip()]


def layers_in(named: str | None, count: int) -> list[str | None]:
    """The layer of each of so many teachers that --teacher-layer names: one for all, or as many between commas."""
    layers = [part.strip() for part in named.split(",")] if named else [None]
    if len(layers) not in (1, count):
        raise ValueError(
            f"--teacher-layer {named} names {len(layers)} layers for {count} teachers; name one layer for all of them, "
            "or one per teacher"
        )
    return [layer or None for layer in layers] * (count if len(layers) == 1 else 1)


def means_a_path(name: str) -> bool:
    """Whether a network's name says where a file lies; timm's names of files elsewhere have a colon, too."""
    return "/" in name and ":" not in name


def _check_labels(who: str, source: Source) -> None:
    if source.labels is None:
        raise ValueError(
            f"{who} learns from labels: say where they are with --labels-from (folders, column:NAME or a CSV file)"
        )
    if source.labels.ndim != 1:
        raise ValueError(f"{who} needs one label per image, but --labels-from gives several")
    if len(np.unique(source.labels[source.labels >= 0])) < 2:
        name = (source.class_names or ["?"])[int(source.labels.max())]
        raise ValueError(
            f"{who} needs at least two classes, but with --labels-from all {len(source)} images have the label {name!r}"
        )


def _check_classes(teacher: str, source: Source) -> None:
    theirs, mine = read_config(Path(teacher)).get("about", {}).get("source", {}), source.describe()
    if theirs.get("class_names", mine["class_names"]) != mine["class_names"]:
        raise ValueError(
            f"--target distill: the {theirs['classes']} classes of {teacher} are not the {mine['classes']} here "
            f"({', '.join((source.class_names or [])[:3])}, ...); its predictions would contradict the labels. Give "
            "labels of the same classes, or use --target kmeans"
        )


def _check_teacher(teacher: str, target: str, alone: bool) -> None:
    path = Path(teacher)
    file = teacher.partition("=")[2]
    if is_run(path):
        state = read_status(path).get("state", "not begun")
        if state != "finished":
            raise ValueError(f"--teacher {teacher}: that run is {state}; finish it first")
    elif file and not path.exists() and Path(file).is_dir():
        raise ValueError(
            f"--teacher {teacher}: {file} is a folder, which already names its network; leave NETWORK= out"
        )
    elif not path.exists() and (file or "/" in teacher) and not Path(file).is_file():
        raise ValueError(f"--teacher {teacher}: there is no {file or teacher}; give {_TEACHER}")
    if target != "distill" or (alone and (teacher == "starter" or path.is_file() or Path(file).is_file())):
        return
    if not is_run(path):
        raise ValueError(
            f"--target distill: {teacher} has no classifier here; only runs of supervised have one. With "
            "--distill-weight 1 a file of public weights teaches its own classes"
        )
    method = read_config(path).get("method")
    if method != "supervised":
        raise ValueError(
            f"--target distill: {teacher} is a run of {method}, which has no classifier of the images' classes; use "
            "--target kmeans"
        )
