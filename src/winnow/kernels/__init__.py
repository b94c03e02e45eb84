"""Multiplying by packed weights: native kernels, a plain PyTorch reference, and the layers that use them."""
