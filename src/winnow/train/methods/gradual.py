"""Gradual magnitude pruning: sparsity that rises while the model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from winnow.budget import largest_remainder, parse_sparsity
from winnow.errors import InputError
from winnow.masks.global_ranking import MAX_RATE, global_magnitude
from winnow.masks.ranking import limits, lowest
from winnow.train.attached import Attached
from winnow.train.method import Planned, planned
from winnow.train.methods.fixed import nonzero
from winnow.train.methods.random_masks import Distribution, distributed

END = 0.5  # of the training, as winnow.find_ticket has it: the other half recovers


class Gradual(Planned):
    """Magnitude pruning whose target rises as a cubic (Zhu and Gupta 2017, arXiv 1710.01878, equation 1).

    s(t) = S + (S_0 - S) (1 - (t - begin) / (end - begin))^3, S_0 the sparsity at the start; masks change every ``every``
    steps and at ``end``, after the optimizer's step, and only lose weights. At ``end`` the count is round(S N), to the weight.

    Args:
        sparsity: S, a share of the prunable weights or text such as "80%".
        begin: optimizer step at which it starts to rise.
        end: step at which it is reached; None: half of the training, whose length :func:`winnow.train.attach` (``steps``) or the
            Trainer says.
        every: steps between two changes; None: a hundredth of the training, 100 where its length is not known.
        power: 3 is the cubic; 1 a straight line.
        max_rate: share of its weights that a tensor may lose at most (:func:`prune_globally`).
        distribution: what weights compete with: "global", all others of the model in one ranking; or those of their tensor
            alone, whose zeros are then "uniform" (every tensor at the schedule's sparsity, as in the paper), "erk" or "balanced"
            (see :func:`winnow.train.methods.random_masks.random_masks`) at every change. Zeros that a model brings along stay,
            and where a tensor has more of them than its share the others lose less.

    Raises:
        InputError: steps out of order, a ``max_rate`` outside 0 to 1, an unknown distribution, or (when attached) no end and no
            length of the training, or a
            model that is sparser than the target.
    """

    def __init__(
        self,
        sparsity: float | str,
        *,
        end: int | None = None,
        begin: int = 0,
        every: int | None = None,
        power: float = 3.0,
        max_rate: float = MAX_RATE,
        distribution: Literal["global"] | Distribution = "global",
    ) -> None:
        require_whole(begin=begin, end=end, every=every)
        self.sparsity, self.begin, self.power = parse_sparsity(sparsity), begin, power
        self._given = end, every
        self.every = 100 if every is None else every
        self._end(begin + 1 if end is None else end)
        limits([], 0, max_rate)  # refuses a wrong one now, not in the middle of a training
        if distribution not in ("global", *get_args(Distribution)):
            known = ", ".join(("global", *get_args(Distribution)))
            raise InputError(f"distribution is {distribution!r}: choose from {known}.")
        self.max_rate, self.distribution, self.zeros_at_start = max_rate, distribution, 0

    def _plan(self, steps: int | None) -> None:
        end, every = self._given
        if every is None:
            self.every = 100 if steps is None else max(1, steps // 100)
        self._end(planned(self, "end", end, END, steps))

    def _end(self, end: int) -> None:
        if not 0 <= self.begin < end or self.every < 1 or not self.power > 0:
            raise InputError(
                f"a gradual schedule from step {self.begin} to {end} needs 0 <= begin < end, every >= 1 and power > 0: check the numbers."
            )
        self.end = end

    def start(self, attached: Attached) -> None:
        present = nonzero(attached)
        zeros = attached.numel - sum(int(k.count_nonzero()) for k in present.values())
        if zeros > round(self.sparsity * attached.numel):
            raise InputError(
                f"{zeros} of {attached.numel} weights are zero already, more than {self.sparsity:g} of them: "
                "ask for a higher sparsity."
            )
        attached.set(present)
        self.zeros_at_start = zeros

    def stepped(self, attached: Attached) -> None:
        if not self.due(attached.step):
            return
        zeros = self.zeros_at(attached.step, attached.numel)
        if zeros > attached.zeros:
            attached.set(self.masks(attached, zeros))

    def masks(self, attached: Attached, zeros: int) -> dict[str, torch.Tensor]:
        """Bool matrices [rows, cols] with so many zeros in all, among them those of now."""
        matrices, keeps = attached.matrices(), attached.keeps
        if self.distribution == "global":
            return global_magnitude(matrices, keeps, zeros, self.max_rate)
        present = {n: k.numel() - int(k.count_nonzero()) for n, k in keeps.items()}
        shares = distributed(attached.scope, zeros, self.distribution, self.max_rate)
        claims = [max(0, shares[n] - present[n]) for n in keeps]
        more = dict(zip(keeps, largest_remainder(claims, zeros - sum(present.values()), claims)))
        return {
            n: ~lowest(matrices[n].abs().float().masked_fill(~keep, -1.0), present[n] + more[n])
            for n, keep in keeps.items()
        }

    def due(self, step: int) -> bool:
        """Whether weights may go after this step."""
        # Beyond the end too: a loop that counts steps in its own way may have passed it by.
        return step >= self.end or (step >= self.begin and (step - self.begin) % self.every == 0)

    def zeros_now(self, attached: Attached) -> int:
        """How many weights are zero now."""
        return attached.zeros

    def unfinished(self, attached: Attached, last: int | None = None) -> str | None:
        """A sentence where training ends (now, or after step ``last``) before the target sparsity is reached."""
        numel, step = attached.numel, attached.step if last is None else last
        zeros = self.zeros_now(attached)
        if last is not None:
            zeros = max(zeros, self.zeros_at(self._changed(last), numel))
        if step >= self.end or zeros >= round(self.sparsity * numel):
            return None
        found, target = 100 * zeros / numel, 100 * self.sparsity
        share = f"{found:.0f}" if target - found >= 1 else f"{found:.6g}"
        rest = f"not the {target:.4g}% asked for: the schedule ends at step {self.end} and training"
        if last is None:
            return f"{share}% of the weights are zero, {rest} ended at step {step}."
        fix = f"give an end of {step} or less, or train longer."
        return f"{share}% of the weights will be zero, {rest} is going to end at step {step}; {fix}"

    def _changed(self, step: int) -> int:
        """The last step up to ``step``, before the end, after which masks change; ``begin`` where there is none."""
        return self.begin + max(0, step - self.begin) // self.every * self.every

    def zeros_at(self, step: int, numel: int) -> int:
        """Number of zeros due after this step."""
        left = (1 - min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)) ** self.power
        final = round(self.sparsity * numel)
        return round(final + (self.zeros_at_start - final) * left)

    def state(self) -> dict[str, Any]:
        return {"zeros_at_start": self.zeros_at_start}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.zeros_at_start = int(state["zeros_at_start"])


def require_whole(**steps: Any) -> None:
    """Raises InputError unless all of these numbers of steps are whole, or None."""
    if not all(n is None or hasattr(n, "__index__") for n in steps.values()):
        *names, last = steps
        raise InputError(f"{', '.join(names)} and {last} are numbers of optimizer steps: give whole numbers.")
