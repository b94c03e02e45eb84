"""A recipe of stages: train, ticket, compress, eval - read from YAML and checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from winnow.budget import parse_sparsity
from winnow.compression.job import BUDGETS, Job
from winnow.compression.options import Options, rates_of
from winnow.errors import InputError
from winnow.pipeline.part import Part, in_fields, require_no_truth, require_settings

Precision = Literal["float32", "bfloat16"]
Texts = tuple[str, ...]


class Stage(Part):
    """One stage. ``kind`` is its name in the recipe, ``number`` its place from 1."""

    kind: ClassVar[str]

    def key(self) -> dict[str, Any]:
        """All of it that decides the stage's result, as JSON."""
        return self.model_dump(mode="json")


class Fitting(Stage):
    """How a model is fine-tuned, for :func:`winnow.find_ticket`; None takes its defaults."""

    steps: int | None = Field(None, ge=1, lt=1 << 40)  # T, optimizer steps
    epochs: float | None = Field(None, gt=0, lt=1 << 20)  # in place of steps
    batch: int = Field(32, ge=1, le=1 << 20)  # examples a step
    lr: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = Field(0.0, ge=0, lt=1)  # share of the steps
    clip: float | None = Field(1.0, gt=0)  # norm of the gradients; null leaves them
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _one_length(self) -> Fitting:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs exclude each other: say one")
        return self


class Train(Fitting):
    """Dense fine-tuning."""

    kind: ClassVar[str] = "train"


class Ticket(Fitting):
    """A sparse subnetwork, found and trained."""

    kind: ClassVar[str] = "ticket"
    sparsity: float  # share of zeros among the prunable weights; 0.8 or 80%
    method: str = "ticket"
    settings: dict[str, Any] = Field(default_factory=dict)  # of the method: see src/winnow/tickets/settings.py
    include: Texts = ()
    exclude: Texts = ()
    start: Literal["before", "model"] = "before"  # weights to start from: of the stage before, or the recipe's model

    @field_validator("sparsity", mode="before")
    @classmethod
    def _share(cls, value: Any) -> float:
        require_no_truth(value, float)
        found = parse_sparsity(value)
        if not found:
            raise ValueError("a ticket of no zeros is dense: ask for a sparsity above 0, or take a train stage")
        return found

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        from winnow.tickets.methods.registry import METHODS

        if value == "dense":
            raise ValueError("dense is the train stage: write train in place of ticket")
        if value != "ticket" and value not in METHODS:
            known = dict.fromkeys(["ticket", *METHODS])
            raise ValueError(
                f"there is no method {value!r}: choose one of {', '.join(m for m in known if m != 'dense')}"
            )
        return value

    @field_validator("settings")
    @classmethod
    def _numbers(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        from winnow.tickets.methods.registry import METHODS
        from winnow.tickets.verb import DEFAULT

        method = info.data.get("method", "ticket")
        if method == "ticket" or method in METHODS:
            require_settings(value, METHODS[DEFAULT if method == "ticket" else method].settings_class)
        return value


class Compress(Options, Stage):
    """A packed folder: the options of :func:`winnow.compress`. After a ticket without a budget: its own zeros."""

    kind: ClassVar[str] = "compress"
    method: str | None = None  # type: ignore[assignment]  # None: auto, or the ticket's zeros
    include: Texts | None = None  # type: ignore[assignment]  # None: as the ticket stage has it
    exclude: Texts | None = None  # type: ignore[assignment]

    @field_validator("settings")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        from winnow.fcpts.settings import FcptsSettings
        from winnow.solve.settings import ReconstructSettings
        from winnow.train.distil.settings import DistilSettings

        require_settings(value, DistilSettings, FcptsSettings, ReconstructSettings)
        return value

    def options(self, ticket: Ticket | None) -> dict[str, Any]:
        """Keywords of :func:`winnow.compress`."""
        found = {name: getattr(self, name) for name in Options.model_fields}
        for name in ("include", "exclude"):
            if found[name] is None:
                found[name] = getattr(ticket, name) if ticket is not None else ()
        if self.method is None:
            free = self.structure == "unstructured" and all(found[name] is None for name in BUDGETS)
            own = ticket is not None and free
            found["method"] = "zeros" if own else "auto"
        return found


class Evaluate(Stage):
    """A measurement, and with ``max_drop`` a gate: exit code 3 when the paired upper 95 % bound of the loss is above it."""

    kind: ClassVar[str] = "eval"
    data: str | None = None  # None: the recipe's eval
    column: str | None = None
    label: str | None = None
    eval_limit: int | None = Field(None, ge=2)  # examples
    max_drop: float | None = Field(None, gt=0)  # points, or per cent of perplexity

    def key(self) -> dict[str, Any]:
        return {"eval_limit": self.eval_limit}


KINDS: dict[str, type[Stage]] = {kind.kind: kind for kind in (Train, Ticket, Compress, Evaluate)}


class Pipeline(Part):
    """A recipe. Paths are taken as on the command line: from the folder it is run in."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str | None = None
    model: str
    weights: Path | None = None
    data: str | None = None
    eval: str | None = None  # without it a part of data is held out
    column: str | None = None
    label: str | None = None
    task: Literal["auto", "classification", "perplexity", "lm", "similarity", "agreement", "none"] = "auto"
    length: int | None = Field(None, ge=2, le=1 << 22)  # tokens
    seed: int = Field(0, ge=0, lt=1 << 63)
    executor: Literal["local", "ray"] = "local"
    stages: tuple[Any, ...]  # of Stage

    @property
    def fits(self) -> bool:
        """Whether some stage trains on the data."""
        return any(isinstance(s, Fitting) for s in self.stages)

    def before(self, number: int, kind: type[Stage]) -> Any:
        """The first stage of a kind before stage ``number`` (from 0), or None."""
        return next((s for s in self.stages[:number] if isinstance(s, kind)), None)

    def check_order(self, number: int) -> None:
        """Raises InputError when stage ``number`` (from 0) cannot stand there."""
        stage, earlier = self.stages[number], self.stages[:number]
        work = [s.kind for s in earlier if not isinstance(s, Evaluate)]
        order = ["train", "ticket", "compress"]
        if isinstance(stage, Evaluate):
            self._check_gate(number)
            return
        if stage.kind in work:
            raise InputError(
                f"there is a {stage.kind} stage before this one: a recipe has one of each, and eval as often as you like"
            )
        later = next((kind for kind in work if order.index(kind) > order.index(stage.kind)), None)
        if later is not None:
            raise InputError(f"{stage.kind} cannot follow {later}: the order is train, ticket, compress")
        if isinstance(stage, Fitting) and self.data is None:
            raise InputError(f"{stage.kind} needs data to train on: give data at the top of the recipe")
        if isinstance(stage, Fitting) and self.task in ("similarity", "agreement", "none"):
            raise InputError(
                f"{stage.kind} trains for classes or running text: leave out task {self.task}, or take winnow.find_ticket in Python"
            )
        if isinstance(stage, Ticket) and stage.start == "model" and "train" not in work:
            raise InputError("start model is for a ticket behind a train stage: leave it out")
        if isinstance(stage, Compress):
            try:
                self._check_compress(stage, number)
            except InputError as error:
                raise InputError(in_fields(str(error))) from None

    def _check_compress(self, stage: Compress, number: int) -> None:
        """What compress would refuse whatever the model and data."""
        options = stage.options(self.before(number, Ticket))
        if stage.sparsity is not None and len(rates_of(stage.sparsity)) > 1:
            raise InputError("a recipe ends in one artifact: give one sparsity", option="sparsity")
        Job(self.model, self.data, **options)

    def _check_gate(self, number: int) -> None:
        stage, earlier = self.stages[number], self.stages[:number]
        if self.task == "none":
            raise InputError("an eval stage measures something: leave out task none")
        if stage.data is None and self.eval is None and self.data is None:
            raise InputError("there is nothing to measure on: give eval at the top of the recipe, or data here")
        if stage.max_drop is None:
            return
        first = next((i for i, s in enumerate(earlier) if isinstance(s, Evaluate)), None)
        trained = next((i for i, s in enumerate(earlier) if isinstance(s, Train)), None)
        reference = first if first is not None else trained
        if reference is None and any(isinstance(s, Ticket) for s in earlier):
            raise InputError(
                "max_drop compares with a dense model that knows the task: put a train stage or an eval stage before the ticket"
            )
        since = earlier if reference is None else earlier[reference + 1 :]
        if all(isinstance(s, Evaluate) for s in since):
            raise InputError("max_drop compares with the first model measured, and this is the one: leave it out")
