"""Triton kernels for CUDA. Import them only where there is a GPU; the tests run them in Triton's interpreter."""

import os

# Triton 3.9 warns at each first launch unless this is set; the kernels allow for fused multiply-adds
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
