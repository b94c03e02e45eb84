"""What the report of a search for tickets holds: the pydantic models behind ticket-report.json. Imported lazily only.

Units as in :mod:`winnow.records.compression`: shares between 0 and 1; ``quality``, ``low`` and ``high`` in ``task.unit``
(accuracy 91.2 with the unit "%"); ``drop`` is what was lost against the dense model, positive when worse, in points, or in
per cent of a perplexity. FLOPs count a multiplication and an addition as two; training FLOPs are three forwards a step.
Intervals are 95%.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from winnow.notebook import Card
from winnow.records.allocation import AllocationRecord
from winnow.records.compression import ModelInfo, TaskInfo, Verdict
from winnow.records.parts import Count, Part, Record, Share, Text
from winnow.words import duration, number, percent


class Figure(Part):
    """A value and its interval. ``seeds`` it is a mean over; ``spread`` their standard deviation (n - 1)."""

    value: float
    low: float | None = None
    high: float | None = None
    seeds: Count = 1
    spread: float | None = None


class Isp(Part):
    """ISP's two sums: M main steps before the last mask (at most a quarter of T), and K n_den C look-ahead steps."""

    rounds: Count  # K
    mask_steps: Count  # M
    look_ahead: Count  # K n_den C
    total: Count
    share: float  # M / T
    kept: bool


class Cost(Part):
    """What one ticket took, all earlier rounds included."""

    steps: Count
    main: Count
    look_ahead: Count = 0  # of candidates, thrown away
    extra: Count = 0  # scoring passes, as steps
    passes: float  # steps over T
    imp_rounds: Count  # K of full IMP to this sparsity, 20% a round
    imp_steps: Count  # (K + 1) T
    dense_flops: float  # every step at dense cost
    sparse_flops: float  # products of prunable tensors scaled by the density of the step
    forward_share: Share  # of the dense model's forward FLOPs, if zeros cost nothing
    seconds: float
    isp: Isp | None = None


class RoundLine(Part):
    """One pruning round."""

    number: Count
    step: Count  # of the main model
    steps: Count  # in all so far
    zeros: Count
    sparsity: Share
    disagreement: float | None = None  # mean over pairs of candidates, of the weights active before the round
    unanimous: Share | None = None
    quality: float | None = None
    densities: dict[str, float] = Field(default_factory=dict)  # share kept, by tensor


class TensorLine(Part):
    """What is left of one prunable tensor."""

    name: Text
    numel: Count
    kept: Count
    flops: float = 0.0  # forward, dense, one example


class Changes(Part):
    """The answers that differ from the dense model's on the same examples (counts)."""

    n: Count
    right_to_wrong: Count
    wrong_to_right: Count
    wrong_to_wrong: Count  # another wrong answer
    agreement: Share  # same answer

    @property
    def changed(self) -> int:
        return self.right_to_wrong + self.wrong_to_right + self.wrong_to_wrong


class ClassLine(Part):
    """One class: its recall before and after (per cent), and the examples of it whose answer turned."""

    name: Text
    n: Count
    dense: float
    ticket: float
    right_to_wrong: Count
    wrong_to_right: Count


class OverlapLine(Part):
    """How alike two masks of one count are; by chance: independent random masks with these densities in each tensor."""

    against: Text  # method of the other mask
    cosine: float
    iou: Share
    chance_cosine: float
    chance_iou: Share


class TicketLine(Part):
    """One ticket: one method, one sparsity, one seed."""

    method: Text
    seed: int
    sparsity: Share
    zeros: Count
    figure: Figure | None = None
    drop: Figure | None = None  # against the dense model, paired by example
    cost: Cost
    rounds: list[RoundLine] = Field(default_factory=list)
    tensors: list[TensorLine] = Field(default_factory=list)
    changes: Changes | None = None
    classes: list[ClassLine] = Field(default_factory=list)
    overlap: OverlapLine | None = None
    notes: list[Text] = Field(default_factory=list)


class Row(Part):
    """One method at one sparsity, over its seeds. Costs are means over the seeds."""

    method: Text
    sparsity: Share
    zeros: Count
    seeds: Count
    figure: Figure | None = None
    drop: Figure | None = None
    against: Figure | None = None  # drop from ``TicketReport.reference`` at this sparsity, paired by seed and example
    steps: float
    passes: float
    imp_steps: Count
    dense_flops: float
    sparse_flops: float
    forward_share: Share
    seconds: float


class MethodLine(Part):
    """What a method is called and does."""

    title: Text
    brief: Text = ""  # where there is little room; the title where empty
    meaning: Text = ""  # follows the title and a colon


class TicketReport(Record):
    """Everything a search has to say. Serialized as ticket-report.json, drawn as ticket.html."""

    what = "ticket"
    again = "run the search again"

    format: Literal[1] = 1
    title: Text
    created: Text | None = None  # ISO 8601
    command: Text | None = None
    verdict: Verdict
    model: ModelInfo
    task: TaskInfo = Field(default_factory=TaskInfo)
    chosen: Text  # the method that the verdict is about
    sparsity: Share  # and its sparsity
    reference: Text | None = None  # the method that others are compared with
    steps: Count  # T, of one ordinary training
    batch: float  # examples in a step
    forward: float  # FLOPs of one example, dense
    forward_prunable: float  # of these, products with prunable tensors
    dense: Figure | None = None
    tickets: list[TicketLine]
    rows: list[Row]  # by sparsity, then in the order the methods were given
    warnings: list[Text] = Field(default_factory=list)
    notes: list[Text] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    training: AllocationRecord | None = None  # of a single sparse training: sparsity by tensor, losses
    described: dict[str, MethodLine] = Field(default_factory=dict)  # by method; reports written before have none

    def _card(self) -> Card:
        unit = f" {self.task.unit}" if self.task.unit else ""

        def shown(figure: Figure | None) -> str:
            return "" if figure is None else f"{number(figure.value)}{unit}"

        rows = [
            {
                "method": self.named(r.method), "sparsity": percent(r.sparsity), self.task.metric: shown(r.figure),
                "steps": f"{r.steps:,.0f}", "time": duration(r.seconds),
            }
            for r in self.rows
        ]  # fmt: skip
        facts = [("model", self.model.name), (f"dense {self.task.metric}", shown(self.dense))]
        return Card(type(self).__name__, self.verdict.sentence, facts, [(f"{len(rows)} rows", rows)], self.verdict.tone)

    def named(self, method: str) -> str:
        """What a method is called."""
        return self.described[method].title if method in self.described else method

    def brief(self, method: str) -> str:
        """The same for axes and the columns of a narrow table."""
        found = self.described.get(method)
        return found.brief or found.title if found else method

    @property
    def methods(self) -> list[str]:
        """In the order they were given, the dense training last."""
        named = dict.fromkeys(t.method for t in self.tickets)
        return sorted(named, key=lambda m: m == "dense")

    def row(self, method: str, sparsity: float) -> Row | None:
        return next((r for r in self.rows if r.method == method and abs(r.sparsity - sparsity) < 1e-9), None)

    def lines(self, method: str, sparsity: float | None = None) -> list[TicketLine]:
        """Its tickets, at one sparsity or all."""
        return [t for t in (self.tickets if sparsity is None else self.lines_at(sparsity)) if t.method == method]

    def lines_at(self, sparsity: float) -> list[TicketLine]:
        """Tickets of every method at one sparsity."""
        return [t for t in self.tickets if abs(t.sparsity - sparsity) < 1e-9]

    @property
    def picked(self) -> Row:
        """The row that the verdict is about."""
        found = self.row(self.chosen, self.sparsity)
        assert found is not None
        return found


COLLAPSE = 0.01  # a tensor with less than this share of its weights left passes next to nothing on


def collapsed(lines: Sequence[TensorLine]) -> list[TensorLine]:
    """Tensors with less than one per cent left: global rankings can empty a layer, and nothing passes an empty layer."""
    return [line for line in lines if line.numel and line.kept < COLLAPSE * line.numel]
