"""The chosen model and the nearest plain quantization, side by side in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from winnow.compression.rivals import examples_needed
from winnow.measure.compare import Comparison
from winnow.records.compression import Baseline, TaskInfo
from winnow.report.compression import phrases
from winnow.words import ratio, signed, size

SMALL_DROP = 1.0  # points, or per cent of perplexity: what most users accept without asking
LARGE_DROP = 5.0


@dataclass(frozen=True)
class Sides:
    """The words for a baseline beside the chosen model. Better and worse are said by the paired interval alone.

    ``file_bytes``: of the chosen model. ``of``: what was quantized, where that is not the dense model (" of the ticket").
    ``label``: the chosen model as a person reads it, where the sentence has not named it yet.
    """

    baseline: Baseline
    file_bytes: int
    task: TaskInfo
    of: str = ""
    label: str = ""

    @property
    def clause(self) -> str:
        """The nearest plain quantization at the end of a verdict's first sentence, or why there is none."""
        b = self.baseline
        if b.name is None:
            return f"; {b.missing or 'plain quantization was not measured'}"
        return (
            f"; the nearest plain quantization{self.of}, {b.label or b.name}, has {size(b.file_bytes)} "
            f"({ratio(self.file_bytes, b.file_bytes)}) and {self.difference}"
        )

    @property
    def dominated(self) -> str:
        """The first sentence where plain quantization is no larger and measured no worse."""
        b = self.baseline
        if b.chosen_is != "undecided":
            head = "is the better answer here"
        elif (b.file_bytes or 0) < self.file_bytes:
            head = "is smaller at no loss that could be measured"
        else:
            head = "does as well here as far as could be measured"
        return f"Plain quantization{self.of} {head}: {self.instead}."

    @property
    def instead(self) -> str:
        """What the baseline has in place of the chosen model's bytes and quality."""
        b = self.baseline
        its, own = size(b.file_bytes), size(self.file_bytes)
        than = f"the {own} of {self.label}" if self.label else own
        room = f"the same {own}" if its == own else f"{its} instead of {than}"
        return f"{b.label or b.name} has {room} and {self.difference}"

    @property
    def difference(self) -> str:
        """The baseline's quality, and whether it differs from the chosen model's."""
        b = self.baseline
        value = f"{self.task.metric} {figure(b.quality, self.task)}"
        if b.chosen_is is None or b.drop is None or b.drop_low is None or b.drop_high is None:
            return f"{value}, where the chosen model's outputs hold NaN" if b.quality is not None else value
        if b.chosen_is == "undecided":
            return f"{value}, {self._undecided}"
        sign = 1 if b.chosen_is == "worse" else -1
        by, low, high = map(_amount, (sign * b.drop, *sorted((sign * b.drop_low, sign * b.drop_high))))
        which, interval = "better" if sign > 0 else "worse", f"(95% interval {low} to {high})"
        if self.task.higher_is_better:
            return f"{value}, {which} by {by} points {interval}"
        return f"{value}, which is {which}: the chosen model's is {by}% {'higher' if sign > 0 else 'lower'} {interval}"

    @property
    def _undecided(self) -> str:
        b = self.baseline
        text = f"not significantly different with {self._counted(b.n or 0)}"
        if b.needed is not None:
            return f"{text}; about {b.needed:,} would be needed to tell the two apart"
        if b.drop_low is None or b.drop_high is None or math.isinf(b.drop_low) or math.isinf(b.drop_high):
            return f"{text}, too few for an interval"
        return f"{text}: the difference measured is close to zero"

    @property
    def choice(self) -> list[str]:
        """What it depends on which of the two to take; nothing where the chosen one is smaller and not worse."""
        b = self.baseline
        if b.file_bytes is None or b.chosen_is is None:
            return []
        label = b.label or b.name
        if b.file_bytes >= self.file_bytes:
            less = ratio(b.file_bytes, self.file_bytes)
            return [f"what counts more, a file {less} or the {self.task.metric} of {label}"] * (b.chosen_is == "worse")
        if b.chosen_is == "better":
            less = ratio(self.file_bytes, b.file_bytes)
            return [f"what counts more, this {self.task.metric} or the file of {label}, {less}"]
        return [f"whether its difference from {label}, which is smaller, is real"]

    def price(self, loss: Comparison, before: int) -> list[str]:
        """What it depends on whether a loss against the model given, of ``before`` bytes, is worth it."""
        metric, relative = self.task.metric, loss.relative
        if loss.drop > SMALL_DROP:
            lost = f"{metric} {_amount(loss.drop)}% higher" if relative else f"{_amount(loss.drop)} points of {metric}"
            return [f"whether a file {ratio(before, self.file_bytes)} is worth {lost}"]
        bound = f"{SMALL_DROP:g}%" if relative else f"{SMALL_DROP:g} point"
        needed = examples_needed(loss, apart_from=SMALL_DROP)
        tell = f" (about {needed:,} would settle that)" if needed is not None else ""
        return [f"whether more than {bound} is lost, which {self._counted(loss.n)} leave open{tell}"]

    def _counted(self, n: int) -> str:
        """How many examples, which of a text are segments."""
        one = "segment" if self.task.metric == "perplexity" else "example"
        return f"{n:,} {one}{'' if n == 1 else 's'}"


def figure(value: float | None, task: TaskInfo) -> str:
    """A figure of the task's metric with its unit."""
    return "not a number" if value is None or math.isnan(value) else phrases.quality(value, task)


def _amount(value: float) -> str:
    return signed(value, 2 if abs(value) < 100 else 0).lstrip("+")
