"""Masks on weights that have not been trained yet, and what is left of the initialisation under them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from winnow.train.attached import Attached
from winnow.train.shards import local, part


@torch.no_grad()
def mask_initial(attached: Attached, keeps: Mapping[str, torch.Tensor], rescale: bool | None) -> None:
    """Masks a new network. With ``rescale`` the kept weights of every output unit are multiplied by what the unit's norm over
    its inputs was, divided by what it is: its activations then vary as they do in the dense network.

    An initialisation divides by the root of a unit's fan-in, and a masked unit has a smaller one; without correction
    activations and gradients shrink by that factor in every layer (Evci et al. 2022, arXiv 2010.03533, who draw weights anew
    for the fan-in that is left). For a random mask the factor is sqrt(fan-in / kept) in expectation, whatever distribution
    the weights were drawn from; for a mask that keeps large weights it is smaller, as it has to be. Units that keep
    nothing stay zero.

    None decides by the model, as measured with random masks of 90 to 98% on digits, 200 steps
    (``benchmarks/training/rescale.py``). Without norms, networks stay at chance under SGD, and reach 75 to 96% rescaled; a
    transformer with layer norms gains 18 to 33 points. Masks of SNIP, GraSP and SynFlow need it as well: 4 to 66 points at
    95%. Batch norms undo any scale, and larger weights then only move less in a step: up to 1 point worse with SGD, 1 to 5
    with Adam. So models with batch, group or instance norms are left as they are.
    """
    if rescale is None:
        rescale = not any(isinstance(m, (_NormBase, nn.GroupNorm)) for m in attached.model.modules())
    if not rescale:
        attached.set(keeps)
        return
    dense = {name: _norms(matrix) for name, matrix in attached.matrices().items()}
    attached.set(keeps)
    for name, matrix in attached.matrices().items():
        left = _norms(matrix)
        factor = torch.where(left > 0, dense[name] / left, torch.ones_like(left)).to(matrix.dtype)
        weight = attached.weights[name]
        local(weight).mul_(part(attached.scope.prunables[name].restore(factor.expand(matrix.shape)), weight))


def _norms(matrix: torch.Tensor) -> torch.Tensor:
    """Of every row, [rows, 1]."""
    return matrix.double().norm(dim=1, keepdim=True)
