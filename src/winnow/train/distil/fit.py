"""Fits the kept weights to the dense model's outputs, and records the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.forward.modes import plain_eval
from winnow.masks.prunable import Scope
from winnow.masks.scope import find_scope
from winnow.masks.unwrap import working_copy
from winnow.train.distil.loop import FixedMasks, Loop, Progress, Trace
from winnow.train.distil.outputs import read_output
from winnow.train.distil.settings import DistilSettings
from winnow.train.distil.student import Student
from winnow.train.distil.teacher import Teacher
from winnow.train.examples import Examples

if TYPE_CHECKING:
    from winnow.records.allocation import AllocationRecord


@dataclass
class Fitted:
    """What fitting leaves behind."""

    keeps: dict[str, torch.Tensor]  # bool [rows, cols] by tensor name, True where the weight stays
    weights: dict[str, torch.Tensor]  # float32 [rows, cols], zero where it goes
    extra: dict[str, torch.Tensor]  # biases, norms and batch-norm buffers that changed, by state-dict name
    record: AllocationRecord  # rates, losses, time


class Distil:
    """Fixed-mask distillation: the control of every learned allocation (net-wise; FCPTS sheet section 5).

    Args:
        settings: see :class:`winnow.train.distil.settings.DistilSettings`.
        time: seconds that training takes, in place of ``settings.steps``.
        seed: of the order of the examples.
    """

    def __init__(self, settings: DistilSettings | None = None, *, time: float | None = None, seed: int = 0) -> None:
        self.settings = settings if settings is not None else DistilSettings.model_validate({})
        self.time, self.seed = time, seed

    def fit(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        keeps: Mapping[str, torch.Tensor],
        *,
        scope: Scope | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
        own: bool = False,
        before: Mapping[str, torch.Tensor] | None = None,
        method: str = "distil",
        allocation: str | None = None,
        structure: str = "unstructured",
    ) -> Fitted:
        """Trains a copy of ``model`` (with ``own``: the model itself) under ``keeps``.

        Args:
            batches: what the model's forward takes: tensors, tuples or mappings; labels are not needed.
            keeps: bool [rows, cols] by tensor name; tensors that are missing stay whole.
            folder: checkpoints, so that a run that was killed goes on.
            before: biases and norms that the masks come with, by state-dict name, assigned before training.
            method, allocation, structure: for the record only.

        Raises:
            InputError: no data, outputs that cannot be compared or do not depend on the weights, a loss that is not finite.
        """
        trainer = Trainer(model, batches, scope, self.settings, own=own)
        kept = {
            n: keeps.get(n, torch.ones(p.rows, p.cols, dtype=torch.bool)) for n, p in trainer.scope.prunables.items()
        }
        trainer.assign(before or {})
        trace = trainer.run(FixedMasks(kept), seed=self.seed, seconds=self.time, folder=folder, progress=progress)
        weights, extra = trainer.outcome(kept)
        rates = {n: int((~k).sum()) / k.numel() for n, k in kept.items()}
        drift = trainer.drift(weights, kept)
        layers = [
            dict(name=n, numel=k.numel(), rate=rates[n], start_rate=rates[n], drift=drift[n]) for n, k in kept.items()
        ]
        record = trainer.record(kept, trace, layers, method=method, start=allocation, structure=structure)
        return Fitted(kept, weights, extra, record)


class Trainer:
    """A model on the trainer: what learned and fixed masks have in common before, while and after weights are fitted."""

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], scope: Scope | None, settings: DistilSettings, *, own: bool
    ) -> None:
        self.settings = settings
        self.model = model if own else working_copy(model)
        self.scope = scope if scope is not None else find_scope(self.model)
        self.examples = Examples(batches, settings.batch)
        self.student = Student(self.model, self.scope)
        self._check(self.examples.take(torch.arange(1)))
        self.teacher = Teacher(self.student, self.examples, settings)

    @property
    def start(self) -> dict[str, torch.Tensor]:
        """The dense matrices [rows, cols]."""
        return {n: p.matrix(self.student.start[n]) for n, p in self.scope.prunables.items()}

    def run(
        self, masks: Any, *, seed: int, seconds: float | None, folder: Path | None, progress: Progress | None
    ) -> Trace:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return Loop(
            self.student, self.examples, self.teacher, masks, self.settings,
            seed=seed, seconds=seconds, folder=folder, progress=progress,
        ).run()  # fmt: skip

    def reset(self) -> None:
        """The model as it was before anything was trained."""
        self.assign(self.student.start)

    def assign(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies values into parameters and buffers by state-dict name."""
        state = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                state[name].copy_(tensor)

    def matrices(self) -> dict[str, torch.Tensor]:
        """The weights as they are now, [rows, cols], without gradient."""
        return {n: m.detach() for n, m in self.student.matrices().items()}

    def outcome(self, keeps: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Trained matrices with the masks folded in, and everything else that changed; copies."""
        weights = {n: (m * keeps[n]).float() for n, m in self.matrices().items()}
        state, start = self.model.state_dict(), self.student.start
        extra = {
            n: state[n].detach().clone()
            for n in start
            if n not in self.scope.prunables and not torch.equal(state[n], start[n])
        }
        return weights, extra

    def drift(self, weights: Mapping[str, torch.Tensor], keeps: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """||W' - W|| / ||W|| of every tensor, over the weights that stay."""
        found = {}
        for name, dense in self.start.items():
            kept = dense.float() * keeps[name]
            found[name] = float((weights[name] - kept).norm() / kept.norm().clamp_min(1e-30))
        return found

    def record(
        self,
        keeps: Mapping[str, torch.Tensor],
        trace: Trace,
        layers: Sequence[Mapping[str, Any]],
        *,
        method: str,
        start: str | None,
        structure: str,
        target: float | None = None,
        raw_rate: float | None = None,
    ) -> AllocationRecord:
        """The record of a run; ``layers`` are the fields of its groups."""
        from winnow.records.allocation import AllocationLayer, AllocationRecord, StepTime

        zeros, numel = sum(int((~k).sum()) for k in keeps.values()), self.scope.numel
        total = numel + sum(s.numel for s in self.scope.skipped)
        answers, classes = self.teacher.answers() or (None, None)
        return AllocationRecord(
            answers=answers, classes=classes, method=method, start=start, structure=structure, target=zeros / numel if target is None else target,
            zeros=zeros, numel=numel, total_parameters=total, raw_rate=raw_rate, exact_rate=zeros / numel, exact_rate_all=zeros / total,
            layers=[AllocationLayer(**layer) for layer in layers], losses=downsample(trace.losses), constant=self.teacher.constant(), steps=trace.steps, seconds=trace.seconds,
            step_time=StepTime(**{k: v / max(trace.steps, 1) for k, v in trace.parts.items()}), settings=self.settings.model_dump(),
        )  # fmt: skip

    def _check(self, batch: Any) -> None:
        """What can be said before the first step: outputs that are finite, and that a gradient can flow back from."""
        weights = {n: m.detach().requires_grad_() for n, m in self.student.matrices().items()}
        with plain_eval(self.model), torch.enable_grad():
            values = read_output(self.student(batch, weights), batch).values
            try:
                reached = values.requires_grad and torch.autograd.grad(
                    values.sum(), list(weights.values()), allow_unused=True
                )
            except RuntimeError as error:
                raise InputError(
                    f"the model cannot be trained as it is ({str(error).splitlines()[0].rstrip('.')}): fix its forward."
                ) from None
        if not reached or all(g is None for g in reached):
            raise InputError(
                "no gradient flows from the model's output to its weights: have it return logits or features "
                "(not argmax classes), and leave out detach and no_grad in its forward."
            )
        if not torch.isfinite(values).all():
            raise InputError(
                "the dense model's outputs hold NaN or infinite values: look for them in the data and the weights."
            )


def downsample(losses: Sequence[float], points: int = 200) -> list[float]:
    """At most ``points`` values: the means of that many equal stretches, in order.

    A mean, not every n-th value: the loss of single batches scatters. Stretches differ in length by one at most.
    """
    if points < 1:
        raise ValueError(f"points is {points}: at least 1 is needed")
    n = len(losses)
    if n <= points:
        return [float(v) for v in losses]
    cuts = [i * n // points for i in range(points + 1)]
    return [fmean(losses[a:b]) for a, b in pairwise(cuts)]
