"""What a device can do, bfloat16 products in hardware and Triton kernels, and how tensors get there."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

# Triton 3.9 warns at each first launch unless this is set; our kernels allow for fused multiply-adds
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed: torch for CUDA brings it."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (has_amx() or _processor_has("avx512_bf16"))


@functools.cache
def has_amx() -> bool:
    """Return whether the processor has AMX, whose matrix products are much faster than its other bfloat16 products."""
    return _processor_has("amx_tile")


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on a device, in CUDA's case without a wait for the device."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not x.is_cuda else x.to(device)


def _processor_has(name: str) -> bool:
    # private names, absent from some releases and processors: absent means no
    return getattr(torch.cpu, f"_is_{name}_supported", bool)()
