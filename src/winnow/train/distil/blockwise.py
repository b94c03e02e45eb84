"""The distance between student and dense model at the outputs of the repeated blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.forward.padding import Padding
from winnow.masks.blocks import find_blocks
from winnow.train.distil.losses import relative_error


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
