"""Sign-In whose factors are split anew at every step: one number a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from winnow.errors import InputError
from winnow.masks.mask import MaskSet
from winnow.train.method import SparseMethod
from winnow.train.methods.around import AroundMasks


class Hyperbolic(AroundMasks):
    """Multiplies the gradient that the optimizer steps a weight by with sqrt(4 theta^2 + beta^2): under plain SGD
    theta <- theta - eta sqrt(4 theta^2 + beta^2) dL/dtheta.

    It is the limit of :class:`SignIn` (Gadhikar et al. 2025, arXiv 2504.12801) with a reset after every step: one step of
    SGD differs by eta^2 g^2 theta. There is nothing to reset and there are no moments to map; weight decay is that of theta, and
    momentum is of the gradients so multiplied. Of the weights that stay one copy is held, which the optimizer steps. Adam and its like divide by a gradient's own size, which takes most of the
    factor out again: take SGD. The weights' own gradients stay as they are, for clipping, say.

    Args:
        masks: as for :class:`SignIn`.
        beta: m^2 - w^2 of Sign-In; 1 keeps the learning rate near zero.

    Raises:
        InputError: a beta that is not positive, or ``masks`` that train other numbers than the weights.
    """

    def __init__(
        self, masks: SparseMethod | MaskSet | Mapping[str, torch.Tensor] | None = None, *, beta: float = 1.0
    ) -> None:
        super().__init__(masks)
        if not 0 < beta < float("inf"):
            raise InputError(f"beta is {beta}: give a positive number, 1 unless you have a reason.")
        self.beta = float(beta)

    def split(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight[None]

    def merge(self, name: str, factors: torch.Tensor) -> torch.Tensor:
        return _Steeper.apply(factors[0], self.beta)  # type: ignore[no-any-return]


class _Steeper(torch.autograd.Function):
    """theta itself, whose gradient is multiplied on the way back."""

    @staticmethod
    def forward(ctx: Any, theta: torch.Tensor, beta: float) -> torch.Tensor:
        ctx.save_for_backward(theta)
        ctx.beta = beta
        return theta.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (theta,) = ctx.saved_tensors
        return gradients[0] * (4 * theta * theta + ctx.beta * ctx.beta).sqrt(), None
