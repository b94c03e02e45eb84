"""What signs.json holds: the signs of weights in training, and the ablation of signs against magnitudes.

Imported lazily only. Counts are of kept weights that are not exactly zero, added up over seeds; shares lie between 0 and 1.
Figures of the metric are in ``task.unit`` (accuracy 95.4 with the unit "%"), differences in points where that is "%", and
positive where the first is better. Intervals are 95%, Student's t over seeds, from three seeds on.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from winnow.notebook import Card
from winnow.records.compression import ModelInfo, TaskInfo, Verdict
from winnow.records.parts import Count, Part, Record, Share, Text
from winnow.records.ticket import Figure, MethodLine
from winnow.words import number, percent


class SignCounts(Part):
    """The signs of one tensor, or of all, at one step."""

    kept: Count  # weights that the masks keep
    compared: Count  # that are not zero now and were not at initialisation
    flipped: Count  # of these, with another sign now
    since: Count  # that are not zero now and were not at the record before
    changed: Count  # of these, with another sign now
    shared: Count | None = None  # that are not zero here and in the reference
    aligned: Count | None = None  # of these, with the reference's sign
    health: float | None = (
        None  # mean of (m^2 - w^2) / beta before a reset of this step: 1 fresh, 0 where signs are frozen
    )

    @property
    def flip_share(self) -> float | None:
        return self.flipped / self.compared if self.compared else None

    @property
    def change_share(self) -> float | None:
        return self.changed / self.since if self.since else None

    @property
    def alignment(self) -> float | None:
        return self.aligned / self.shared if self.shared and self.aligned is not None else None


class SignPoint(SignCounts):
    """All tensors at one optimizer step."""

    step: Count


class SignLayer(Part):
    """One prunable tensor: its last counts, and its share of flips at every record."""

    name: Text
    numel: Count
    last: SignCounts
    flips: list[float | None]


class SignRun(Part):
    """The signs of one training, or of several seeds of it added up."""

    name: Text
    sparsity: Share | None = None
    seeds: Count = 1
    points: list[SignPoint]
    layers: list[SignLayer]


class SignArm(Part):
    """One way to train under a mask, at one sparsity."""

    name: Text
    sparsity: Share
    zeros: Count
    figure: Figure  # the metric at the end of training
    loss: Figure  # training loss, mean over the last epoch
    values: list[float]  # by seed
    losses: list[float]


class SignContrast(Part):
    """Two ways at one sparsity, paired by seed."""

    first: Text
    second: Text
    sparsity: Share
    gain: Figure  # of the metric, positive where the first is better
    loss: Figure  # how much lower the first's training loss is


class SignReport(Record):
    """Signs in training. Serialized as signs.json, drawn as signs.html."""

    what = "signs"
    again = "train again"

    format: Literal[1] = 1
    title: Text
    created: Text | None = None  # ISO 8601
    command: Text | None = None
    verdict: Verdict
    model: ModelInfo | None = None
    task: TaskInfo = Field(default_factory=TaskInfo)
    runs: list[SignRun]
    arms: list[SignArm] = Field(default_factory=list)  # by sparsity, then in their order
    contrasts: list[SignContrast] = Field(default_factory=list)
    described: dict[str, MethodLine] = Field(default_factory=dict)  # arms and runs by name
    reference: Text | None = None  # what alignment is with
    seeds: list[int] = Field(default_factory=list)
    steps: Count | None = None  # of one training
    notes: list[Text] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)

    def title_of(self, name: str) -> str:
        """What an arm or run is called."""
        return self.described[name].title if name in self.described else name

    def brief_of(self, name: str) -> str:
        """The same where there is little room."""
        found = self.described.get(name)
        return found.brief or found.title if found else name

    @property
    def levels(self) -> list[float]:
        """The sparsities of the ablation, rising."""
        return sorted({arm.sparsity for arm in self.arms})

    def contrast(self, first: str, second: str, sparsity: float) -> SignContrast | None:
        found = (c for c in self.contrasts if (c.first, c.second) == (first, second) and c.sparsity == sparsity)
        return next(found, None)

    def _card(self) -> Card:
        rows: list[dict[str, Any]] = [
            {
                "arm": self.title_of(a.name), "sparsity": percent(a.sparsity), self.task.metric: number(a.figure.value),
                "training loss": number(a.loss.value),
            }
            for a in self.arms
        ] or [
            {
                "training": self.title_of(r.name), "step": r.points[-1].step, "flipped": percent(r.points[-1].flip_share),
                "aligned": percent(r.points[-1].alignment),
            }
            for r in self.runs
        ]  # fmt: skip
        return Card(type(self).__name__, self.verdict.sentence, [], [(f"{len(rows)} rows", rows)], self.verdict.tone)
