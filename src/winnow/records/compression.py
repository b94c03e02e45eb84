"""What a report holds: the pydantic models behind report.json.

Imported lazily only. A field that is not known is None (or an empty list); pages leave its place out.

Units, everywhere: ``sparsity``, ``agreement`` and every ``*_share`` are fractions between 0 and 1; sizes are bytes;
times are seconds. ``quality``, ``low`` and ``high`` are the metric's own value in ``task.unit`` (accuracy 91.2 with the
unit "%", perplexity 12.3 with the unit ""), so are the two columns of ``classes``. ``drop`` is what was lost against
the yardstick (:attr:`Report.yardstick`), positive when worse: in points (the metric's own unit) where higher is better,
else in per cent of its value. ``agreement`` and ``kl`` are against the model that was packed: the ticket where there is
one, else the dense model.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from winnow.records.allocation import AllocationRecord
from winnow.records.parts import Count, Image, Part, Record, Share, Text
from winnow.records.summary import Tabular

Kind = Literal["dense", "ticket", "pruned", "quantized", "pruned+quantized"]


class Verdict(Part):
    """The answer in one sentence, and whether it is good news."""

    sentence: Text
    tone: Literal["good", "mixed", "bad"] = "good"
    answer: Text | None = None  # the two or three words before the sentence, where the tone's own would mislead


class Baseline(Part):
    """The nearest plain-quantized model, which the chosen one is judged by.

    It is the best of those that are no larger (or within the size asked for) and measured no worse; where there is none, the
    one closest in bytes, and of those within 1% of its size the best in quality. The difference is paired by example: ``drop``
    is what the chosen model lost against it, with its 95% interval, positive where the chosen model is worse.
    """

    name: Text | None = None  # of a candidate
    label: Text | None = None
    file_bytes: Count | None = None
    quality: float | None = None
    dominates: bool = False  # by the first of the two rules
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    chosen_is: Literal["better", "worse", "undecided"] | None = None  # by that interval; None where outputs hold NaN
    n: Count | None = None  # examples (segments of a text) that both were measured on
    needed: Count | None = None  # about as many would tell an undecided difference from zero; None: no practical number
    missing: Text | None = None  # why there is none


class ModelInfo(Part):
    """The dense model the run started from."""

    name: Text
    architecture: Text | None = None
    kind: Text | None = None  # what it does: "causal-lm", "image classifier" ...
    parameters: Count | None = None
    vocabulary: Count | None = None  # rows of the embeddings, where they were cut to a corpus
    vocabulary_before: Count | None = None
    prunable: Count | None = None  # weights in scope
    prunable_share: Share | None = None
    hash: Text | None = None


class TaskInfo(Part):
    """What quality means here, and on which data it was measured."""

    name: Text | None = None
    metric: Text = "quality"
    higher_is_better: bool = True
    unit: Text = ""
    evaluation_data: Text | None = None
    calibration_data: Text | None = None
    n: Count | None = None  # examples or predicted tokens behind the figure
    segment_length: Count | None = None  # tokens per segment of a perplexity
    disjoint: bool | None = None  # evaluation shares no example with calibration
    calibration_tokens: Count | None = None


class Candidate(Part):
    """One model on the frontier: the dense one, the ticket that was packed, a pruned one, or a plainly quantized one."""

    name: Text
    kind: Kind
    label: Text | None = None  # how a person reads it
    sparsity: Share | None = None  # of the prunable weights
    values: Text | None = None  # "keep", "bf16", "int8", "int4" ...
    rest: Text | None = None  # the same of what is not pruned (embeddings, output layer)
    group_size: Count | None = None  # inputs that share a scale
    method: Text | None = None
    bits_per_weight: float | None = None  # of the prunable weights, masks and scales counted
    file_bytes: Count | None = None  # of the whole file
    quality: float | None = None
    low: float | None = None
    high: float | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    agreement: Share | None = None  # same top-1 answer as the model that was packed
    kl: float | None = None  # nats, mean over the answers (tokens of a text)
    kl_p99: float | None = None  # its 99th percentile over them
    seconds: float | None = None
    folder: Text | None = None
    chosen: bool = False
    note: Text | None = None

    @property
    def unpacked(self) -> bool:
        """Whether others are compared with it: a model as it was before packing."""
        return self.kind in ("dense", "ticket")


class Layer(Part):
    """One pruned matrix of the chosen candidate."""

    name: Text
    block: Text | None = None
    kind: Text | None = None
    rows: Count | None = None
    cols: Count | None = None
    zeros: Count | None = None
    sparsity: Share | None = None
    error: float | None = None  # ||WX - W'X||^2 / ||WX||^2
    method: Text | None = None  # what was done in place of the candidate's method, e.g. "magnitude"; None: that method
    bits_per_weight: float | None = None
    seconds: float | None = None


class Requested(Part):
    """What was asked for, and what was reached."""

    budget: Text | None = None  # "sparsity 0.5", "3 bits per weight", "40 MB", "at most 1 point worse"
    zeros_requested: Count | None = None
    zeros_reached: Count | None = None
    structure: Text | None = None
    difference: int | None = None  # reached - requested


class SkippedTensor(Part):
    """A parameter that was not pruned, and why."""

    name: Text
    numel: Count
    reason: Text
    values: Text | None = None  # the type that it is stored in; None: its own


class FilePart(Part):
    """All tensors of one kind in the weights file."""

    what: Text  # "embeddings", "output layer", "pruned layers", "index", "scales", "norms and biases", "header" ...
    dtype: Text | None = None  # as stored: "float32", "int8"; None where there are several, or none
    bytes: Count


class Sizes(Part):
    """Where the bytes of the file went."""

    dense_file: Count | None = None
    file: Count | None = None
    packed_values: Count | None = None
    masks: Count | None = None
    scales: Count | None = None
    dense_tensors: Count | None = None
    other: Count | None = None
    contents: list[FilePart] = Field(default_factory=list)  # of the weights file, the largest first; they add up to it


class Memory(Part):
    """The most memory the run held at once, and the limit it was given."""

    peak_bytes: Count | None = None
    limit_bytes: Count | None = None


class Stage(Part):
    """Time of one stage of the run."""

    stage: Text
    seconds: float


class Cost(Part):
    """What compressing itself cost."""

    seconds_total: float | None = None
    calibration_tokens: Count | None = None
    energy: Text | None = None  # a note: measured how, or why not


class ClassQuality(Part):
    """Recall of one class before and after."""

    name: Text
    n: Count | None = None
    dense: float | None = None
    pruned: float | None = None


class ChangedExample(Part):
    """An input whose answer changed."""

    input: Text
    truth: Text | None = None
    dense: Text | None = None
    pruned: Text | None = None
    image: Image | None = None


class Times(Part):
    """Milliseconds of a call: quantiles over all timed calls."""

    median: float
    p95: float
    q1: float
    q3: float
    n: Count


class SpeedCase(Part):
    """One kind of input in the quick measurement: every dense way to run the model, and the packed model.

    ``ratio`` is how many times faster than ``rival`` the packed model is, paired by round, with its 95% interval.
    """

    what: Text  # "one text of 31 tokens, the data's median", "one token after 128"
    unit: Text  # what is counted per second: "requests", "samples", "tokens"
    per_call: Count = 1  # of them in one call
    rounds: Count = 0
    dense: dict[str, Times] = Field(default_factory=dict)  # "float32", "bfloat16", "ONNX Runtime float32"
    fast: Times
    rival: Text  # the fastest of ``dense``
    ratio: float
    ratio_low: float | None = None
    ratio_high: float | None = None
    difference: float | None = None  # of its output from the dense model's: largest one, over the largest output


class Speed(Part):
    """The quick measurement that ends a compression: the packed model against the fastest dense one (``winnow bench`` is the
    whole one).

    ``what`` to ``difference`` are those of the first case, ``dense`` the times of its ``rival``.
    """

    what: Text  # "one image", "one token after 128"
    dense: Times | None = None
    rival: Text | None = None  # which dense way was the fastest; None in older reports: the type in ``arithmetic``
    fast: Times | None = None
    runs_on: Text | None = None  # "packed", "accelerated"
    kernels: dict[str, int] = Field(default_factory=dict)  # kernel -> layers that run on it
    arithmetic: Text | None = None  # type of inputs and outputs, and of the dense weights
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    difference: float | None = None
    cases: list[SpeedCase] = Field(default_factory=list)
    left_out: dict[str, Text] = Field(default_factory=dict)  # a dense way -> why it is not among them
    others: float | None = None  # cores that other programs kept busy meanwhile
    cores: Count | None = None  # that could be used
    threads: Count | None = None
    seconds: float | None = None  # that the measurement took
    missing: Text | None = None  # why nothing was measured


class Report(Tabular, Record):
    """Everything a run has to say. Serialized as report.json, drawn as report.html."""

    what = "report"
    again = "write it again with winnow compress"

    format: Literal[1] = 1
    title: Text
    created: Text | None = None  # ISO 8601
    verdict: Verdict
    next_step: Text | None = None
    undo: Text | None = None  # how to go back
    command: Text | None = None  # the exact command that repeats the run
    model: ModelInfo
    task: TaskInfo = Field(default_factory=TaskInfo)
    chosen: Text | None = None  # name of a candidate
    baseline: Baseline | None = None
    candidates: list[Candidate] = Field(default_factory=list)
    layers: list[Layer] = Field(default_factory=list)
    allocation: AllocationRecord | None = None  # where rates were learned, or weights fitted under fixed ones
    requested: Requested = Field(default_factory=Requested)
    skipped: list[SkippedTensor] = Field(default_factory=list)
    speed: Speed | None = None
    sizes: Sizes = Field(default_factory=Sizes)
    memory: Memory = Field(default_factory=Memory)
    timing: list[Stage] = Field(default_factory=list)
    cost: Cost = Field(default_factory=Cost)
    classes: list[ClassQuality] = Field(default_factory=list)
    changed: list[ChangedExample] = Field(default_factory=list)
    notes: list[Text] = Field(default_factory=list)  # warnings: what the user can act on
    remarks: list[Text] = Field(default_factory=list)  # how things were done; not on a terminal
    machine: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    seeds: dict[str, Any] = Field(default_factory=dict)
    hashes: dict[str, Any] = Field(default_factory=dict)

    @property
    def dense(self) -> Candidate | None:
        """The dense candidate, where it was measured."""
        return next((c for c in self.candidates if c.kind == "dense"), None)

    @property
    def ticket(self) -> Candidate | None:
        """The sparse model that was packed, where compression began with one: a ticket is not dense."""
        return next((c for c in self.candidates if c.kind == "ticket"), None)

    @property
    def yardstick(self) -> Candidate | None:
        """What every ``drop`` is against: the dense model, or the ticket where no dense one was measured."""
        return self.dense or self.ticket

    @property
    def picked(self) -> Candidate | None:
        """The candidate that was chosen: by its flag, else by the report's ``chosen`` name."""
        flagged = next((c for c in self.candidates if c.chosen), None)
        return flagged or next((c for c in self.candidates if c.name == self.chosen), None)

    @property
    def ranked(self) -> list[Candidate]:
        """Candidates from the largest file to the smallest, the unmeasured last: the order of every table and figure."""
        return sorted(self.candidates, key=lambda c: -c.file_bytes if c.file_bytes is not None else 1.0)
