"""What the student is fitted to: the dense model's outputs, computed once where they can be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.forward.padding import Padding
from winnow.masks.blocks import find_blocks
from winnow.train.distil.losses import distance, relative_error
from winnow.train.distil.outputs import Outputs, read_output
from winnow.train.distil.settings import DistilSettings
from winnow.train.distil.student import Student
from winnow.train.examples import Examples

KEPT = 1 << 30  # bytes of dense outputs held in memory; beyond that they are computed again every step
SAME = 1e-6  # relative squared error within which outputs are taken not to depend on the rest of the batch


class Blockwise:
    """Compares what the repeated blocks put out, in a dense pass and in the student's pass on the same batch.

    The whole student runs, each block on what the student's block before it put out; the errors
    ``||student - dense||^2 / ||dense||^2`` (over positions that are not padding) of all blocks are added up
    (the block-wise sum of FCPTS's released code, scaled so that deep blocks do not outweigh the others).

    Raises:
        InputError: the model has no repeated blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.blocks = [b.module for b in find_blocks(model)]
        if not self.blocks:
            raise InputError("this model has no repeated blocks to compare: leave out --set blockwise.")
        self._time_first = {
            b: any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in b.modules()) for b in self.blocks
        }

    @contextmanager
    def recording(self, batch: Any) -> Iterator[list[torch.Tensor]]:
        """Hooks for the dense pass; the list fills with the blocks' outputs [rows, ...], in the order of their calls."""
        outputs: list[torch.Tensor] = []
        with self._watching(batch, lambda rows: outputs.append(rows.detach().clone())):  # a later layer may write to it
            yield outputs

    @contextmanager
    def comparing(self, batch: Any, dense: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Hooks for the student's pass; the list fills with one error a call, with gradient."""
        errors: list[torch.Tensor] = []

        def compare(rows: torch.Tensor) -> None:
            if len(errors) >= len(dense) or rows.shape != dense[len(errors)].shape:
                raise InputError(
                    "the blocks of this model put out other shapes in every pass: leave out --set blockwise."
                )
            errors.append(relative_error(rows, dense[len(errors)]))

        with self._watching(batch, compare):
            yield errors

    @contextmanager
    def _watching(self, batch: Any, seen: Callable[[torch.Tensor], None]) -> Iterator[None]:
        padding = Padding(batch)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tensor = _first(output)
            if tensor is not None:
                padding.enter(args, kwargs, time_first=self._time_first[module])
                kept = padding.rows(tensor)
                tensor = tensor if kept is None else tensor.reshape(-1, tensor.shape[-1])[kept]
                seen(tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float())

        hooks = [b.register_forward_hook(hook, with_kwargs=True) for b in self.blocks]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()


def _first(output: Any) -> torch.Tensor | None:
    """A block's hidden states: its output, or the first floating tensor in it."""
    if torch.is_tensor(output):
        return output if output.is_floating_point() else None
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((v for v in values if torch.is_tensor(v) and v.is_floating_point()), None)


@dataclass(frozen=True)
class Target:
    """The dense model on one batch: its counted output rows [rows, features], and its blocks' outputs if asked for."""

    rows: torch.Tensor
    blocks: list[torch.Tensor] = field(default_factory=list)


class Teacher:
    """The dense model's outputs on the examples, and the student's distance from them.

    Outputs of all examples are computed once and kept (on the model's device) where they take at most ``keep`` bytes
    and do not depend on which examples share a batch; otherwise, and where blocks are compared too, the dense model
    runs at every step. The values are the same either way.
    """

    def __init__(self, student: Student, examples: Examples, settings: DistilSettings, *, keep: int = KEPT) -> None:
        self.settings, self.student = settings, student
        self.blockwise = Blockwise(student.model) if settings.blockwise else None
        self._kept = None if self.blockwise else _Kept.of(student, examples, keep)

    @property
    def kept(self) -> bool:
        """Whether the dense outputs are held in memory."""
        return self._kept is not None

    def answers(self) -> tuple[int, int] | None:
        """How many classes the dense model answers with on the examples, and of how many; None where it has none, or
        where its outputs are not held."""
        if self._kept is None or self._kept.length != 1 or not self._kept.classes:
            return None
        return int(self._kept.rows.argmax(-1).unique().numel()), self._kept.rows.shape[-1]

    def constant(self) -> float | None:
        """What the loss would be of a classifier whose answer is always the mean of the dense model's; None where there
        are no classes, outputs are not held, or the loss is not kl."""
        if self.answers() is None or self.settings.loss not in ("auto", "kl"):
            return None
        assert self._kept is not None
        t = self.settings.temperature
        log = (self._kept.rows.double() / t).log_softmax(-1)
        found = log.exp()
        apart = torch.where(found > 0, found * (log - found.mean(0).log()), 0.0)
        return float(t**2 * apart.sum(-1).mean())

    def target(self, index: torch.Tensor, batch: Any) -> Target:
        """The dense model on these examples; ``batch`` is ``examples.take(index)``."""
        if self._kept is not None:
            return Target(self._kept.take(index))
        if self.blockwise is None:
            return Target(read_output(self.student.dense(batch), batch).rows())
        with self.blockwise.recording(batch) as blocks:
            output = self.student.dense(batch)
        return Target(read_output(output, batch).rows(), blocks)

    def loss(self, student: Student, masked: Mapping[str, torch.Tensor], target: Target, batch: Any) -> torch.Tensor:
        """Distance of the outputs, plus ``settings.blockwise`` times the sum of the blocks' errors; a scalar."""
        s = self.settings
        if self.blockwise is None:
            return distance(read_output(student(batch, masked), batch), target.rows, s.loss, s.temperature)
        with self.blockwise.comparing(batch, target.blocks) as errors:
            output = student(batch, masked)
        found = distance(read_output(output, batch), target.rows, s.loss, s.temperature)
        return found + s.blockwise * torch.stack(errors).sum() if errors else found


class _Kept:
    """Dense output rows of all examples (joined examples), or of every batch (batches that are drawn whole)."""

    def __init__(self, rows: torch.Tensor, lengths: torch.Tensor, classes: bool) -> None:
        self.rows, self.classes = rows, classes
        self.length = int(lengths[0]) if bool((lengths == lengths[0]).all()) else None
        ends = lengths.cumsum(0)
        self.spans = torch.stack([ends - lengths, ends], 1).tolist()

    @classmethod
    def of(cls, student: Student, examples: Examples, keep: int) -> _Kept | None:
        whole = examples.joined is None
        parts: list[torch.Tensor] = []
        lengths: list[torch.Tensor] = []
        held = seen = 0
        for index, batch in examples.all():
            read = read_output(student.dense(batch), batch)
            rows = read.rows()
            seen += len(index)
            held += rows.numel() * rows.element_size()
            # As soon as the total can be estimated from the examples so far, so that no more is computed than needed.
            if held * (1 if whole else examples.count / seen) > keep:
                return None
            if not whole and len(read.values) != len(index):
                return None  # not one row (or group of rows) an example
            parts.append(rows)
            lengths.append(torch.tensor([len(rows)]) if whole else _per_example(read))
        if len({p.shape[-1] for p in parts}) > 1:
            return None
        kept = cls(torch.cat(parts), torch.cat(lengths), read.kind == "logits" and rows.shape[-1] > 1)
        return kept if whole or kept._independent(student, examples) else None

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """The rows of these examples, in this order."""
        if self.length is not None:
            grouped = self.rows.view(-1, self.length, self.rows.shape[-1])
            return grouped[index.to(self.rows.device)].flatten(0, 1)
        return torch.cat([self.rows[a:b] for a, b in (self.spans[i] for i in index.tolist())])

    def _independent(self, student: Student, examples: Examples) -> bool:
        """Whether examples put out the same in other company: other neighbours, one fewer of them, in reverse."""
        size = examples.count // examples.parts - 1
        if size < 1:
            return True
        if examples.lengths is not None:  # the shortest texts: outputs with a column a token cannot be kept
            index = examples.lengths.argsort(stable=True)[:size]
        else:
            index = torch.arange(0, examples.count, examples.count // size)[:size].flip(0)
        batch = examples.take(index)
        again, first = read_output(student.dense(batch), batch).rows(), self.take(index)
        return again.shape == first.shape and bool(relative_error(again, first) <= SAME)


def _per_example(read: Outputs) -> torch.Tensor:
    """Counted rows of every example, int64 [examples]."""
    if read.counts is not None:
        return read.counts.flatten(1).sum(1).cpu()
    return torch.full((len(read.values),), read.values[0].numel() // read.values.shape[-1])
