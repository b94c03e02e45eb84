"""The loop that fits a masked model to its dense self: fixed masks or learned ones, so many steps or so many seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from winnow.errors import InputError
from winnow.formats.tensorfile import FORMAT_VERSION, write_tensors
from winnow.train.distil.settings import DistilSettings
from winnow.train.distil.student import Student
from winnow.train.examples import Examples
from winnow.train.resume import EpochOrder, precision, read_checkpoint, under

SAVE_EVERY = 30.0  # seconds between two checkpoints
CLIP = 1.0  # largest norm of a gradient, where none is set and there are no batch norms
Progress = Callable[[int, int, str], None]


class Masks(Protocol):
    """Where the loop gets its masked weights from: a fixed mask or thresholds that learn."""

    parameters: list[torch.Tensor]  # trained beside the weights; may be empty
    lr: float  # of these parameters
    settled: bool  # whether state() and the weights say all there is to say; only then is a checkpoint written

    def masked(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Matrices [rows, cols] with zeros where the mask says so, differentiable."""

    def backward(self) -> None:
        """Adds the gradient of whatever the masks themselves want (a rate) to ``parameters``."""

    def stepped(self, weights: dict[str, torch.Tensor], progress: float) -> None:
        """Called after every optimizer step."""

    def state(self) -> dict[str, torch.Tensor]: ...

    def restore(self, state: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None: ...


@dataclass
class Trace:
    """What happened: steps, the loss, and where the time went."""

    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # of the outputs, one a step
    parts: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("teacher", "forward", "backward", "bridge", "update"), 0.0)
    )  # seconds

    def stopwatch(self) -> Callable[[str], None]:
        """Each call of the result adds the seconds since the one before to a part."""
        last = time.perf_counter()

        def lap(part: str) -> None:
            nonlocal last
            now = time.perf_counter()
            self.parts[part] += now - last
            last = now

        return lap


class Loop:
    """Fits ``student`` under ``masks`` to its own dense outputs.

    Args:
        teacher: the loss; ``teacher.loss(student, masked, target, batch)`` (see :class:`winnow.train.distil.teacher.Teacher`).
        seconds: a time limit in place of ``settings.steps``; learning rates fall with the elapsed time.
        folder: checkpoints go here every 30 s, and a run that finds one goes on from it.

    Without a time limit a run is a function of its arguments, bit for bit, interrupted or not.

    Raises:
        InputError: the loss is not finite.
    """

    def __init__(
        self,
        student: Student,
        examples: Examples,
        teacher: Any,
        masks: Masks,
        settings: DistilSettings,
        *,
        seed: int = 0,
        seconds: float | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.student, self.examples, self.teacher, self.masks = student, examples, teacher, masks
        self.settings, self.seed, self.seconds = settings, seed, seconds
        self.file = None if folder is None else folder / "fit.safetensors"
        self.progress = progress
        self.trace = Trace()
        self._order = EpochOrder(examples)

    def run(self) -> Trace:
        s = self.settings
        with self.student.training(weights=s.train == "all", small=s.train != "thresholds"):
            self.optimizer = self._optimizer()
            thresholds = set(self.masks.parameters)
            self._own = [p for group in self.optimizer.param_groups for p in group["params"] if p not in thresholds]
            self.limit = largest_norm(self.student.model, s)
            self._load()
            started, saved = time.perf_counter() - self.trace.seconds, time.perf_counter()
            while (done := self._done()) < 1:
                self._step(done)
                now = time.perf_counter()
                self.trace.seconds = now - started
                if self.file is not None and now - saved > SAVE_EVERY and self.masks.settled:
                    self._save()
                    saved = time.perf_counter()
        return self.trace

    def _done(self) -> float:
        if self.seconds is None:
            return self.trace.steps / self.settings.steps
        return self.trace.seconds / self.seconds if self.trace.steps else 0.0

    def _step(self, done: float) -> None:
        t = self.trace
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * self._factor(done)
        index = self._draw(t.steps)
        batch = self.examples.take(index)
        lap = t.stopwatch()
        target = self.teacher.target(index, batch)
        lap("teacher")
        self.optimizer.zero_grad(set_to_none=True)
        weights = self.student.matrices()
        with precision(self.student.model, self.settings.precision):
            loss = self.teacher.loss(self.student, self.masks.masked(weights), target, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the loss became {value} at step {t.steps + 1}: lower the rate (--set lr={self.settings.lr / 10:g}) or look for NaN in the data."
            )
        lap("forward")
        if loss.requires_grad:
            loss.backward()
        lap("backward")
        self.masks.backward()
        lap("bridge")
        if self.limit:
            torch.nn.utils.clip_grad_norm_(self._own, self.limit)
        self.optimizer.step()
        lap("update")
        with torch.no_grad():
            self.masks.stepped(self.student.matrices(), done)
        lap("bridge")
        t.losses.append(value)
        t.steps += 1
        if self.progress:
            total = self.settings.steps if self.seconds is None else max(t.steps, round(t.steps / max(done, 1e-9)))
            self.progress(t.steps, total, f"loss {value:.4g}")

    def _factor(self, done: float) -> float:
        """Linear rise over the warm-up, then a cosine to zero."""
        ramp = self.settings.warmup
        if done < ramp:
            return (done + 1 / max(self.settings.steps, 1)) / (ramp + 1 / max(self.settings.steps, 1))
        return 0.5 * (1 + math.cos(math.pi * (done - ramp) / (1 - ramp)))

    def _draw(self, step: int) -> torch.Tensor:
        """The examples of a step; an epoch's order depends on seed and epoch only, so a resumed run draws the same."""
        epoch, place = divmod(step, self.examples.parts)
        return self._order.of((self.seed * 1_000_003 + epoch) % 2**63)[place]

    def _optimizer(self) -> torch.optim.Optimizer:
        s, groups = self.settings, []
        for params, lr, decay in (
            ([p for p in self.student.weights.values() if p.requires_grad], s.lr, s.weight_decay),
            ([p for p in self.student.small.values() if p.requires_grad], s.lr, 0.0),
            (list(self.masks.parameters), self.masks.lr, 0.0),
        ):
            if params:
                groups.append({"params": params, "lr": lr, "base": lr, "weight_decay": decay})
        if not groups:
            raise InputError("there is nothing to train: choose another setting for train.")
        return torch.optim.SGD(groups, momentum=s.momentum)

    def _save(self) -> None:
        assert self.file is not None
        tensors = {f"model.{n}": t for n, t in self.student.model.state_dict().items() if n in self.student.start}
        tensors |= {f"masks.{n}": t for n, t in self.masks.state().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            if state.get("momentum_buffer") is not None:
                tensors[f"momentum.{i}"] = state["momentum_buffer"]
        write_tensors(self.file, tensors, {"format_version": FORMAT_VERSION, "trace": vars(self.trace)})

    def _load(self) -> None:
        """Goes on from a checkpoint; one that was damaged since costs a warning and its steps."""
        found = read_checkpoint(self.file) if self.file is not None and self.file.exists() else None
        if found is None:
            return
        about, tensors = found
        state = self.student.model.state_dict()
        with torch.no_grad():
            for name, tensor in under("model.", tensors).items():
                state[name].copy_(tensor)
            self.masks.restore(under("masks.", tensors), self.student.matrices())
        momentum = {int(i): {"momentum_buffer": t} for i, t in under("momentum.", tensors).items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": momentum})
        self.trace = Trace(**about["trace"])


def largest_norm(model: nn.Module, settings: DistilSettings) -> float:
    """The gradient's norm that a step is held to; 0 is none. See ``DistilSettings.clip``."""
    if settings.clip is not None:
        return settings.clip
    return 0.0 if any(isinstance(m, _BatchNorm) for m in model.modules()) else CLIP


class FixedMasks:
    """Keep masks (bool [rows, cols] by tensor name) for :class:`winnow.train.distil.loop.Loop`."""

    settled = True

    def __init__(self, keeps: Mapping[str, torch.Tensor]) -> None:
        self.keeps = {n: k for n, k in keeps.items()}
        self.parameters: list[torch.Tensor] = []
        self.lr = 0.0

    def masked(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: w * self.keeps[n] if n in self.keeps else w for n, w in weights.items()}

    def backward(self) -> None:
        """A fixed mask wants nothing."""

    def stepped(self, weights: dict[str, torch.Tensor], progress: float) -> None:
        """Nothing moves."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, state: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
        """Nothing was stored."""
