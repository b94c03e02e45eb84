"""What a bench holds: the pydantic models behind bench.json, and the speed line of report.json. Imported lazily only.

Times are milliseconds, sizes bytes, energy joules. ``ratio`` is how many times faster than dense: the median over rounds
of the time of dense over the time of this one, both taken in the same round; ``ratio_low`` and ``ratio_high`` its 95%
interval, None where there were fewer than six rounds. ``difference`` is the largest absolute difference of an output
from the float32 model of the same weights, over the largest absolute value of that output.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from winnow.notebook import Card, frame
from winnow.records.compression import Count, Part, Record, Share, Text, Times
from winnow.words import duration

What = Literal["forward", "prefill", "decode"]


class Case(Part):
    """What one call is: so many inputs of such a length, or one token after a prompt of that length."""

    name: Text
    what: What
    batch: Count
    length: Count | None = None
    unit: Text  # what is counted per second: "requests", "samples", "tokens"
    per_call: Count = 1  # of them in one call
    rounds: Count = 0  # whole rounds measured


class Contender(Part):
    """One way to run the model."""

    name: Text
    kind: Literal["dense", "quantized", "pruned", "pruned+quantized"]
    weights: Text  # what its weights are: "float32", "int8, 70% sparsity" ...
    changes: Text | None = None  # what it computes otherwise than the float32 model of the same weights
    note: Text | None = None
    kernels: dict[str, int] = Field(default_factory=dict)  # kernel -> layers that run on it
    weight_bytes: Count | None = None  # read in a forward pass of batch 1
    file_bytes: Count | None = None
    load_seconds: float | None = None  # in a fresh process, imports not counted
    load_bytes: Count | None = None  # the most memory above the imports while loading
    run_bytes: Count | None = None  # and with the first call
    energy: float | None = None  # of one call of the first case
    energy_kind: Literal["measured", "estimated"] | None = None


class Measure(Part):
    """One contender on one case."""

    contender: Text
    case: Text
    times: Times
    per_second: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    difference: float | None = None
    limit: float | None = None  # bytes of its weights over this machine's bandwidth


class LayerSpeed(Part):
    """One packed matrix: what each kernel takes with the weights coming from memory."""

    name: Text
    kind: Text
    rows: Count
    cols: Count
    sparsity: Share
    values: Text
    inputs: Count  # rows of x
    packed_bytes: Count
    dense_bytes: Count  # in float32
    limit: float  # packed bytes over bandwidth
    dense_limit: float
    times: dict[str, float]  # kernel -> median
    runs_on: Text | None = None  # what the dispatcher chose
    like: Text | None = None  # the layer of equal shape and content whose times these are


class Bandwidth(Part):
    """What one pass over memory reached."""

    bytes_per_second: float
    buffer: Count
    threads: Count
    cache: Count
    way: Text


class Absent(Part):
    """A contender that was asked for and is not there, and why."""

    name: Text
    reason: Text


class Bench(Record):
    """Everything ``winnow bench`` has to say. Serialized as bench.json, drawn as bench.html."""

    what = "bench"
    again = "run winnow bench again, or delete it"

    format: Literal[1] = 1
    created: Text | None = None  # ISO 8601
    command: Text | None = None
    made: dict[str, Any] | None = None  # what the job says of itself: see winnow.disk.made
    model: Text
    architecture: Text | None = None
    reference: Text
    inputs: Text  # random, or the data's name
    cases: list[Case] = Field(default_factory=list)
    contenders: list[Contender] = Field(default_factory=list)
    measures: list[Measure] = Field(default_factory=list)
    layers: list[LayerSpeed] = Field(default_factory=list)
    absent: list[Absent] = Field(default_factory=list)
    bandwidth: Bandwidth | None = None
    energy: Text | None = None  # the meter, or why there is none
    notes: list[Text] = Field(default_factory=list)
    interrupted: bool = False
    others: float | None = None  # cores that other programs kept busy during the rounds
    machine: dict[str, Any] = Field(default_factory=dict)
    written: str | None = Field(default=None, exclude=True)  # the JSON file, of a bench that was just made

    def to_frame(self) -> Any:
        """A pandas DataFrame: a row for each contender and case, times in milliseconds, ``ratio`` times faster than dense.

        Raises:
            InputError: pandas is not installed.
        """
        rows = [{**m.model_dump(exclude={"times"}), **{f"{k}_ms": getattr(m.times, k) for k in ("median", "p95", "q1", "q3")}} for m in self.measures]  # fmt: skip
        return frame(rows)

    def _card(self) -> Card:
        rows = [
            {
                "case": m.case, "backend": m.contender, "median": duration(m.times.median / 1e3),
                "speedup": "" if m.ratio is None else f"{m.ratio:.2f}×",
                "interval": "" if m.ratio_low is None or m.ratio_high is None else f"{m.ratio_low:.2f} to {m.ratio_high:.2f}",
            }
            for m in self.measures
        ]  # fmt: skip
        best = max((m for m in self.measures if m.ratio is not None), key=lambda m: m.ratio or 0.0, default=None)
        said = (
            ""
            if best is None or best.ratio is None
            else f"; at best {best.ratio:.2f}× dense ({best.contender}, {best.case})"
        )
        sentence = f"{self.model}: {len(self.contenders)} backends, {len(self.cases)} cases{said}"
        facts = [("stopped", "before the end" if self.interrupted else "")]
        return Card(type(self).__name__, sentence, facts, [(f"{len(rows)} measurements", rows)])

    def measure(self, contender: str, case: str) -> Measure | None:
        return next((m for m in self.measures if (m.contender, m.case) == (contender, case)), None)

    def ranked(self, case: str) -> list[Measure]:
        """The measures of a case, the fastest first."""
        return sorted((m for m in self.measures if m.case == case), key=lambda m: m.times.median)
