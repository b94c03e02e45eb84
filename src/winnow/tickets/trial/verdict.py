"""Is the full run worth it? What a trial's figures say, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from winnow.errors import InputError
from winnow.measure.compare import compare
from winnow.measure.evaluation import Evaluation
from winnow.notebook import Card, Shown
from winnow.tickets.search import Ticket, over_usual, shown, usual_answer
from winnow.train.task.training import Training
from winnow.words import amount, signed

Decision = Literal["go", "no-go", "undecided"]
MAX_DROP = 2.0  # points, or per cent of perplexity
LITTLE = 0.1  # of what there is to learn beyond the most frequent class; of other metrics, in points or per cent, 2
HALF = 0.5  # of the dense model's skill: a ticket that keeps less will not make it up


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95% interval, in points (per cent of a perplexity)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Full:
    """What the run at full length takes on this machine; IMP's (K + 1) T beside it."""

    steps: int
    seconds: float
    imp_steps: int
    imp_seconds: float


@dataclass(repr=False)
class Verdict(Shown):
    """What a trial found.

    Attributes:
        decision: "go", "no-go" or "undecided"; ``exit_code`` is 0, 3 (a gate said no) or 1.
        sentence: the answer with its main figures.
        reasons: the figures behind it, a sentence each.
        skill: what the dense model is better by than always giving the most frequent answer (accuracy), or than itself
            before the training (other metrics).
        drop: what the ticket lost against the dense model, positive is worse.
        gain: what the ticket is better by than one-shot magnitude pruning; None where that was not run.
        steps, examples, seconds: of the trial: T', the examples it trained on, and the time it took.
        tickets, training: of the trial; :func:`winnow.tickets.reporting.build` makes a report of them.
    """

    decision: Decision
    sentence: str
    reasons: list[str]
    skill: Difference | None
    drop: Difference
    gain: Difference | None
    full: Full
    steps: int
    examples: int
    seconds: float
    tickets: list[Ticket] = field(repr=False)
    training: Training = field(repr=False)

    def _card(self) -> Card:
        tone = {"go": "good", "no-go": "bad", "undecided": "mixed"}[self.decision]
        rows = [ticket.row() for ticket in self.tickets]
        tables = [("trial", rows), ("reasons", [{"reason": reason} for reason in self.reasons])]
        return Card("Verdict", self.sentence, tables=tables, tone=tone)

    @property
    def exit_code(self) -> int:
        return {"go": 0, "no-go": 3, "undecided": 1}[self.decision]


def difference(first: Sequence[Evaluation], second: Sequence[Evaluation]) -> Difference:
    """What ``second`` lost against ``first``, pair by pair (seeds): mean drop, and the mean of the pairs' intervals."""
    found = [compare(a, b, higher_is_better=a.metric != "perplexity") for a, b in zip(first, second, strict=True)]
    return Difference(*(float(np.mean([getattr(c, name) for c in found])) for name in ("drop", "low", "high")))


def negative(d: Difference) -> Difference:
    return Difference(-d.value, -d.high, -d.low)


def skill(dense: Sequence[Evaluation], before: Evaluation) -> tuple[Difference, float | None]:
    """How much better the dense model is than no model, and (accuracy) the share of the most frequent class.

    The most frequent class of the test data itself: the best that one answer for all could do there.
    """
    usual = usual_answer(before)
    if usual is None:
        return negative(difference([before] * len(dense), dense)), None
    found = [over_usual(e, usual) for e in dense]
    value, low, high = (100 * v for v in np.mean(found, axis=0))
    return Difference(float(value), float(low), float(high)), float(usual.mean())


def judge(
    evaluations: Mapping[str, Sequence[Evaluation]],
    before: Evaluation,
    method: str,
    sparsity: float,
    max_drop: float = MAX_DROP,
) -> tuple[Decision, str, list[str], Difference, Difference, Difference | None]:
    """The decision, why in a few words, the reasons, and the three differences.

    No-go: the dense model has less than a tenth of the skill there is for sure; or the ticket is worse than ``max_drop`` for sure and
    keeps less than half of the dense model's skill. Go: the dense model beats its baseline for sure, and the ticket's
    loss is below ``max_drop`` for sure. Otherwise undecided: a short training is harder on a sparse model than a long one.

    Raises:
        InputError: the dense training or the method was not run.
    """
    if "dense" not in evaluations or method not in evaluations:
        raise InputError("a verdict compares a ticket with the dense training: leave both in methods.")
    dense, ticket = evaluations["dense"], evaluations[method]
    ability, usual = skill(dense, before)
    drop = difference(dense, ticket)
    rival = evaluations.get("magnitude") if method != "magnitude" else None
    gain = difference(ticket, rival) if rival else None
    unit = "%" if dense[0].metric == "perplexity" else "points"
    reasons = [_ability(dense, ability, usual, unit), _loss(ticket, drop, unit, sparsity)]
    if gain is not None:
        word = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not significantly different from"
        reasons.append(f"It is {word} one-shot magnitude pruning: {_shown(gain, unit)}.")
    if not math.isfinite(drop.value + ability.value):
        return "no-go", "a model put out values that are not numbers", reasons, ability, drop, gain
    little = MAX_DROP if usual is None else 100 * LITTLE * (1 - usual)
    if ability.high <= little:
        return "no-go", "the dense model shows next to no skill at this task", reasons, ability, drop, gain
    if ability.low <= 0:
        return "undecided", "the dense model's skill is not clear of its baseline", reasons, ability, drop, gain
    kept = (ability.value - drop.value) / ability.value
    if drop.high <= max_drop:
        short = f"the ticket loses at most {amount(f'{max_drop:g}', unit)}"
        if gain is not None and gain.low <= 0 and rival is not None and difference(dense, rival).high <= max_drop:
            short += ", and so does one-shot magnitude pruning, which needs no search"
        return "go", short, reasons, ability, drop, gain
    if drop.low > max_drop and kept < HALF:
        reasons.append(f"It keeps {100 * max(kept, 0.0):.0f}% of what the dense model is better by than its baseline.")
        return "no-go", "too little is left of the dense model's skill", reasons, ability, drop, gain
    side = "is above" if drop.low > max_drop else "may be above"
    return "undecided", f"the ticket's loss {side} {amount(f'{max_drop:g}', unit)}", reasons, ability, drop, gain


def _value(evaluations: Sequence[Evaluation]) -> str:
    return shown(evaluations[0].metric, float(np.mean([e.value for e in evaluations])))


def _shown(d: Difference, unit: str) -> str:
    return f"{amount(signed(d.value), unit)} ({signed(d.low)} to {signed(d.high)})"


def _ability(dense: Sequence[Evaluation], ability: Difference, usual: float | None, unit: str) -> str:
    against = "itself before the training" if usual is None else f"the most frequent answer ({100 * usual:.2f}%)"
    return f"Dense: {_value(dense)}, against {against}: {_shown(ability, unit)}."


def _loss(ticket: Sequence[Evaluation], drop: Difference, unit: str, sparsity: float) -> str:
    shown = negative(drop) if unit == "points" else drop
    return f"Ticket at {100 * sparsity:g}% sparsity: {_value(ticket)}, against dense: {_shown(shown, unit)}."
