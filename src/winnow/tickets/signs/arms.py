"""The ways to start training under a learned mask, and the one training that each of them gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from winnow.errors import InputError
from winnow.masks.unwrap import working_copy
from winnow.measure.evaluation import Evaluation
from winnow.run.store import Store
from winnow.seeding import generator
from winnow.terminal.progress import Progress
from winnow.train.method import SparseMethod
from winnow.train.methods.fixed import Fixed
from winnow.train.methods.gradual import Gradual
from winnow.train.methods.sign_in import SignIn
from winnow.train.signs import Signs, Weights
from winnow.train.task.run import Position, Run
from winnow.train.task.training import Training
from winnow.words import percent

Matrices = Mapping[str, torch.Tensor]
TEACHER = "teacher"
NAMES = {  # title, and where there is little room
    TEACHER: ("dense-to-sparse (gradual magnitude)", "dense-to-sparse"),
    "signs": ("learned signs, random magnitudes", "learned signs"),
    "magnitudes": ("learned magnitudes, random signs", "learned magnitudes"),
    "random": ("random signs and magnitudes", "random"),
    "sign-in": ("random, trained with Sign-In", "Sign-In"),
    "initial": ("the weights it was learned from", "initial weights"),
}
RECORDS = 25  # of the signs, evenly over a training


def drawn(keeps: Matrices, seed: int) -> dict[str, torch.Tensor]:
    """Normal weights with variance 2 over the mean kept fan-in of their tensor, matrices [rows, cols] by name.

    (He et al. 2015, arXiv 1502.01852, equation 10, with the inputs that the mask keeps.) A mean below one counts as one.
    """
    found = {}
    for name, keep in keeps.items():
        fan_in = max(float(keep.count_nonzero()) / keep.shape[0], 1.0)
        draw = torch.randn(keep.shape, generator=generator(seed, "signs", name), dtype=torch.float32)
        found[name] = (draw * math.sqrt(2 / fan_in)).to(keep.device)
    return found


def starts(learned: Matrices, initial: Matrices, draw: Matrices) -> dict[str, dict[str, torch.Tensor]]:
    """Weights to start from by arm: learned or drawn signs with learned or drawn magnitudes, and the initial weights."""
    return {
        "signs": {n: torch.copysign(draw[n], w) for n, w in learned.items()},
        "magnitudes": {n: torch.copysign(w, draw[n]) for n, w in learned.items()},
        "random": dict(draw),
        "sign-in": dict(draw),
        "initial": dict(initial),
    }


@dataclass
class Trained:
    """What one training came to."""

    evaluation: Evaluation
    loss: float  # mean over the last epoch
    signs: Signs


@dataclass(frozen=True)
class Trial:
    """All trainings of one seed at one sparsity, each resumed by itself where there is a store."""

    training: Training
    sparsity: float
    store: Store | None
    key: str
    stages: Progress

    def all(self) -> dict[str, Trained]:
        """Every arm by name, the teacher first."""
        steps = self.training.steps
        begin, end = steps // 4, max(3 * steps // 4, steps // 4 + 1)
        gradual = Gradual(self.sparsity, begin=begin, end=end, every=max(1, steps // 50))
        run, teacher = self._train(TEACHER, gradual, Position())
        found = {TEACHER: teacher}
        keeps = {n: k.clone() for n, k in run.keeps.items()}
        learned = {n: m.clone() for n, m in run.attached.matrices().items()}
        reference = {n: w.detach().clone() for n, w in run.attached.weights.items()}
        run.attached.release()
        prunables = run.scope.prunables
        own = {n: p.matrix(self.training.model.get_parameter(n).detach()).clone() for n, p in prunables.items()}
        draw = {n: w.to(own[n].dtype) for n, w in drawn(keeps, self.training.seed).items()}
        for name, weights in starts(learned, own, draw).items():
            fixed = Fixed(keeps)
            method: SparseMethod = SignIn.of(steps, fixed) if name == "sign-in" else fixed
            run, found[name] = self._train(name, method, self._position(weights, keeps), reference)
            run.attached.release()
        return found

    def _position(self, weights: Matrices, keeps: Matrices) -> Position:
        """The training's model with these weights under the masks; what is not prunable is as it was."""
        model = working_copy(self.training.model)
        with torch.no_grad():
            for name, prunable in self.training.scope().prunables.items():
                model.get_parameter(name).copy_(prunable.restore(weights[name] * keeps[name]))
        return Position(model.state_dict(), keeps)

    def _train(
        self, name: str, method: SparseMethod, start: Position, reference: Weights | None = None
    ) -> tuple[Run, Trained]:
        training = self.training
        signs = Signs(method, every=max(1, training.steps // RECORDS), reference=reference)
        level = f"{self.sparsity:g}-{training.seed}"
        folder = None if self.store is None else self.store.folder(f"{self.key}-{level}-{name}")
        progress: Any = self.stages(f"{NAMES[name][0]}, {percent(self.sparsity)}, seed {training.seed}")
        run = Run(training, method=signs, start=start, folder=folder, progress=progress)
        run.advance_to(training.steps)
        signs.record(run.attached)
        run.finish()
        if training.evaluate is None:
            raise InputError("the arms are compared by their quality: give evaluation data.")
        last = run.losses[-min(training.examples.parts, training.steps) :]
        return run, Trained(training.evaluate(run.model), sum(last) / len(last), signs)
