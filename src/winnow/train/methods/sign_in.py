"""Sign-In: sparse training whose weights can still change sign."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch

from winnow.errors import InputError
from winnow.masks.mask import MaskSet
from winnow.train.attached import Attached
from winnow.train.method import SparseMethod, planned
from winnow.train.methods.around import AroundMasks, require_float32
from winnow.train.shards import is_sharded, local, whole

Moments = Literal["remap", "keep", "zero"]
MOMENTUM = ("momentum_buffer", "exp_avg")  # of optimizers of torch: momentum, in units of the gradient
_SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")  # in units of its square


class SignIn(AroundMasks):
    """Trains theta = m * w with m^2 - w^2 = beta instead of theta (Gadhikar et al. 2025, arXiv 2504.12801).

    Under a fixed mask gradient descent hardly ever carries a weight through zero; with beta > 0 the speed of theta near zero
    is sqrt(4 theta^2 + beta^2) times that of plain training instead. Steps and weight decay let beta decay, and signs would
    freeze again: every ``every`` steps m and w are split anew from theta, which changes no weight. The model holds theta
    throughout and is plain after ``detach``. Of a fully masked weight nothing is stored twice: see
    :class:`winnow.train.factors.Factors`.

    The paper gives no period, no end and no handling of momentum. Ours: a tenth of the training is a good ``every`` and nine
    tenths of it a good ``end`` (``SignIn.of(steps)``); at a split the optimizer's moments are mapped to the new factors,
    v_theta = (m v_w + w v_m) / (m^2 + w^2), then v_m = w' v_theta, v_w = m' v_theta, and second moments likewise with squares.

    Args:
        masks: a method that decides about the masks (:class:`Fixed`, :class:`Gradual`, your own), masks as :class:`Fixed`
            takes them, or None for the zeros that the model has.
        every: optimizer steps between two resets; None: a tenth of the training, whose length :func:`winnow.train.attach`
            (``steps``) or the Trainer says, and then ``end`` is nine tenths of it unless given.
        end: step of the last reset at most; None: until training ends.
        beta: of every tensor, or by name or pattern (the first that fits; 1 where none does). Other values than 1 change
            the speed of training near zero by the same factor.
        moments: what becomes of the optimizer's moments at a reset: "remap" as above, "keep" them as they are, or "zero".
            Moments of names that torch's optimizers do not have are kept.

    Raises:
        InputError: a beta that is not positive, steps out of order, an unknown ``moments``; when attached, neither ``every`` nor
            the length of the training, weights in less than
            float32 (m is close to 1 and its updates are small: keep float32 parameters and compute under autocast), or a
            pattern of ``beta`` that fits no prunable tensor.
    """

    def __init__(
        self,
        masks: SparseMethod | MaskSet | Mapping[str, torch.Tensor] | str | os.PathLike[str] | None = None,
        *,
        every: int | None = None,
        end: int | None = None,
        beta: float | Mapping[str, float] = 1.0,
        moments: Moments = "remap",
    ) -> None:
        if every is not None and (not hasattr(every, "__index__") or every < 1):
            raise InputError("every is the number of optimizer steps between two resets: give 1 or more.")
        if end is not None and (every or 1) > end:
            raise InputError(
                f"the first reset would come at step {every or 1}, after the last one allowed ({end}): give a smaller every or a larger end."
            )
        if moments not in get_args(Moments):
            raise InputError(f"moments is {moments!r}: choose from {', '.join(get_args(Moments))}.")
        self.beta = dict(beta) if isinstance(beta, Mapping) else {"*": beta}
        for value in self.beta.values():
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise InputError(f"beta is {value}: give a positive number, 1 unless you have a reason.")
        super().__init__(masks)
        self._given, self.moments, self.resets = (every, end), moments, 0
        self.every, self.end = int(every or 1), end

    def _plan(self, steps: int | None) -> None:
        super()._plan(steps)
        every, end = self._given
        self.every = planned(self, "every", every, 0.1, steps)
        if every is None and end is not None:
            self.every = min(self.every, end)
        self.end = planned(self, "end", end, 0.9, steps) if every is None else end
        if steps is not None and self.every > steps:
            raise InputError(
                f"the first reset would come at step {self.every}, and the training ends at step {steps}: give a smaller every."
            )

    def start(self, attached: Attached) -> None:
        require_float32(attached, "m stays near 1 and would lose its updates")
        for pattern, value in self.beta.items():
            if not any(fnmatchcase(n, pattern) for n in attached.weights):
                raise InputError(
                    f"beta names {pattern}, which fits no prunable tensor: see attached.weights for the names."
                )
            if value != 1:
                warnings.warn(
                    f"beta {value:g} makes training near zero {value:g} times as fast as plain training: 1 keeps the learning rate.",
                    stacklevel=4,
                )
        super().start(attached)

    def beta_of(self, name: str) -> float:
        return next((value for pattern, value in self.beta.items() if fnmatchcase(name, pattern)), 1.0)

    def split(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """m = sqrt((beta + sqrt(beta^2 + 4 theta^2)) / 2) and w = theta / m, stacked: m >= sqrt(beta), m w = theta."""
        beta = self.beta_of(name)
        m = ((beta + (beta * beta + 4 * weight * weight).sqrt()) / 2).sqrt()
        return torch.stack([m, weight / m])

    def merge(self, name: str, factors: torch.Tensor) -> torch.Tensor:
        return factors[0] * factors[1]

    def vjp(self, name: str, factors: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """dL/dm = g w and dL/dw = g m, stacked, g the gradient of theta."""
        return factors.flip(0).mul_(gradient)

    def stepped(self, attached: Attached) -> None:
        super().stepped(attached)
        if attached.step % self.every == 0 and (self.end is None or attached.step <= self.end):
            self.reset(attached)

    @torch.no_grad()
    def reset(self, attached: Attached) -> None:
        """Splits every weight anew; no weight changes."""
        before = {name: local(factors).detach().clone() for name, factors in attached.factors.tensors.items()}
        attached.factors.follow(everywhere=True)
        self.resets += 1
        for name, (m, w) in before.items() if self.moments != "keep" else ():
            new = (
                local(attached.factors.tensors[name]).detach().flip(0)
            )  # w', m': what dL/dm and dL/dw are multiplied by
            for optimizer in attached.optimizers:
                for key, moment in optimizer.state.get(attached.weights[name], {}).items():
                    if key not in (*MOMENTUM, *_SECOND) or not torch.is_tensor(moment):
                        continue
                    if (moment := local(moment)).shape != new.shape:
                        continue
                    if self.moments == "zero":
                        moment.zero_()
                    elif key in MOMENTUM:
                        moment.copy_(new * ((m * moment[1] + w * moment[0]) / (m * m + w * w)))
                    else:
                        moment.copy_(new * new * ((moment[0] + moment[1]) / (m * m + w * w)))

    def health(self, attached: Attached) -> dict[str, float]:
        """Mean of (m^2 - w^2) / beta by tensor: 1 after a reset, near 0 where signs have frozen."""
        found = {}
        for name, tensor in attached.factors.tensors.items():
            factors = whole(tensor.detach())
            if is_sharded(tensor):  # of all entries
                factors = factors[:, attached.scope.prunables[name].restore(attached.keeps[name])]
            beta = (factors[0].square() - factors[1].square()).mean()
            found[name] = float(beta) / self.beta_of(name) if factors.numel() else 1.0
        return found

    def unfinished(self, attached: Attached, last: int | None = None) -> str | None:
        step = attached.step if last is None else last
        if step < self.every:
            return (
                f"training ends at step {step}, before the first reset at step {self.every}: "
                f"take SignIn.of({step}) for a reset every tenth of it."
            )
        return super().unfinished(attached, last)

    def state(self) -> dict[str, Any]:
        return super().state() | {"resets": self.resets}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.resets = int(state["resets"])
