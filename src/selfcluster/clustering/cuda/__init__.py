"""Triton kernels for CUDA. Import them only where there is a GPU; the tests run them in Triton's interpreter."""
