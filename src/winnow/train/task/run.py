"""The one training function: a model, its masks, optimizer, schedule and place in the data, a step at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.mask import Mask, MaskSet
from winnow.masks.unwrap import working_copy
from winnow.seeding import seed_of, seeded
from winnow.train.attach import attach
from winnow.train.attached import Attached
from winnow.train.method import SparseMethod
from winnow.train.methods.fixed import Fixed
from winnow.train.resume import EpochOrder, precision
from winnow.train.task import checkpoint
from winnow.train.task.train_mode import train_mode
from winnow.train.task.training import Training

SAVE_EVERY = 30.0  # seconds between two checkpoints, or that many times as long as the last one took to write
Progress = Callable[[int, int, str], None]


@dataclass
class Cost:
    """Optimizer steps, by what they were for, and where a density is known the share of dense work they were."""

    main: int = 0  # steps that train the model (in IMP: all its rounds)
    look_ahead: int = 0  # steps of candidates, thrown away
    extra: int = 0  # forward-backward passes of scores (SNIP, GraSP, ...), in steps
    weighted: float = 0.0  # sum over all steps of the density of the prunable weights
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        return self.main + self.look_ahead + self.extra

    def add(self, other: Cost) -> None:
        for name in vars(other):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Diverged(InputError):
    """A loss, gradient or weight that is not finite."""


@dataclass(frozen=True)
class Position:
    """Where a run starts: tensors by state-dict name (None: the training's model) and masks (None: all kept)."""

    state: Mapping[str, torch.Tensor] | None = None
    keeps: Mapping[str, torch.Tensor] | None = None


class Run:
    """A training under masks that can be advanced, pruned, looked ahead from, stored and resumed.

    Args:
        method: what decides about the masks; unless given, they stay as they start until :meth:`prune`. Its steps are
            those of the schedule.
        start: weights and masks to start from; a method given finds zeros where these masks have them.
        steps: length of the learning-rate schedule; the training's T unless given.
        stream: names this run's randomness; two runs of one stream draw the same data and dropout.
        folder: checkpoints go here every 30 s (``run.safetensors``); a run that finds one goes on from it.
        first_step: where on the schedule and in the data it starts (learning-rate rewinding).
        progress: (step, steps, text) after every step and before every candidate.

    Without interruption or with, the same arguments give the same weights, bit for bit (same thread count).

    Attributes:
        model: a copy of the training's, in eval mode between two calls.
        step: optimizer steps done on the schedule.
        losses: of every step of this run.
        cost: of this run, its look-aheads included.
        notes: what the method wants to find again after a restart; JSON.

    Raises:
        FormatError: a checkpoint of another model. (One that is truncated or altered costs a warning and its steps.)
        InputError: a model whose state dict holds more than tensors.
    """

    def __init__(
        self,
        training: Training,
        *,
        method: SparseMethod | None = None,
        start: Position | None = None,
        steps: int | None = None,
        stream: Any = "main",
        folder: Path | None = None,
        first_step: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.training, self.stream, self.progress = training, stream, progress
        self.total = training.steps if steps is None else steps
        start = start or Position()
        checkpoint.require_tensors(training.model)
        self.model = working_copy(training.model)
        if start.state is not None:
            self.model.load_state_dict(dict(start.state))
        self.scope = training.scope()
        self.optimizer = training.optimizer(trainable(self.model), training.lr, training.weight_decay)
        for group in self.optimizer.param_groups:
            group["base_lr"] = group["lr"]
        fixed = Fixed(start.keeps or {})
        self.attached: Attached = attach(self.model, self.optimizer, fixed, scope=self.scope)
        if method is not None:  # it finds the zeros
            self.attached.release()
            self.attached = attach(self.model, self.optimizer, method, scope=self.scope, steps=self.total)
        self.attached.meter.close()  # a run counts its cost itself
        self.step = self.attached.step = first_step
        self.cost = Cost()
        self.losses: list[float] = []
        self.notes: dict[str, Any] = {}
        self.file = None if folder is None else folder / "run.safetensors"
        self._order = EpochOrder(training.examples)
        self._saved, self._saving = time.perf_counter(), 0.0
        self.model.eval()
        if self.file is not None and self.file.exists():
            checkpoint.resume(self, self.file)

    @property
    def keeps(self) -> dict[str, torch.Tensor]:
        """Bool matrices [rows, cols] by tensor name, True where the weight stays."""
        return self.attached.keeps

    @property
    def density(self) -> float:
        """Kept share of the prunable weights."""
        return 1.0 - self.attached.sparsity

    @property
    def lr(self) -> float:
        """The learning rate of the step that comes next."""
        return self.training.lr * self.training.schedule(min(self.step / self.total, 1.0))

    def advance_to(self, step: int) -> None:
        """Trains until ``step`` steps of the schedule are done; nothing when they are already."""
        if step > self.total:
            raise InputError(f"the schedule has {self.total} steps and {step} were asked for: give more steps.")
        train_mode(self.model)
        while self.step < step:
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * self.training.schedule(self.step / self.total)
            density = self.density  # of this step: the method may change masks when it is over
            self.losses.append(self.one(self.optimizer, self.step, self.stream))
            self.step += 1
            self.cost.main += 1
            self.cost.weighted += density
            if self.progress:
                self.progress(self.step, self.total, f"loss {self.losses[-1]:.4g}")
            if self.file is not None and time.perf_counter() - self._saved > SAVE_EVERY * max(1.0, self._saving):
                self.save()
        self.model.eval()

    def prune(self, keeps: Mapping[str, torch.Tensor] | MaskSet) -> None:
        """New masks, which must lie within the present ones; names left out keep theirs.

        Raises:
            InputError: a weight would come back, or another shape.
        """
        given: dict[str, torch.Tensor] = {}
        for name, mask in keeps.items():
            present = self.keeps.get(name)
            keep = mask.unpack() if isinstance(mask, Mask) else mask
            given[name] = keep if present is None else keep.to(present.device)
            if present is not None and keep.shape == present.shape and bool((given[name] & ~present).any()):
                raise InputError(f"the new mask of {name} brings weights back: masks of a ticket only lose weights.")
        self.attached.set(given)

    def one(self, optimizer: torch.optim.Optimizer, step: int, stream: Any, share: float = 1.0) -> float:
        """One optimizer step on the batch and the randomness of (stream, step); the loss.

        Raises:
            Diverged: loss or gradients are not finite; the step is not taken.
        """
        started = time.perf_counter()
        batch = self.training.examples.take(self._draw(step, stream, share))
        with seeded(self.training.seed, stream, step):
            optimizer.zero_grad(set_to_none=True)
            with precision(self.model, self.training.precision):
                loss = self.training.loss(self.model, batch)
            if loss.numel() != 1 or not loss.requires_grad:
                raise InputError(
                    "the loss must be one number with a gradient: return the mean over the batch, not detached."
                )
            value = float(loss.detach())
            self._require_finite("loss", value, step, optimizer)
            loss.backward()
            if self.training.clip is not None:
                gradients = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
                norm = nn.utils.clip_grad_norm_(gradients, self.training.clip)
                self._require_finite("norm of the gradient", float(norm), step, optimizer)
            optimizer.step()
        self.cost.seconds += time.perf_counter() - started
        return value

    def _require_finite(self, what: str, value: float, step: int, optimizer: torch.optim.Optimizer) -> None:
        if not math.isfinite(value):
            lr = float(optimizer.param_groups[0]["lr"])
            raise Diverged(
                f"the {what} became {value} at step {step + 1}: lower the learning rate ({lr:g} then) or look for NaN in the data."
            )

    def _draw(self, step: int, stream: Any, share: float = 1.0) -> torch.Tensor:
        """The examples of a step. An epoch's order depends on seed, stream and epoch only; a share sees the beginning of
        its first epoch again and again."""
        parts = self.training.examples.parts
        epoch, place = (0, step % max(1, math.ceil(parts * share))) if share < 1.0 else divmod(step, parts)
        return self._order.of(seed_of(self.training.seed, "order", stream, epoch))[place]

    def position(self) -> Position:
        """Copies of the weights and masks as they are: where another run may start."""
        state = {n: t.detach().clone() for n, t in self.model.state_dict().items()}
        return Position(state, {n: k.clone() for n, k in self.keeps.items()})

    def finish(self) -> None:
        """Stores the end of the run without the optimizer's state; a run of the same folder then begins there."""
        self.save(optimizer=False)

    def save(self, optimizer: bool = True) -> None:
        """Writes the checkpoint: weights, optimizer, masks, step, cost and notes, whole or not at all.

        Raises:
            Diverged: a weight is not finite; the checkpoint before stays.
            WinnowError: the disk is full or read-only; the checkpoint before stays.
        """
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.detach().isfinite().all()):
                raise Diverged(f"{name} is not finite after step {self.step}: lower the learning rate ({self.lr:g}).")
        if self.file is None:
            return
        started = time.perf_counter()
        checkpoint.write(self, self.file, optimizer)
        self._saved = time.perf_counter()
        self._saving = self._saved - started


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """What a training changes: all that is not frozen, also what is not prunable."""
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise InputError("every parameter of the model is frozen: set requires_grad on what should be trained.")
    return found
