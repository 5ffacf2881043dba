"""Choose device and precision: bf16 autocast if the hardware multiplies in bf16, on CPUs too."""

from __future__ import annotations

import os

import torch

from selfcluster.devices import has_amx, multiplies_bfloat16

PRECISIONS = ("auto", "bf16", "fp32")


def pick_device(name: str = "auto") -> torch.device:
    """Return a device. `auto` is this process's CUDA device if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: choose auto, cpu, cuda or cuda:NUMBER") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device {name}: no such device can be used here; choose auto or cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return the precision. `auto` is bf16 if the hardware multiplies in it, else fp32: emulated bf16 is slower."""
    # measured on two AMX cores: ResNet-18 at 32 px, forward and backward, 153 images/s against 38 in fp32
    return ("bf16" if multiplies_bfloat16(device) else "fp32") if name == "auto" else name


def prefers_products(device: torch.device, precision: str) -> bool:
    """Return whether some convolutions should be matrix products, see `models/convolution.py`."""
    return device.type == "cpu" and (precision == "fp32" or has_amx())


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for a forward."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
