"""How the owner of a model trains it: everything that a search for tickets needs in order to do the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.prunable import Scope
from winnow.masks.unwrap import plain_module
from winnow.measure.evaluation import Evaluation
from winnow.seeding import seeded
from winnow.train.examples import Examples
from winnow.train.task.given import patterns, real, whole
from winnow.train.task_loss import Loss

OptimizerFactory = Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]
Schedule = Callable[[float], float]


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; decay on matrices only, as fine-tuning usually has it.

    Fused: the plain form is about ten times slower on a CPU where a mask keeps second moments at zero.
    """
    groups = decay_groups(parameters, weight_decay)
    given = [p for g in groups for p in g["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in given)
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def sgd(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with a momentum of 0.9; decay on matrices only."""
    return torch.optim.SGD(decay_groups(parameters, weight_decay), lr=lr, momentum=0.9)


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: matrices with weight decay, vectors (biases, norms) without."""
    given = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in given if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in given if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def linear(progress: float) -> float:
    """From 1 to 0, without a warm-up (Jaiswal et al. 2023, table 1)."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class _Warmup:  # a value, not a closure: it can be pickled and named in a key
    share: float
    then: Schedule

    def __call__(self, progress: float) -> float:
        if progress < self.share:
            return progress / self.share
        return self.then((progress - self.share) / (1 - self.share))


def warmup(share: float, then: Schedule = linear) -> Schedule:
    """A linear rise over the first ``share`` of the steps, then ``then`` over the rest.

    The first step has a rate of 0, as transformers' schedules have it.

    Raises:
        InputError: a share that leaves no steps after it.
    """
    real("warmup", share, zero=True)
    if not 0 <= share < 1:
        raise InputError(f"a warm-up over {share:g} of the steps leaves none: give a share in [0, 1).")
    return _Warmup(share, then) if share else then


@dataclass(frozen=True)
class Training:
    """One ordinary training of a model for a task: T = ``steps`` optimizer steps.

    Attributes:
        model: the pretrained model, its new head included; never changed, every run works on a copy.
        examples: labelled examples; ``examples.take(index)`` is what ``loss`` gets. Their batch size is the training's.
        loss: (model, batch) -> scalar with gradient. A killed search knows it, and the other functions here, by source and
            the values they use, or by a text ``winnow_name`` that they are given (:func:`find_ticket`).
        steps: T, optimizer steps of one training run.
        optimizer: (parameters, lr, weight_decay) -> optimizer; called once per run, and once per look-ahead.
        lr, weight_decay: of that optimizer.
        schedule: progress in [0, 1) -> factor of the learning rate.
        clip: norm to which gradients are clipped; None leaves them.
        precision: of the products in a step; weights, gradients and moments stay float32.
        evaluate: model -> :class:`Evaluation`, on data that is not in ``examples``; needed by methods that choose by it.
        include, exclude: names or patterns of prunable tensors, as for :func:`winnow.compress`; one string is a list of one.
        seed: of data order, dropout and every random choice.
        notes: what was decided for the user, one sentence each.
        kind: what the model is ("encoder", "clip", "vision", ...), "" where it is not known.
        processor: the tokenizer or image processor that belongs to the model; saved beside it.
        files: further files of the model's folder, by the place in a saved ticket's folder to which they are copied.
        types: of tensors that were widened for the training, by name; a ticket's model has them again.
    """

    model: nn.Module
    examples: Examples
    loss: Loss
    steps: int
    optimizer: OptimizerFactory = adamw
    lr: float = 2e-5
    weight_decay: float = 0.0
    schedule: Schedule = linear
    clip: float | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate: Callable[[nn.Module], Evaluation] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    kind: str = ""
    processor: Any = None
    files: Mapping[str, Path] = field(default_factory=dict)
    types: Mapping[str, torch.dtype] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", plain_module(self.model))
        for name in ("include", "exclude"):
            object.__setattr__(self, name, patterns(name, getattr(self, name)))
        for name, least in (("steps", 1), ("seed", None)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name in ("lr", "weight_decay") if self.clip is None else ("lr", "weight_decay", "clip"):
            object.__setattr__(self, name, real(name, getattr(self, name), zero=name == "weight_decay"))
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision {self.precision!r} is not known: choose float32 or bfloat16.")

    def __repr__(self) -> str:
        parts = [
            type(self.model).__name__,
            f"{self.examples.count:,} examples",
            f"{self.steps:,} steps",
            f"lr {self.lr:g}",
        ]
        return f"Training({', '.join(parts)}, {self.precision}{'' if self.evaluate is None else ', evaluated'})"

    def scope(self) -> Scope:
        """What may be pruned; the output layers are found by the first batch. Raises InputError when there is nothing."""
        from winnow.masks.outputs import output_weights
        from winnow.masks.scope import declares_outputs, find_scope

        if "_scope" not in vars(self):  # one batch through the model, once
            outputs = None if declares_outputs(self.model) else output_weights(self.model, self._first_loss)
            found = find_scope(self.model, include=self.include, exclude=self.exclude, outputs=outputs)
            object.__setattr__(self, "_scope", found)
        return vars(self)["_scope"]

    def first_batch(self) -> Any:
        return self.examples.take(self.examples.order(torch.Generator().manual_seed(self.seed))[0])

    def _first_loss(self) -> torch.Tensor:
        batch = self.first_batch()
        with seeded(self.seed, "check"):
            return self.loss(self.model, batch)

    def replaced(self, **changes: Any) -> Training:
        return replace(self, **changes)
