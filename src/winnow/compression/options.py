"""The options of ``compress``: type, default, bounds and help text, once for Python, the command line and recipes.

A new option is a field here (of :class:`Job` where a recipe gives it elsewhere) and the code that uses it. The command
line is built from these fields, so nothing here imports torch before an option needs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from winnow.errors import InputError, meant
from winnow.settings import complaint

SAMPLES, TRAINING_SAMPLES = 128, 1024  # calibration samples where none are given
LARGEST = 1 << 50  # bytes
UNITS = {"s": 1, "m": 60, "h": 3600}
PANELS = BUDGET, DATA, METHOD, OUTPUT, ADVANCED = "Budget", "Data", "Method", "Output", "Advanced"  # groups of the help


def option(default: Any, text: str, panel: str = ADVANCED, *, names: Sequence[str] = (), **bounds: Any) -> Any:
    """A field with its help text and the group of the help it stands in; ``names`` are known where others are allowed too."""
    return Field(default, description=text, json_schema_extra={"panel": panel, "names": list(names)}, **bounds)


def panel_of(field: FieldInfo) -> str:
    """The group of the help that a field stands in."""
    return str(_extra(field).get("panel", ADVANCED))


def choices_of(field: FieldInfo) -> tuple[Any, ...]:
    """The values of a field that takes no others (a Literal); none for other fields."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return ()


def names_of(field: FieldInfo) -> tuple[str, ...]:
    """What a shell completes: the known names of a field that takes others too, else its choices."""
    return tuple(_extra(field).get("names") or map(str, choices_of(field)))


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def one_of(kind: Any) -> str:
    """The values of a Literal in words: "keep, bf16, int8 or int4"."""
    *most, last = map(str, get_args(kind))
    return f"{', '.join(most)} or {last}" if most else last


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parts(given: Any) -> Sequence[Any]:
    """The values in "0.5,0.7", a sequence or a single one."""
    return given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]


def _pixels(given: Any) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in _parts(given))
    except (TypeError, ValueError):
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"{given!r} is no list of numbers: write one, or one per channel, as 0.485,0.456,0.406")
    return values


Pixels = Annotated[tuple[float, ...], BeforeValidator(_pixels)]
Texts = tuple[str, ...]
# What the registries hold (METHODS, SCORES, ...), in writing: type checkers read it, and nothing has to be imported for it.
Method = Literal[
    "auto", "magnitude", "global", "lamp", "random", "wanda", "ria", "owl", "sparsegpt", "sparsegpt+lsq", "swap+lsq", "alps",
    "alps-lamp", "fcpts", "distil", "reconstruct", "zeros",
]  # fmt: skip
Score = Literal["magnitude", "wanda", "ria", "random"]
Group = Literal["layer", "row"]
Allocation = Literal[
    "uniform", "global", "erk", "balanced", "lamp", "l2", "owl", "alphapruning", "learned", "table", "zeros"
]
SOLVERS = ("none", "sparsegpt", "alps", "lsq", "swap", "reconstruct", "distil")
STRUCTURES = ("unstructured", "2:4", "4:8", "block:1x4", "neuron", "head", "channel")
Values = Literal["keep", "bf16", "int8", "int4"]
GroupSize = Literal[32, 64, 128, 256]
Baselines = Literal["all", "rtn", "none"]
Sequential = Literal["auto", "layer", "block"]
Dtype = Literal["auto", "float32", "bfloat16"]
Task = Literal["auto", "lm", "classification", "similarity", "regression", "agreement", "none"]
AnyTask = Literal[Task, "perplexity", "language-model", "accuracy", "classify"]  # other names of the same
DTYPE = option("auto", f"Compute data type: {one_of(Dtype)}.")
EVAL_LIMIT = option(None, "Evaluate at most this many examples (segments, for text).", DATA, ge=2, le=1 << 40)


class Options(BaseModel):
    """How a model is compressed: what ``winnow.compress`` and the compress stage of a recipe have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sparsity: float | str | Sequence[float | str] | None = option(
        None, "Target sparsity of the prunable weights, e.g. 0.6 or 60%; several: 0.5,0.7,0.9.", BUDGET
    )
    bits_per_weight: float | None = option(
        None, "Bits per prunable weight, including indices and scales.", BUDGET, gt=0
    )
    size: str | int | None = option(None, "Size of the weights file, e.g. 40MB.", BUDGET)
    max_drop: float | None = option(
        None,
        "Find the smallest file that loses at most this many points (per cent, for perplexity), with 95% confidence.",
        BUDGET,
        gt=0,
    )
    method: Method = option("auto", f"Pruning method: {one_of(Method)}.", METHOD)
    score: Score | None = option(None, f"Importance score: {one_of(Score)}.", METHOD)
    group: Group | None = option(None, f"Comparison group: {one_of(Group)}.", METHOD)
    allocation: Allocation | None = option(None, f"Layer-wise sparsity: {one_of(Allocation)}.", METHOD)
    table: dict[str, float] | None = option(None, "JSON file: layer name or pattern -> sparsity.", METHOD)
    structure: str = option(
        "unstructured",
        "Sparsity pattern: unstructured, n:m (n kept of m), block:RxC, neuron, head or channel.",
        METHOD,
        names=STRUCTURES,
    )
    solver: str | None = option(
        None,
        "Weight update: none, sparsegpt, alps, lsq, swap, joined by +; reconstruct, distil.",
        METHOD,
        names=SOLVERS,
    )
    values: Values = option("keep", f"Data type of the remaining weights: {one_of(Values)}.", METHOD)
    rest: Values = option(
        "keep",
        f"Data type of what is not pruned (embeddings, output layer, first convolution): {one_of(Values)}.",
        METHOD,
    )
    group_size: GroupSize = option(
        128, f"Quantization group size (inputs per int4 scale): {one_of(GroupSize)}.", METHOD
    )
    baselines: Baselines = option("all", "Baselines to compare with: all, rtn (quick) or none.", OUTPUT)
    include: Texts = option((), "Also treat these as prunable (name or pattern); repeatable.")
    exclude: Texts = option((), "Never prune these (name or pattern); repeatable.")
    samples: int | None = option(
        None,
        f"Calibration samples; by default {SAMPLES}, or {TRAINING_SAMPLES} for methods that train or fit.",
        DATA,
        ge=1,
        le=1 << 24,
    )
    batch_size: int = option(8, "Calibration samples per forward.", DATA, ge=1, le=1 << 20)
    eval_limit: int | None = EVAL_LIMIT
    damp: float = option(0.01, "Hessian dampening, as a fraction of the mean diagonal.", gt=0)
    sequential: Sequential = option(
        "auto", "Recompute calibration statistics after each pruned layer or block; auto chooses."
    )
    recalibrate: bool = option(True, "Re-estimate batch-norm statistics.")
    ram: str | int | None = option(None, "Memory limit, e.g. 2GB: the model is streamed from its shards.")
    device: str = option("cpu", "Device for block-wise computation, e.g. cuda.", names=("cpu", "cuda"))
    dtype: Dtype = DTYPE
    speed: bool = option(True, "Measure the speed on this machine at the end (quick).", OUTPUT)
    settings: dict[str, Any] = option(
        {}, "A setting of fcpts, distil or reconstruct, e.g. steps=300; repeatable.", METHOD
    )
    time: float | str | None = option(
        None, "Time limit for training, e.g. 60s or 2m, in place of a number of steps.", METHOD
    )
    floor: float | None = option(
        None, "Warn when quality is below this value of the metric, e.g. 80; stop where the dense model is.", BUDGET
    )

    @field_validator("sparsity", "size", "structure", "ram", "device", "time")
    @classmethod
    def _readable(cls, value: Any, info: ValidationInfo) -> Any:
        """The text stays as it was given, which is how recipes and reports show it."""
        from winnow.budget import parse_size
        from winnow.masks.structure import parse_structure

        read: dict[str, Any] = dict(
            sparsity=rates_of, size=parse_size, structure=parse_structure, ram=_memory, device=_on, time=_seconds
        )
        if value is not None:
            read[str(info.field_name)](value)
        return value

    def seconds(self) -> float | None:
        """The time limit of training."""
        return None if self.time is None else _seconds(self.time)

    def memory_limit(self) -> int | None:
        """Bytes."""
        return None if self.ram is None else _memory(self.ram)


class Inputs(BaseModel):
    """How a model and its data are opened and evaluated: what ``compress`` and ``evaluate`` have in common.

    Raises InputError, naming the option, for a value that cannot be used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    verb: ClassVar[str] = "evaluate"  # the function of winnow that takes these

    task: AnyTask = option("auto", f"Task: {one_of(Task)}.", DATA, names=get_args(Task))
    column: str | None = option(None, "Column of the text (two for pairs: a,b).", DATA)
    label: str | None = option(None, "Column of the label.", DATA)
    length: int | None = option(None, "Sequence length, in tokens.", DATA, ge=2, le=1 << 22)
    eval_limit: int | None = EVAL_LIMIT
    dtype: Dtype = DTYPE
    weights: str | Path | None = option(None, "State dict (.safetensors) for package.module:function.", DATA)
    tokenizer: Any = option(None, "Tokenizer or image processor, in place of the one in the model's folder.", DATA)
    trust_remote_code: bool = option(False, "Run code that comes with the model folder.")
    mean: Pixels | None = option(
        None, "Pixel mean, for images with pixels in [0, 1]: one number, or 0.485,0.456,0.406.", DATA
    )
    std: Pixels | None = option(None, "Pixel standard deviation, to go with --mean.", DATA)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        else:
            return
        name = str(first["loc"][0]) if first["loc"] else None
        cause = first.get("ctx", {}).get("error")
        text = cause.flagged if isinstance(cause, InputError) else f"{flag(str(name))} {complaint(first)}."
        if first["type"] == "extra_forbidden":
            near = meant(str(name), type(self).model_fields)
            text = f"there is no option {name!r}{near}: help(winnow.{self.verb}) lists them all."
        raise InputError(text, option=getattr(cause, "option", None) or name)


def rates_of(given: Any) -> list[float]:
    """One sparsity or several, in [0, 1)."""
    from winnow.budget import parse_sparsity

    rates = [parse_sparsity(part) for part in _parts(given)]
    if not rates or len(set(rates)) != len(rates):
        raise ValueError("must name one rate or several different ones, such as 0.5,0.7")
    return rates


def _seconds(given: float | str) -> float:
    text = str(given).strip().lower()
    unit = UNITS.get(text[-1:], 0)
    try:
        seconds = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        seconds = 0.0
    if not (0 < seconds < math.inf):
        raise ValueError(f"{given!r} is no time: write 60s, 2m or 90 (seconds)")
    return seconds


def _memory(given: str | int) -> int:
    from winnow.budget import parse_size

    limit = parse_size(given)
    if limit > LARGEST:
        raise ValueError(f"{given} is more memory than any machine has: write it like 2GB")
    return limit


def _on(device: str) -> None:
    """Raises ValueError for a device that this torch does not know or this machine does not have."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{device!r} cannot be used here ({reason}): choose cpu") from None
