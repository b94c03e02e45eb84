"""Random numbers that depend on what they are for, and leave the caller's own generators as they were."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def seeded(*parts: Any) -> Iterator[None]:
    """Random numbers that depend on ``parts`` alone, and the caller's own generator untouched.

    Every step of every run has a seed of its own, so that a run goes on from any step without stored generator states,
    and nothing that happens between two steps (candidates, evaluations) can shift it. Python's and numpy's generators
    are set too: augmentations and collators draw from all three.
    """
    seed = seed_of(*parts)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_of(*parts: Any) -> int:
    """A number that depends on the parts alone, the same in every process."""
    return zlib.crc32(repr(parts).encode()) + (zlib.adler32(repr(parts).encode()) << 31)


def generator(*parts: Any) -> torch.Generator:
    """A generator of torch's whose numbers depend on the parts alone."""
    return torch.Generator().manual_seed(seed_of(*parts))


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """torch's generator at ``seed``, for what draws without a seed of its own, such as a factory that initializes weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
