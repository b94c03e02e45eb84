"""HAM: a multiplicative step after the optimizer's."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from winnow.errors import InputError
from winnow.masks.mask import MaskSet
from winnow.train.attached import Attached
from winnow.train.method import SparseMethod
from winnow.train.methods.around import AroundMasks, require_float32
from winnow.train.targets import groups_of

LIMIT = 5.0  # of the exponent in one step, up and down, as in the authors' code


class HAM(AroundMasks):
    """Hyperbolic aware minimization (Jacobs et al. 2025, arXiv 2506.02630): after every step of the optimizer

        theta <- theta exp(eta (-alpha sign(theta) g - decay)),

    g the gradient that step was made with and eta the learning rate of the weight's group; the exponent stays within -5
    and 5. What grows grows faster the larger it is, as with theta = m * w, but nothing is stored twice. Zero stays zero, so
    that masks are untouched; no weight changes its sign in this step, but small ones reach zero sooner in the optimizer's.

    The paper's ``alpha`` is of image networks of 25 million weights. On small ones gradients are larger, and eta alpha g should be
    well below 1 for most weights: lower alpha where the loss rises at the start. The authors' code clips gradients to a norm of
    20 after the step, where it has no effect; clip before it in your loop, if at all.

    Args:
        masks: as for :class:`SignIn`; also :class:`STR`, as in the paper: it is theta that is multiplied.
        alpha: strength of the gradient in the exponent (the paper's 200).
        decay: what every non-zero weight loses at each step, as a share of itself, times eta (the paper's beta, 1e-3).

    Raises:
        InputError: a negative number; when attached, weights in less than float32, where small factors round to 1.
    """

    def __init__(
        self,
        masks: SparseMethod | MaskSet | Mapping[str, torch.Tensor] | None = None,
        *,
        alpha: float = 200.0,
        decay: float = 1e-3,
    ) -> None:
        super().__init__(masks)
        if not (0 <= alpha < float("inf") and 0 <= decay < float("inf")):
            raise InputError(f"alpha is {alpha} and decay is {decay}: give numbers of 0 or more.")
        self.alpha, self.decay = float(alpha), float(decay)

    def start(self, attached: Attached) -> None:
        require_float32(attached, "factors close to 1 round to 1 there")
        super().start(attached)

    @torch.no_grad()
    def stepped(self, attached: Attached) -> None:
        groups = groups_of(attached.optimizers)
        for weight in attached.weights.values():
            if weight.grad is not None and id(weight) in groups:
                exponent = weight.sign().mul_(weight.grad.to_dense()).mul_(-self.alpha).sub_(self.decay)
                exponent.mul_(groups[id(weight)]["lr"]).nan_to_num_(0.0).clamp_(-LIMIT, LIMIT)
                weight.mul_(exponent.exp_())
        super().stepped(attached)
