"""Mini-batches from calls that wait one by one: rows of a call where a call may be cut, whole calls where it may not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

Part = tuple[int, torch.Tensor | None]  # number of the call, rows of it; None: all


class MiniBatches:
    """Steps of about ``size`` examples, every epoch in a new order that depends on seed and epoch alone.

    ``examples`` [calls]: how many examples each call holds. A step touches as few calls as it can, since each of them may have
    to come from disk: a part of one long call, or several short ones.
    """

    def __init__(self, examples: Sequence[int], size: int, *, cut: bool, seed: int) -> None:
        self.examples, self.size, self.cut, self.seed = list(examples), size, cut, seed
        self.together = max(1, round(size / max(sum(examples) / len(examples), 1)))  # calls, or parts of calls, a step

    def steps(self) -> Iterator[list[Part]]:
        """Steps without end."""
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            parts = list(self._parts(generator))
            order = torch.randperm(len(parts), generator=generator).tolist()
            whole = max(len(parts) // self.together, 1) * self.together  # a last, smaller step is left out
            for first in range(0, min(whole, len(parts)), self.together):
                yield [parts[i] for i in order[first : first + self.together]]
            epoch += 1

    def _parts(self, generator: torch.Generator) -> Iterator[Part]:
        for call, count in enumerate(self.examples):
            if not self.cut or count <= self.size:
                yield call, None
            else:
                pieces = torch.randperm(count, generator=generator).split(self.size)
                yield from ((call, rows) for rows in pieces if len(rows) == self.size)


def shared_rows(args: Any, target: torch.Tensor) -> int | None:
    """How many examples the tensors of a call have in common along their first dimension; None where they differ."""
    tensors = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
    count = {t.shape[0] if t.ndim else 0 for t in [*tensors, target]}
    return count.pop() if len(count) == 1 and tensors else None
