"""Instant Model Soup: a better start for a dense training, interpolated from short trainings under weak masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import FormatError
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, write_tensors
from winnow.masks.global_ranking import global_magnitude
from winnow.masks.unwrap import working_copy
from winnow.measure.evaluation import Evaluation
from winnow.run.executor import Executor, Local
from winnow.run.store import Store
from winnow.seeding import seed_of
from winnow.tickets.methods.isp.look_ahead import Protocol, departed, protocols
from winnow.tickets.settings import ImsSettings
from winnow.train.task.recalibration import recalibrate_mixture, training_batches
from winnow.train.task.run import Cost, Position, Progress, Run
from winnow.train.task.train_mode import tracking_norms
from winnow.train.task.training import Training

State = dict[str, torch.Tensor]


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
    alphas: list[float]
    metrics: list[float]
    start: float
    cost: Cost
    evaluations: int
    evaluation: Evaluation | None = None


def instant_model_soup(
    training: Training,
    settings: ImsSettings | None = None,
    *,
    validate: Callable[[nn.Module], float],
    store: Store | None = None,
    key: str = "ims",
    progress: Callable[[str], Progress] | None = None,
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

    Raises:
        InputError: a candidate diverged.
        FormatError: a stored part is damaged.
    """
    settings = settings or ImsSettings()
    folder = None if store is None else store.folder(key)
    soup = _Soup.begin(training, validate, folder)
    jobs = _jobs(training, settings)[len(soup.alphas) :]
    executor = executor or Local()
    show = None if progress is None else progress("soup")
    shared = training.replaced(evaluate=None)
    # In this process one candidate is alive at a time; elsewhere they come back together.
    found = map(lambda job: candidate(shared, job), jobs) if executor.local else executor.map(candidate, shared, jobs)
    for job, (state, cost) in zip(jobs, found):
        soup.cost.add(cost)
        soup.stir(job, state, settings)
        soup.save()
        if show is not None:
            count = len(settings.sparsities)
            show(len(soup.alphas), count, f"alpha {soup.alphas[-1]:g}, {soup.metrics[-1]:.4g}")
    run = Run(
        training, start=Position(soup.state), folder=None if store is None else store.folder(f"{key}-run"),
        progress=None if progress is None else progress("train"),
    )  # fmt: skip
    run.advance_to(run.total)
    run.finish()
    model = run.attached.detach()
    soup.cost.add(run.cost)
    evaluation = None if training.evaluate is None else training.evaluate(model)
    return ModelSoup(model, soup.alphas, soup.metrics, soup.start, soup.cost, soup.evaluations, evaluation)


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


@dataclass
class _Soup:
    """The interpolation so far, as a state dict, and how it came about."""

    training: Training
    validate: Callable[[nn.Module], float]
    file: Path | None
    model: nn.Module  # to try mixtures on
    state: State
    start: float = math.nan
    alphas: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    evaluations: int = 0
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def begin(cls, training: Training, validate: Callable[[nn.Module], float], folder: Path | None) -> _Soup:
        model = working_copy(training.model).eval()
        file = None if folder is None else folder / "soup.safetensors"
        soup = cls(training, validate, file, model, {n: t.detach().clone() for n, t in model.state_dict().items()})
        if file is not None and file.exists():
            soup._load(file)
        else:
            soup.start = soup._value()
        return soup

    def stir(self, job: Job, state: State, settings: ImsSettings) -> None:
        """Adds the candidate in the share that validates best."""
        if settings.ims_scope == "kept":
            for name, keep in _mask(self.training, job.zeros, job.max_rate).items():
                gone = ~self.training.scope().prunables[name].restore(keep)
                state[name][gone] = self.state[name][gone]
        best, alpha = self.metrics[-1] if self.metrics else self.start, 0.0
        kept = self.state
        for share in sorted({*settings.grid} - {0.0}):
            mixed = self._mix(state, share, settings)
            value = self._value()
            if value > best or (math.isnan(best) and not math.isnan(value)):
                best, alpha, kept = value, share, mixed
        self.state = kept
        self.alphas.append(alpha)
        self.metrics.append(best)

    def _mix(self, state: State, alpha: float, settings: ImsSettings) -> State:
        """The mixture, which the model then holds; whole numbers stay the soup's."""
        mixed = {n: torch.lerp(t, state[n], alpha) if t.is_floating_point() else t for n, t in self.state.items()}
        self.model.load_state_dict(mixed)
        if not tracking_norms(self.model):
            return mixed
        batches = training_batches(self.training, settings.recalibrate)
        recalibrate_mixture(self.model, self.training.loss, batches)
        return {n: t.detach().clone() for n, t in self.model.state_dict().items()}

    def _value(self) -> float:
        self.evaluations += 1
        self.model.eval()
        with torch.no_grad():
            return float(self.validate(self.model))

    def save(self) -> None:
        if self.file is not None:
            about = {
                "start": self.start, "alphas": self.alphas, "metrics": self.metrics, "evaluations": self.evaluations,
                "cost": vars(self.cost),
            }  # fmt: skip
            write_tensors(self.file, self.state, {"format_version": FORMAT_VERSION, "soup": about})

    def _load(self, path: Path) -> None:
        try:
            file = TensorFile(path)
            about: dict[str, Any] = file.about["soup"]
            self.state = {n: file.read(n).to(t.device) for n, t in self.state.items()}
            self.start, self.alphas, self.metrics = about["start"], list(about["alphas"]), list(about["metrics"])
            self.evaluations, self.cost = int(about["evaluations"]), Cost(**about["cost"])
        except (FormatError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the soup {path} is damaged or of another model: delete it and run again.") from error
