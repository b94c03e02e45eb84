"""AC/DC: phases of sparse and of dense training by turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from winnow.budget import parse_sparsity
from winnow.errors import InputError
from winnow.masks.global_ranking import MAX_RATE, global_magnitude
from winnow.masks.ranking import limits, lowest
from winnow.train.attached import Attached
from winnow.train.method import Planned, planned
from winnow.train.methods.gradual import require_whole
from winnow.train.methods.random_masks import Distribution, distributed
from winnow.train.methods.sign_in import MOMENTUM


class ACDC(Planned):
    """Alternating compressed and decompressed training (Peste et al. 2021, arXiv 2106.12379).

    Dense until step ``begin``, then ``every`` steps sparse, ``every`` steps dense and so on; from ``end`` on sparse for good. Each
    sparse phase begins with new masks by magnitude, with exactly round(sparsity N) zeros, and each dense one with the pruned
    weights back at zero. A sparse phase that would last until ``end`` or beyond it is left out, and the dense one before it is
    longer by as much: ``ACDC.of(100, sparsity)`` is the paper's schedule on ImageNet, epoch for step (10, 5 each, from 75 dense,
    from 85 sparse). Within :class:`SignIn` the magnitudes are those of m * w, and resets go on in all phases.

    Args:
        sparsity: share of the prunable weights that is pruned in sparse phases, or text such as "90%".
        begin, every, end: step at which the first sparse phase begins, steps of a phase, and step at which the last sparse phase
            begins; None: a tenth, a twentieth and 85% of the training (the paper's), whose length
            :func:`winnow.train.attach` (``steps``) or the Trainer says.
        distribution: what weights compete with: "global", all others of the model in one ranking; or those of their tensor
            alone, whose zeros are then "uniform", "erk" or "balanced" (:func:`winnow.train.methods.random_masks.random_masks`).
        reset: sets the optimizer's momentum to zero when a dense phase begins, as in the paper (of all it trains; second
            moments stay).
        max_rate: share of its weights that a tensor may lose at most (:func:`prune_globally`).

    Raises:
        InputError: steps out of order, an unknown ``distribution`` or a ``max_rate`` outside 0 to 1.
    """

    def __init__(
        self,
        sparsity: float | str,
        *,
        begin: int | None = None,
        end: int | None = None,
        every: int | None = None,
        distribution: Literal["global"] | Distribution = "global",
        reset: bool = True,
        max_rate: float = MAX_RATE,
    ) -> None:
        require_whole(begin=begin, end=end, every=every)
        if distribution not in (known := ("global", *get_args(Distribution))):
            raise InputError(f"distribution is {distribution!r}: choose from {', '.join(known)}.")
        limits([], 0, max_rate)  # refuses a wrong one
        self.sparsity, self._given = parse_sparsity(sparsity), (begin, end, every)
        self.every = 1 if every is None else every
        first = begin or 0
        self._phases(first, first + 1 if end is None else end)
        self.distribution, self.reset, self.max_rate = distribution, reset, max_rate
        self.phase = 0  # odd: sparse

    def _plan(self, steps: int | None) -> None:
        begin, end, every = self._given
        self.every = planned(self, "every", every, 0.05, steps)
        last = planned(self, "end", end, 0.85, steps)
        first = planned(self, "begin", begin, 0.1, steps)
        self._phases(min(first, last - 1) if begin is None else first, last)  # trainings of a few steps begin sparse

    def _phases(self, begin: int, end: int) -> None:
        if not 0 <= begin < end or self.every < 1:
            raise InputError(
                f"phases of {self.every} steps from step {begin} to {end}: give 0 <= begin < end and every >= 1, "
                "or leave them out and say how long the training is, attach(..., steps=STEPS)."
            )
        self.begin, self.end = begin, end

    def start(self, attached: Attached) -> None:
        attached.set({n: torch.ones_like(k) for n, k in attached.keeps.items()})
        self.phase = 0
        self._change(attached)

    def stepped(self, attached: Attached) -> None:
        self._change(attached)

    def phase_at(self, step: int) -> int:
        """Which phase the step after this one belongs to: 0 is the dense beginning, odd ones are sparse."""
        if step >= self.end:
            return self.phase_at(self.end - 1) + 1
        if step < self.begin:
            return 0
        number = (step - self.begin) // self.every
        left_out = number % 2 == 0 and self.begin + (number + 1) * self.every >= self.end
        return number if left_out else number + 1

    def _change(self, attached: Attached) -> None:
        phase = self.phase_at(attached.step)
        if phase == self.phase:
            return
        self.phase = phase
        if phase % 2:
            attached.set(self._masks(attached))
            return
        attached.set({n: torch.ones_like(k) for n, k in attached.keeps.items()})
        for state in (s for o in attached.optimizers for s in o.state.values()) if self.reset else ():
            for key in MOMENTUM:
                if torch.is_tensor(state.get(key)):
                    state[key].zero_()

    def _masks(self, attached: Attached) -> dict[str, torch.Tensor]:
        zeros, matrices = round(self.sparsity * attached.numel), attached.matrices()
        if self.distribution == "global":
            return global_magnitude(matrices, attached.keeps, zeros, self.max_rate)
        counts = distributed(attached.scope, zeros, self.distribution, self.max_rate)
        return {n: ~lowest(m.abs().float(), counts[n]) for n, m in matrices.items()}

    def unfinished(self, attached: Attached, last: int | None = None) -> str | None:
        step = attached.step if last is None else last
        if step >= self.end:
            return None
        now = "sparse, in a phase that is not the last," if self.phase_at(step) % 2 else "dense"
        ended = "ended" if last is None else "is going to end"
        return (
            f"the model is {now} where training {ended}, at step {step}: the last sparse phase begins at step {self.end}; "
            f"take ACDC.of({step}, {self.sparsity:g}) for phases that fit."
        )

    def state(self) -> dict[str, Any]:
        return {"phase": self.phase}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.phase = int(state["phase"])
