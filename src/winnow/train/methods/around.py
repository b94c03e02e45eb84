"""What methods have in common that train weights in a way of their own under masks another method decides about."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from winnow.errors import InputError
from winnow.masks.mask import MaskSet
from winnow.train.attached import Attached
from winnow.train.method import Planned, SparseMethod, plan, unfinished
from winnow.train.methods.fixed import Fixed


class AroundMasks(Planned):
    """Hands everything on to the method that decides about the masks; a subclass adds how the weights are trained.

    Args:
        masks: such a method (:class:`winnow.train.RigL`, :class:`winnow.train.Gradual`, your own), masks as
            :class:`winnow.train.Fixed` takes them, or None for the zeros that the model has.

    Raises:
        InputError: ``masks`` is such a wrapper itself, or trains other numbers than the weights where the subclass does, too.
    """

    def __init__(
        self, masks: SparseMethod | MaskSet | Mapping[str, torch.Tensor] | str | os.PathLike[str] | None = None
    ) -> None:
        self.inner: SparseMethod = masks if hasattr(masks, "stepped") else Fixed(masks)  # type: ignore[assignment, arg-type]
        if isinstance(self.inner, AroundMasks) or (hasattr(type(self), "split") and hasattr(self.inner, "split")):
            ours, theirs = type(self).__name__, type(self.inner).__name__
            raise InputError(
                f"{ours} and {theirs} both say how weights are trained: give {ours} a method of masks only, such as RigL."
            )

    def __getattr__(self, name: str) -> Any:
        """What a method of masks may have beside what every one has: ``gradient``, or the split of :class:`winnow.train.STR`."""
        if name.startswith("_") or name == "inner":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.inner, name)

    def _plan(self, steps: int | None) -> None:
        plan(self.inner, steps)

    def start(self, attached: Attached) -> None:
        self.inner.start(attached)

    def stepped(self, attached: Attached) -> None:
        self.inner.stepped(attached)

    def unfinished(self, attached: Attached, last: int | None = None) -> str | None:
        return unfinished(attached, last, self.inner)

    def state(self) -> dict[str, Any]:
        return {"masks": self.inner.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.inner.restore(state["masks"])


def require_float32(attached: Attached, why: str) -> None:
    """Raises InputError, with the reason, where a prunable weight is of less than float32."""
    for name, weight in attached.weights.items():
        if weight.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"{name} is {str(weight.dtype).removeprefix('torch.')}: {why}; "
                "train float32 parameters, under torch.autocast if the arithmetic is to be bfloat16."
            )
