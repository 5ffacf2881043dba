"""`selfcluster doctor`: what was found on this machine, what is chosen for it, and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from types import ModuleType

HELP = "show this machine's hardware and packages, and the settings chosen for them"
_CORE = ("torch", "timm", "numpy", "scikit-learn", "pyarrow", "pillow")
_EXTRAS = {  # the module that is imported, the extra that brings it, what it is for
    "tifffile": ("tiff", "TIFF of every depth and layout"),
    "pillow_heif": ("heic", "HEIC photographs"),
    "rawpy": ("raw", "cameras' raw files"),
    "fsspec": ("remote", "addresses such as s3://"),
    "tensorboard": ("tensorboard", "curves in TensorBoard"),
    "onnx": ("onnx", "export --format onnx"),
}
_SETS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")


def doctor() -> dict[str, dict[str, str]]:
    """Return what was found on this machine and what is chosen for it, in sentences.

    Returns:
        Groups by name (versions, processor, clustering, training, networks, images, disk), each a dict from a
        name to a sentence. Nothing is written, except the compiled kernels if they have not been built yet.
    """
    import torch

    from selfcluster import __version__

    versions = {"selfcluster": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in _CORE}
    return {
        "versions": versions,
        "processor": _processor(torch),
        "clustering": _clustering(),
        "training": _training(torch),
        "networks": _networks(),
        "images": _images(),
        "disk": {"free here": f"{shutil.disk_usage(Path.cwd()).free / 1e9:,.0f} GB in {Path.cwd()}"},
    }


def _processor(torch: ModuleType) -> dict[str, str]:
    flags, name = set[str](), platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line.partition(":") for line in info.read_text("utf-8", "replace").splitlines()]
        fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        flags, name = set(fields.get("flags", "").split()), fields.get("model name", name)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {
        "name": name,
        "cores": f"{usable} of {os.cpu_count()} may be used; torch threads: {torch.get_num_threads()}",
        "instructions": ", ".join(each for each in _SETS if each in flags) or "not known here",
        "idle threads": _waiting(),
    }
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free, whole = (os.sysconf(f"SC_{part}PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9 for part in ("AV", ""))
        found["memory"] = f"{free:,.1f} GB free of {whole:,.1f} GB"
    return found


def _waiting() -> str:
    policy = os.environ.get("OMP_WAIT_POLICY")
    if policy is None:
        return "OpenMP's default, which may use the cores while it waits: OMP_WAIT_POLICY was not set"
    return (
        "sleep, so that other programs are not slowed down"
        if policy.upper() == "PASSIVE"
        else f"OMP_WAIT_POLICY={policy}"
    )


def _clustering() -> dict[str, str]:
    from selfcluster.clustering import native
    from selfcluster.compiler import INSTRUCTIONS

    wish, compiler = os.environ.get("SELFCLUSTER_NATIVE"), shutil.which("c++") or shutil.which("g++")
    chosen = native.instructions()
    if chosen is not None:
        why = f"limited by SELFCLUSTER_NATIVE={wish}" if wish in INSTRUCTIONS else "the best this processor has"
        text = f"compiled kernels, 8-bit products with {chosen}: {why}"
    elif wish == "0":
        text = "torch, because of SELFCLUSTER_NATIVE=0; the compiled kernels are several times faster"
    elif compiler is None:
        text = "torch, because there is no C++ compiler; with one (package g++) k-means is several times faster"
    else:
        text = f"torch, because the kernels do not build or run here with {compiler}: they need AVX2 and Linux"
    return {"k-means, neighbors, Sinkhorn": text}


def _training(torch: ModuleType) -> dict[str, str]:
    from selfcluster.devices import has_triton
    from selfcluster.training.precision import pick_device, pick_precision

    device = pick_device()
    precision = pick_precision("auto", device)
    has = "multiplies" if precision == "bf16" else "does not multiply"
    found = {"arithmetic": f"{precision}, because the {device.type} {has} bfloat16 in hardware"}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
        kernels = (
            "Triton kernels are used" if has_triton() else "Triton is not installed, so torch's operations are used"
        )
        return {"device": f"{torch.cuda.get_device_name(device)}, {memory:,.0f} GB; {kernels}", **found}
    from selfcluster.models.winograd import chosen

    how = "compiled kernel (Winograd)" if chosen() is not None else "torch: the compiled kernel is not used here"
    return {"device": "cpu, because torch finds no CUDA device", **found, "convolutions in fp32": how}


def _networks() -> dict[str, str]:
    from selfcluster.models.origin import starter_file

    try:
        starter_file()
        text = "installed: `selfcluster cluster photos/` works offline"
    except FileNotFoundError:
        text = "not installed: pip install 'selfcluster[starter]'"
    return {"starter": text}


def _images() -> dict[str, str]:
    from selfcluster.views.resize import has_kernel

    found = {"crop and resize": "compiled kernel" if has_kernel() else "torch: the compiled kernel is not used here"}
    found |= {"JPEG, PNG, WebP, GIF, BMP": f"Pillow {_version('pillow')}"}
    for module, (extra, use) in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        found[use] = f"{module} {_version(module)}" if there else f"not installed: pip install 'selfcluster[{extra}]'"
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.set_defaults(run_command=run_command)


def run_command() -> tuple[object, str]:
    found = doctor()
    width = max(len(name) for rows in found.values() for name in rows)
    parts = [
        f"{group}\n" + "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())
        for group, rows in found.items()
    ]
    return found, "\n".join(parts)
