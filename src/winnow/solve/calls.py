"""The calls that a unit is fitted to, those that judge the fit, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from winnow.errors import InputError
from winnow.solve.statistics import Moments

Part = tuple[int, torch.Tensor | None]  # number of the call, rows of it; None: all
HOLD = 5  # one call in so many judges what the others fitted


@dataclass(frozen=True)
class Call:
    """One call of the unit and what is to come out of it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: torch.Tensor  # like the first floating tensor that the unit puts out
    counts: torch.Tensor | None = None  # bool, one a position (all dimensions but the last); None: all count


class Calls(Protocol):
    """The calls of one unit, one a calibration batch, opened one at a time (they may lie on disk).

    ``moments``: statistics of what the layers inside put out when dense, by the weight's name in the unit, over the calls
    that :func:`held_out` leaves.
    """

    moments: Mapping[str, Moments]

    def __len__(self) -> int: ...

    def at(self, index: int) -> AbstractContextManager[Call]: ...


def held_out(calls: int) -> list[int]:
    """Numbers of the calls that judge: every fifth, the last of fewer; none of a single one."""
    return list(range(HOLD - 1, calls, HOLD)) or ([calls - 1] if calls > 1 else [])


class Subset:
    """Some of the calls, or some rows of a single one; a :class:`Calls`."""

    def __init__(self, calls: Calls, numbers: Sequence[int], rows: slice | None = None) -> None:
        self._calls, self._numbers, self._rows, self.moments = calls, numbers, rows, calls.moments

    def __len__(self) -> int:
        return len(self._numbers)

    @contextmanager
    def at(self, index: int) -> Iterator[Call]:
        with self._calls.at(self._numbers[index]) as call:
            yield call if self._rows is None else Call(*tree_unflatten(*_picked(call, self._rows)))


def split(calls: Calls, rows: int) -> tuple[Calls, Calls, bool]:
    """The calls to fit to, those that judge (:func:`held_out`), and whether both are whole calls.

    ``rows``: examples that a single call may be cut into; of one that may not be cut, none is fitted to.
    """
    judging = held_out(len(calls))
    if judging:
        fitting = [i for i in range(len(calls)) if i not in set(judging)]
        return Subset(calls, fitting), Subset(calls, judging), True
    if rows > 1:
        most = max(1, rows - max(1, rows // HOLD))
        return Subset(calls, [0], slice(0, most)), Subset(calls, [0], slice(most, rows)), False
    return Subset(calls, []), calls, True


def joined(calls: Calls, parts: Sequence[Part]) -> Call:
    """One call with these examples of several."""
    found = []
    for i, rows in parts:
        with calls.at(i) as call:
            leaves, spec = _picked(call, slice(None) if rows is None else rows)
            found.append(leaves)
    first = found[0]
    whole = [torch.cat([f[k] for f in found]) if isinstance(x, torch.Tensor) else x for k, x in enumerate(first)]
    return Call(*tree_unflatten(whole, spec))


def _picked(call: Call, rows: slice | torch.Tensor) -> tuple[list[Any], TreeSpec]:
    """Arguments and target of a call, its tensors cut to these rows, as pytree leaves."""
    leaves, spec = tree_flatten((call.args, call.kwargs, call.target))
    return [x[rows].clone() if isinstance(x, torch.Tensor) else x for x in leaves], spec


def target_power(calls: Calls) -> tuple[float, int]:
    """The power of the targets, and how many numbers it is the sum over."""
    total, positions = 0.0, 0
    for i in range(len(calls)):
        with calls.at(i) as call:
            target = unpadded(call.target, call.counts)
            total += float(target.double().square().sum())
            positions += target.numel()
    return max(total, 1e-30), positions


def examples(calls: Calls) -> list[int]:
    """How many examples each call holds."""
    found = []
    for i in range(len(calls)):
        with calls.at(i) as call:
            found.append(max(call.target.shape[0] if call.target.ndim else 1, 1))
    return found


def unpadded(x: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """The positions that are no padding, [positions, features]; everything where all count (a pooled output, say)."""
    if counts is None or counts.numel() * x.shape[-1] != x.numel():
        return x
    return x.reshape(-1, x.shape[-1])[counts.to(x.device)]


def output_of(output: Any) -> torch.Tensor:
    """The first floating tensor of what a unit puts out: its hidden states, or the logits of a whole model."""
    if isinstance(output, Mapping):
        output = list(output.values())
    for leaf in tree_leaves(output):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            return leaf
    raise InputError("a block puts out no floating tensor, so it cannot be reconstructed: choose another solver.")


class MiniBatches:
    """Mini-batches of calls that wait one by one: rows of a call where a call may be cut, whole calls where it may not.

    Steps of about ``size`` examples, every epoch in a new order that depends on seed and epoch alone. ``examples`` [calls]:
    how many examples each call holds. A step touches as few calls as it can, since each of them may have to come from
    disk: a part of one long call, or several short ones.
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
