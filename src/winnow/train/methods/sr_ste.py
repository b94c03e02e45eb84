"""n:m sparsity from the first step: the mask of the moment in every forward, the dense weights behind it in training."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from winnow.errors import InputError
from winnow.masks.prunable import Prunable
from winnow.masks.structure import NM, check, parse_structure, select
from winnow.train.attached import Attached
from winnow.train.shards import is_sharded


class SRSTE:
    """Trains an n:m sparse network from scratch, or fine-tunes into one (Zhou et al. 2021, arXiv 2102.04010, SR-STE).

    The dense weights W are trained, and the model holds their projection M * W, where M keeps the n largest of every m
    consecutive inputs of a row and is found anew after every step. The gradient of W is that of the projected weights,
    straight through the projection, plus ``decay`` (1 - M) W: without this term (``decay`` 0, the plain straight-through
    estimator) weights near a change of M move in and out of it without end. Groups lie along the columns of a tensor's matrix
    (:class:`winnow.masks.prunable.Prunable`), as in packed files; in a convolution they run over the kernel's places as well,
    while the paper's lie along the input channels alone. ``attached.keeps`` are the masks of the moment, ``detach`` leaves
    exact n:m zeros. Gradients and moments of pruned weights are not masked: weight decay moves all of W, and clipping goes
    by the dense gradient. W takes as much memory again as the weights.

    Args:
        structure: "n:m", n weights kept of every m: "2:4" runs on the sparse tensor cores of GPUs.
        decay: lambda_w, the paper's 2e-4.

    Raises:
        InputError: not an n:m structure, a negative ``decay``; when attached, a tensor whose inputs are no multiple of m.
    """

    trains_pruned = True

    def __init__(self, structure: str, *, decay: float = 2e-4) -> None:
        found = parse_structure(str(structure))
        if not isinstance(found, NM):
            raise InputError(f"SR-STE trains n:m sparsity, not {structure!r}: give n:m, such as 2:4.")
        if not 0 <= decay < float("inf"):
            raise InputError(f"decay is {decay}: give 0 or a positive number, 2e-4 as in the paper.")
        self.structure, self.decay = found, decay
        self._prunables: Mapping[str, Prunable] = {}
        self._found: dict[str, tuple[weakref.ref[torch.Tensor], int, torch.Tensor]] = {}

    def start(self, attached: Attached) -> None:
        if attached.method is not self:
            raise InputError(
                "SR-STE trains numbers of its own in the weights' places: attach it alone, not within another method."
            )
        if any(is_sharded(weight) for weight in attached.weights.values()):
            raise InputError(
                "SR-STE reads whole groups of weights at every step and cannot train sharded ones: take DistributedDataParallel."
            )
        self._prunables = attached.scope.prunables
        for name, prunable in self._prunables.items():
            check(self.structure, prunable.rows, prunable.cols, name)
        attached.set({name: self._keep(name, weight) for name, weight in attached.weights.items()})

    def stepped(self, attached: Attached) -> None:
        """The masks of the weights as this step has left them."""
        attached.set({name: self._keep(name, dense) for name, dense in attached.factors.tensors.items()})

    def split(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight[None]

    def merge(self, name: str, factors: torch.Tensor) -> torch.Tensor:
        keep = self._prunables[name].restore(self._keep(name, factors))
        if torch.is_grad_enabled():  # an optimizer's step follows, perhaps through ``data``, which counts no version
            del self._found[name]
        return _Projected.apply(factors[0], keep, self.decay)  # type: ignore[no-any-return]

    def _keep(self, name: str, dense: torch.Tensor) -> torch.Tensor:
        """The mask of dense weights, bool [rows, cols]: once a step, although it is asked for several times."""
        known = self._found.get(name)
        if known is None or known[0]() is not dense or known[1] != dense._version:
            matrix = self._prunables[name].matrix(dense.detach().abs().reshape(self._prunables[name].shape))
            zeros = matrix.numel() // self.structure.m * (self.structure.m - self.structure.n)
            known = self._found[name] = weakref.ref(dense), dense._version, select(matrix, zeros, self.structure)
        return known[2]

    def state(self) -> dict[str, Any]:
        return {"tensors": json.dumps([asdict(p) for p in self._prunables.values()])}

    def restore(self, state: Mapping[str, Any]) -> None:
        found = [Prunable(**{**fields, "shape": tuple(fields["shape"])}) for fields in json.loads(state["tensors"])]
        self._prunables = {p.name: p for p in found}


class _Projected(torch.autograd.Function):
    """keep * weight; backward passes the gradient on and adds decay * weight where nothing is kept."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, keep: torch.Tensor, decay: float) -> torch.Tensor:
        ctx.save_for_backward(weight, keep)
        ctx.decay = decay
        return torch.where(keep, weight, torch.zeros_like(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight, keep = ctx.saved_tensors
        return gradients[0] + ctx.decay * torch.where(keep, torch.zeros_like(weight), weight), None, None
