"""What every ticket method gets, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.errors import InputError
from winnow.forward.dtypes import cast_tensors, round_to_dtypes
from winnow.masks.mask import MaskSet
from winnow.measure.evaluation import Evaluation
from winnow.run.executor import Executor, Local
from winnow.run.store import Store
from winnow.train.task.run import Cost, Progress, Run
from winnow.train.task.training import Training
from winnow.words import count, duration, number, percent

PER_CENT = ("accuracy", "agreement")  # metrics that are stored as shares


@dataclass
class Round:
    """One pruning round, as reports show it.

    Attributes:
        step: main-model step at which it pruned (of its own training, for IMP).
        zeros: after it, over all prunable weights.
        steps: optimizer steps so far, look-ahead and earlier rounds included.
        disagreement: mean over pairs of candidates of (weights on which they differ) / (weights active before the round).
        unanimous: share of the weights to prune that every candidate would prune.
        densities: share of weights kept, by tensor.
        accuracy: of the model that ended this round, on the evaluation data, where it was measured.
    """

    number: int
    step: int
    zeros: int
    steps: int
    disagreement: float | None = None
    unanimous: float | None = None
    densities: dict[str, float] = field(default_factory=dict)
    accuracy: float | None = None


@dataclass
class Ticket:
    """A sparse model that was found and trained: m * theta, exactly ``zeros`` zeros among the prunable weights.

    Attributes:
        method: by name in :data:`winnow.tickets.METHODS`.
        model: trained, masks folded in, in eval mode.
        cost: everything that was spent on it; for one trajectory of several sparsities, up to this one.
        evaluation: at the end of the training (never the best of several), None without evaluation data.
        losses: of every step, where the method is a single training from its first step to its last; else empty.
    """

    method: str
    sparsity: float
    zeros: int
    model: nn.Module
    masks: MaskSet
    cost: Cost
    history: list[Round] = field(default_factory=list)
    evaluation: Evaluation | None = None
    notes: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.masks.zeros != self.zeros:
            raise AssertionError(f"{self.masks.zeros} zeros instead of {self.zeros}")

    def __repr__(self) -> str:
        found = f"{self.method}: {100 * self.sparsity:.4g}% sparsity ({self.zeros:,} of {self.masks.numel:,})"
        if (e := self.evaluation) is not None:
            found += f", {shown(e.metric, e.value)}"
        return f"Ticket({found}, {self.cost.steps:,} steps of training)"

    def row(self) -> dict[str, Any]:
        """Its figures: an accuracy in per cent, as everywhere else where people read it; seconds of training."""
        found: dict[str, Any] = {"method": self.method, "sparsity": self.sparsity, "zeros": self.zeros}
        if (e := self.evaluation) is not None:
            scale = 100.0 if e.metric in PER_CENT else 1.0
            found |= {e.metric: scale * e.value, f"{e.metric}_low": scale * e.low, f"{e.metric}_high": scale * e.high}
        return found | {"steps": self.cost.steps, "seconds": self.cost.seconds}

    def told(self) -> dict[str, str]:
        """:meth:`row` as a person reads it."""
        found = {"method": self.method, "sparsity": percent(self.sparsity, 2), "zeros": count(self.zeros)}
        if (e := self.evaluation) is not None:
            scale = 100.0 if e.metric in PER_CENT else 1.0
            value, low, high = (number(scale * x) for x in (e.value, e.low, e.high))
            found[e.metric] = f"{value} ({low} to {high})"
        return found | {"steps": count(self.cost.steps), "time": duration(self.cost.seconds)}


def shown(metric: str, value: float) -> str:
    return f"{metric} {100 * value:.2f}%" if metric in PER_CENT else f"{metric} {value:.4g}"


Finder = Callable[["Search"], Iterator[Ticket]]


@dataclass
class Search:
    """One search: a training, the target sparsities (rising), a method's settings, and where finished parts are kept.

    Attributes:
        store: folder of finished parts; None keeps nothing, and a killed search starts anew.
        key: prefix of everything stored; made of all that the result depends on.
        executor: where candidates are computed.
        progress: (stage name) -> progress function; None is silent.
    """

    method: str
    training: Training
    sparsities: Sequence[float]
    settings: Any
    store: Store | None = None
    key: str = "ticket"
    executor: Executor = field(default_factory=Local)
    progress: Callable[[str], Progress] | None = None

    def __post_init__(self) -> None:
        self.scope = self.training.scope()
        self.zeros = [self.zeros_at(s) for s in self.sparsities]
        given = list(self.sparsities)
        if not given or sorted(set(given)) != given:
            raise InputError(f"sparsities {given} do not rise: give each once, smallest first.")
        for a, b, zeros, after in zip(given, given[1:], self.zeros, self.zeros[1:]):
            if zeros == after:
                raise InputError(
                    f"sparsities {a} and {b} are both {zeros} zeros in {self.scope.numel} weights: leave one of them out."
                )

    def zeros_at(self, sparsity: float) -> int:
        return min(round(sparsity * self.scope.numel), self.scope.numel - 1)

    def run(self, name: str, label: str | None = None, **options: Any) -> Run:
        """A run that resumes by itself: ``name`` is unique within the search, ``label`` what the progress bar says."""
        folder = None if self.store is None else self.store.folder(f"{self.key}-{name}")
        progress = None if self.progress is None else self.progress(label or name)
        return Run(self.training, folder=folder, progress=progress, **options)

    def ticket(self, run: Run, zeros: int, *, cost: Cost | None = None, **more: Any) -> Ticket:
        """A finished run as a ticket, evaluated once."""
        run.finish()
        model = run.attached.detach()
        round_to_dtypes(model, self.training.types)
        evaluation = None if self.training.evaluate is None else self.training.evaluate(model)
        ticket = Ticket(
            self.method, zeros / self.scope.numel, zeros, model, run.attached.masks, cost or run.cost,
            evaluation=evaluation, **more,
        )  # fmt: skip
        cast_tensors(model, self.training.types)
        ticket.notes += [] if evaluation is None else remarks(evaluation, zeros)
        return ticket


def densities(keeps: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Share of weights kept, by tensor."""
    return {n: float(k.count_nonzero()) / k.numel() for n, k in keeps.items()}


def usual_answer(evaluation: Evaluation) -> np.ndarray | None:
    """Which examples, bool [n], one answer for all has right: that of the most frequent class of the test data itself.

    None where the metric is not an accuracy or the labels are not known.
    """
    if evaluation.metric != "accuracy" or evaluation.truth is None:
        return None
    _, which, counts = np.unique(evaluation.truth, return_inverse=True, return_counts=True)
    return which.reshape(-1) == counts.argmax()


def over_usual(evaluation: Evaluation, usual: np.ndarray) -> tuple[float, float, float]:
    """Share of examples by which the model is better than one answer for all, with its paired 95% interval."""
    from winnow.measure.intervals import paired_proportions

    right = evaluation.per_example == 1
    won, lost = int((right & ~usual).sum()), int((~right & usual).sum())
    return (won - lost) / evaluation.n, *paired_proportions(won, lost, evaluation.n)


def remarks(evaluation: Evaluation, zeros: int) -> list[str]:
    """Sentences for the notes of a ticket of so many zeros; none where there is nothing to say."""
    if not math.isfinite(evaluation.value):
        lost = evaluation.details.get("nan_examples")
        where = f" (on {lost:,} of {evaluation.n:,} examples)" if lost else ""
        return [f"the evaluation gave {evaluation.value}, not a number{where}: look for NaN in the evaluation data."]
    usual = usual_answer(evaluation)
    if usual is None or usual.shape != evaluation.per_example.shape:
        return []
    value, low, _ = over_usual(evaluation, usual)
    if low > 0:
        return []
    how = "no better" if value <= 0 else "not clearly better"
    fewer = ", or ask for fewer zeros" if zeros else ""
    return [
        f"an accuracy of {100 * evaluation.value:.2f}% on {evaluation.n:,} examples is {how} than always giving the most "
        f"frequent answer ({100 * usual.mean():.2f}%): train longer or at another learning rate{fewer}."
    ]
