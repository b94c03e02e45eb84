"""Instant Model Soup: a better start for a dense training, interpolated from short trainings under weak masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from winnow.errors import FormatError
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, write_tensors
from winnow.masks.global_ranking import global_magnitude
from winnow.masks.unwrap import working_copy
from winnow.measure.evaluation import Evaluation
from winnow.run.executor import Executor, Local
from winnow.run.store import Store
from winnow.seeding import seed_of
from winnow.terminal.progress import Expected, ProgressOption, expect, watch
from winnow.tickets.method import PruningSettings
from winnow.tickets.methods.isp.look_ahead import Protocol, departed, protocols
from winnow.tickets.methods.isp.plan import Decay, Positive
from winnow.train.norms import tracking_norms
from winnow.train.task.run import Cost, Position, Run
from winnow.train.task.train_mode import recalibrate_mixture, training_batches
from winnow.train.task.training import Training

State = dict[str, torch.Tensor]
KEPT = ("start", "alphas", "metrics", "evaluations")  # of a soup, in its file
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ImsSettings(PruningSettings):
    """Instant Model Soup (Jaiswal et al. 2023, algorithm 3), which names no figures but about 100 steps."""

    sparsities: tuple[Sparsity, ...] = Field(default=(0.1, 0.2, 0.3, 0.5), min_length=1)  # one candidate each
    look_ahead: int = Field(default=100, ge=1)  # steps of one candidate
    multipliers: tuple[Positive, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)  # of the learning rate
    decays: tuple[Decay, ...] = Field(default=(0.0, 0.01, 0.1), min_length=1)
    share: float = Field(default=0.5, gt=0, le=1)  # of an epoch's mini-batches that a candidate may see
    grid: tuple[Share, ...] = tuple(i / 10 for i in range(11))  # of the newcomer; 0 is always tried
    ims_scope: Literal["all", "kept"] = "all"  # kept: weights that a candidate's mask removes stay the soup's
    recalibrate: int = Field(default=8, ge=1)  # mini-batches that batch norms are recalibrated on


@dataclass
class ModelSoup:
    """A dense model, trained from an interpolation of candidates.

    Attributes:
        model: trained, in eval mode.
        alphas: share that each candidate got, 0 where it was rejected.
        metrics: the validation figure of the soup after each candidate.
        start: the validation figure of the pretrained model.
        cost: look-ahead steps of the candidates, main steps of the training.
        evaluations: times that ``validate`` was called.
        evaluation: at the end of the training, None without evaluation data.
    """

    model: nn.Module
    alphas: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    start: float = math.nan
    cost: Cost = field(default_factory=Cost)
    evaluations: int = 0
    evaluation: Evaluation | None = None

    def __repr__(self) -> str:
        end = "" if self.evaluation is None else f", {self.evaluation.metric} {self.evaluation.value:.4g}"
        return (
            f"ModelSoup({type(self.model).__name__} of {len(self.alphas)} candidates, {self.cost.steps:,} steps{end})"
        )


def instant_model_soup(
    training: Training,
    settings: ImsSettings | None = None,
    *,
    validate: Callable[[nn.Module], float],
    store: Store | None = None,
    key: str = "ims",
    progress: ProgressOption = None,
    executor: Executor | None = None,
) -> ModelSoup:
    """Interpolates short trainings of differently masked copies, then trains densely (Jaiswal et al. 2023, algorithm 3).

    Candidate k starts from m_k * theta_0, m_k the global magnitude mask at its sparsity, and trains a few steps under a
    protocol of its own. The soup moves to (1 - alpha) soup + alpha candidate with the alpha of the grid that validates
    best; alpha 0 is always among them and wins ties, so a candidate that does not help is left out. Batch norms of every
    mixture are recalibrated on training examples before it is validated.

    Args:
        settings: None takes the defaults.
        validate: model in eval mode -> figure, higher is better; on data that is neither trained on nor reported.
        store, key: folder of finished parts and their prefix; a killed soup goes on from them.
        executor: where candidates are trained.
        progress: bars or lines by itself, True or False, or a function: see :func:`winnow.terminal.progress.watch`.

    Raises:
        InputError: a candidate diverged.
        FormatError: a stored part is damaged.
    """
    settings = settings or ImsSettings()
    folder = None if store is None else store.folder(key)
    soup = _Soup(training, validate, folder)
    found = soup.found
    jobs = _jobs(training, settings)[len(found.alphas) :]
    executor = executor or Local()
    shared = training.replaced(evaluate=None)
    with watch(progress) as stages:
        expect(stages, [Expected("soup", "soup"), Expected("train", "train")])
        show = stages("soup")
        # In this process one candidate is alive at a time; elsewhere they come back together.
        made = (
            map(lambda job: candidate(shared, job), jobs) if executor.local else executor.map(candidate, shared, jobs)
        )
        for job, (state, cost) in zip(jobs, made):
            found.cost.add(cost)
            soup.add(job, state, settings)
            soup.save()
            said = f"alpha {found.alphas[-1]:g}, {found.metrics[-1]:.4g}"
            show(len(found.alphas), len(settings.sparsities), said)
        run = Run(
            training, start=Position(soup.state), folder=None if store is None else store.folder(f"{key}-run"),
            progress=stages("train"),
        )  # fmt: skip
        run.advance_to(run.total)
        run.finish()
    found.model = run.attached.detach()
    found.cost.add(run.cost)
    found.evaluation = None if training.evaluate is None else training.evaluate(found.model)
    return found


@dataclass(frozen=True)
class Job:
    """One candidate: zeros of its mask and the share of a tensor that may go, its protocol and steps."""

    zeros: int
    max_rate: float
    protocol: Protocol
    steps: int


def candidate(training: Training, job: Job) -> tuple[State, Cost]:
    """Weights and buffers of one candidate, zero where its mask is, and what it cost."""
    keeps = _mask(training, job.zeros, job.max_rate)
    run = Run(training, start=Position(keeps=keeps), stream=("ims", job.protocol.number))
    with departed(run, job.protocol, job.steps) as away:
        state = {n: t.detach().clone() for n, t in run.model.state_dict().items()}
    return state, away.cost


def _jobs(training: Training, settings: ImsSettings) -> list[Job]:
    numel = training.scope().numel
    drawn = protocols(
        len(settings.sparsities), training.lr, multipliers=settings.multipliers, decays=settings.decays,
        share=settings.share, seed=seed_of(training.seed, "ims"),
    )  # fmt: skip
    return [
        Job(round(s * numel), settings.max_rate, p, settings.look_ahead) for s, p in zip(settings.sparsities, drawn)
    ]


def _mask(training: Training, zeros: int, max_rate: float) -> State:
    scope = training.scope()
    matrices = {n: p.matrix(training.model.get_parameter(n).detach()) for n, p in scope.prunables.items()}
    every = {n: torch.ones_like(m, dtype=torch.bool) for n, m in matrices.items()}
    return global_magnitude(matrices, every, zeros, max_rate)


class _Soup:
    """The interpolation so far, as a state dict, and how it came about; ``found.model`` is there to try mixtures on."""

    def __init__(self, training: Training, validate: Callable[[nn.Module], float], folder: Path | None) -> None:
        self.training, self.validate = training, validate
        self.file = None if folder is None else folder / "soup.safetensors"
        self.found = ModelSoup(working_copy(training.model).eval())
        self.state: State = {n: t.detach().clone() for n, t in self.found.model.state_dict().items()}
        if self.file is not None and self.file.exists():
            self._load(self.file)
        else:
            self.found.start = self._value()

    def add(self, job: Job, state: State, settings: ImsSettings) -> None:
        """Adds the candidate in the share that validates best."""
        if settings.ims_scope == "kept":
            for name, keep in _mask(self.training, job.zeros, job.max_rate).items():
                pruned = ~self.training.scope().prunables[name].restore(keep)
                state[name][pruned] = self.state[name][pruned]
        best, alpha = self.found.metrics[-1] if self.found.metrics else self.found.start, 0.0
        kept = self.state
        for share in sorted({*settings.grid} - {0.0}):
            mixed = self._mix(state, share, settings)
            value = self._value()
            if value > best or (math.isnan(best) and not math.isnan(value)):
                best, alpha, kept = value, share, mixed
        self.state = kept
        self.found.alphas.append(alpha)
        self.found.metrics.append(best)

    def _mix(self, state: State, alpha: float, settings: ImsSettings) -> State:
        """The mixture, which the model then holds; whole numbers stay the soup's."""
        mixed = {n: torch.lerp(t, state[n], alpha) if t.is_floating_point() else t for n, t in self.state.items()}
        self.found.model.load_state_dict(mixed)
        if not tracking_norms(self.found.model):
            return mixed
        batches = training_batches(self.training, settings.recalibrate)
        recalibrate_mixture(self.found.model, self.training.loss, batches)
        return {n: t.detach().clone() for n, t in self.found.model.state_dict().items()}

    def _value(self) -> float:
        self.found.evaluations += 1
        self.found.model.eval()
        with torch.no_grad():
            return float(self.validate(self.found.model))

    def save(self) -> None:
        if self.file is not None:
            about = {name: getattr(self.found, name) for name in KEPT} | {"cost": vars(self.found.cost)}
            write_tensors(self.file, self.state, {"format_version": FORMAT_VERSION, "soup": about})

    def _load(self, path: Path) -> None:
        try:
            file = TensorFile(path)
            about: dict[str, Any] = file.about["soup"]
            self.state = {n: file.read(n).to(t.device) for n, t in self.state.items()}
            self.found = replace(self.found, **{name: about[name] for name in KEPT}, cost=Cost(**about["cost"]))
        except (FormatError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the soup {path} is damaged or of another model: delete it and run again.") from error
