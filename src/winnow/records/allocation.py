"""How a learned or fixed allocation came out, layer by layer: what ``report.json`` holds under ``allocation``.

Imported lazily only. Rates are the share of a layer's weights that are zero, between 0 and 1; times are seconds. A
figure that was not measured is None. A "layer" here is a group of the allocation: one prunable tensor, or whatever
shares one threshold.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from winnow.notebook import Card, Shown
from winnow.records.parts import Clean, Count, Part, Share, Text
from winnow.words import count, duration, percent


def _rounded(value: Any) -> Any:
    """A rate that a float32 sum left a hair outside of 0 to 1: no reason to lose a run's report."""
    if isinstance(value, float) and -1e-6 < value < 1 + 1e-6:
        return min(max(value, 0.0), 1.0)
    return value


Rate = Annotated[Share, BeforeValidator(_rounded)]
Seconds = Annotated[float, Field(ge=0)]


class AllocationLayer(Part):
    """One group of the allocation, in model order."""

    name: Text
    numel: Count
    rate: Rate  # exact, final
    raw_rate: Rate | None = None  # by the threshold, before the exact selection
    start_rate: Rate | None = None
    threshold: float | None = None
    sensitivity: float | None = None  # rise of the loss when this group alone gives up a tenth more of what it has left
    drift: float | None = None  # ||W' - W|| / ||W|| over the weights kept
    rates: list[Rate] = Field(default_factory=list)  # one a seed, this run's first
    earlier_rate: Rate | None = None  # in the run compared with


class StepTime(Part):
    """Mean seconds a step, by what they were spent on."""

    teacher: Seconds = 0.0
    forward: Seconds = 0.0
    backward: Seconds = 0.0
    bridge: Seconds = 0.0
    update: Seconds = 0.0


class Stability(Part):
    """How alike the allocations of several seeds are."""

    seeds: list[int] | Count = 0  # which they were, this run's first, or how many
    spread: float | None = None  # the largest standard deviation of one layer's rate
    correlation: float | None = None  # mean pairwise Spearman correlation of the rates


class Comparison(Part):
    """This allocation beside the one of an earlier run; layers are matched by name."""

    against: Text  # the earlier run's name
    moved: float | None = None  # mean |rate - earlier rate| over the layers in both
    largest: Text | None = None  # the layer that moved most
    difference: float | None = None  # its rate - its earlier rate
    correlation: float | None = None  # Spearman, over the layers in both
    matched: Count = 0
    only_here: Count = 0  # layers the earlier run does not have
    only_earlier: Count = 0  # layers this run does not have


class AllocationRecord(Shown, Part):
    """What was learned (or fixed), what it cost, and how far to trust it."""

    method: Text
    start: Text | None = None  # the allocation it began from
    structure: Text | None = None
    target: Rate | None = None
    zeros: Count | None = None
    numel: Count | None = None  # prunable weights
    total_parameters: Count | None = None
    raw_rate: Rate | None = None
    exact_rate: Rate | None = None
    exact_rate_all: Rate | None = None  # zeros over all parameters
    layers: list[AllocationLayer] = Field(default_factory=list)
    losses: list[float] = Field(default_factory=list)  # evenly thinned to 200 points
    constant: float | None = None  # what the loss would be if every answer were the same one
    classes: Count | None = None  # of a classifier
    answers: Count | None = None  # of these, how many the dense model gives on the calibration data
    steps: Count | None = None
    seconds: Seconds | None = None
    step_time: StepTime | None = None
    settings: dict[Text, Clean] = Field(default_factory=dict)
    stability: Stability | None = None
    comparison: Comparison | None = None
    warnings: list[Text] = Field(default_factory=list)

    def _card(self) -> Card:
        sentence = f"{self.method}, {percent(self.exact_rate)} sparsity over {len(self.layers)} layers"
        return Card(type(self).__name__, sentence, [("steps", count(self.steps)), ("time", duration(self.seconds))])
