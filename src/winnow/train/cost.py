"""What training under masks costs on the user's own model: memory, time in the hooks, FLOPs dense and in theory sparse."""

from __future__ import annotations

from dataclasses import dataclass

from winnow import words


@dataclass(frozen=True)
class TrainingCost:
    """What a training under masks takes, from :meth:`winnow.train.Attached.cost`. ``str`` tells it in one line.

    Attributes:
        parameters, optimizer, factors, masks: bytes now, in this process: of the model's parameters; of the optimizers'
            state (zero before the first step); of what is trained in the weights' places; of masks, the places of kept
            weights, and whatever tensors the method keeps. Gradients, which plain training has too, are not counted.
        plain: bytes of parameters and optimizer state of the same training without masks or factors; None before a step.
        hooks: median seconds of a step spent in winnow's hooks, over steps 3 to 20; None before. The time of the host: work
            that an accelerator does meanwhile shows in ``step`` only.
        step: median seconds from the end of a step to the end of the next, loading of data included.
        changes: steps so far after which masks were others than before.
        change: mean seconds in the hooks of such a step; None where there was none.
        dense, sparse: training FLOPs of a step, dense and if masked weights cost nothing: three times the forward of the
            second step (see :class:`winnow.measure.flops.Flops`). Linear, convolutional, recurrent and
            ``MultiheadAttention`` layers are counted, products between activations are not. None where unknown.
        dense_total, sparse_total: of all steps so far, each counted like the second, under the masks that it had.
        unseen: prunable tensors whose products the hooks of modules did not see, so that FLOPs are unknown.
    """

    parameters: int
    optimizer: int
    factors: int
    masks: int
    plain: int | None
    hooks: float | None
    step: float | None
    changes: int
    change: float | None
    dense: float | None
    sparse: float | None
    dense_total: float | None
    sparse_total: float | None
    unseen: tuple[str, ...]

    @property
    def memory(self) -> int:
        """Bytes of all that is counted."""
        return self.parameters + self.optimizer + self.factors + self.masks

    def metrics(self) -> dict[str, float]:
        """What is known, as figures for a log: seconds, FLOPs, and memory over that of plain training."""
        figures = {
            "memory_ratio": self.memory / self.plain if self.plain else None, "hook_seconds": self.hooks,
            "step_seconds": self.step,
            "dense_flops": self.dense_total, "sparse_flops": self.sparse_total,
        }  # fmt: skip
        return {f"winnow_{key}": value for key, value in figures.items() if value is not None}

    def __str__(self) -> str:
        from winnow.report.ticket.words import flops as operations

        parts = {n: getattr(self, n) for n in ("parameters", "optimizer", "factors", "masks")}
        memory = ", ".join(f"{name} {words.size(value)}" for name, value in parts.items() if value)
        time = "not measured yet"
        if self.hooks is not None and self.step:
            share = words.percent(self.hooks / self.step)
            time = f"{_time(self.hooks)} of a step's {_time(self.step)} ({share})"
        if self.change is not None:
            time += f", {_time(self.change)} in a step that changes masks"
        flops = "not counted before the end of the second step"
        if self.unseen:
            flops = f"unknown, since no layer that is counted multiplied by {words.listed(self.unseen, 2)}"
        elif self.dense is not None and self.sparse is not None:
            flops = f"{operations(self.dense)} a step dense, {operations(self.sparse)} in theory sparse"
            if self.dense_total is not None and self.sparse_total is not None:
                flops += f" (so far {operations(self.dense_total)} and {operations(self.sparse_total)})"
        ratio = f", {self.memory / self.plain:.2f}× that of plain training" if self.plain else ""
        return f"memory {words.size(self.memory)} ({memory}){ratio}; hooks: {time}; training FLOPs: {flops}"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.1 else words.duration(seconds)
