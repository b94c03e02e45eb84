"""Memory for weights that are streamed once per product: large pages, so that address translation does not slow it."""

from __future__ import annotations

import mmap

import torch

_LARGE_PAGE = 2 << 20


def in_large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` in memory that the system may back by large pages (Linux); the tensor itself where it is
    small or the system has no such memory. Only whole pages are used: no memory is lost at the ends."""
    size = tensor.numel() * tensor.element_size()
    if size < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without them
        return tensor
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
