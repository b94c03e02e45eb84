"""The owner's training out of a model, data and a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from winnow.disk.links import refuse_links
from winnow.errors import InputError
from winnow.kernels.swap import require_dense
from winnow.models.source import ModelSource, open_model
from winnow.train.task.batches import is_batches
from winnow.train.task.given import patterns, real, whole
from winnow.train.task.starting_model import kind_of
from winnow.train.task.task_data import TASKS, DataOptions, from_batches, from_records
from winnow.train.task.training import OptimizerFactory, Schedule, Training, adamw, cosine, linear
from winnow.train.task.training import warmup as warm
from winnow.train.task_loss import Loss, TaskLoss

EPOCHS = 3  # where neither steps nor epochs are given
# Learning rate and weight decay of AdamW. Encoders and CLIP: Jaiswal et al. 2023, table 1. Language models and vision
# transformers: what fine-tuning usually takes. Everything else (convolutional networks, plain torch models): 1e-3.
RATES: dict[str, tuple[float, float]] = {
    "encoder": (2e-5, 0.0), "causal-lm": (2e-5, 0.0), "seq2seq": (2e-5, 0.0), "clip": (1e-5, 0.1),
    "transformer": (5e-5, 0.0), "other": (1e-3, 0.01),
}  # fmt: skip
SCHEDULES: dict[str, Schedule] = {"linear": linear, "cosine": cosine}


def training_from(
    model: str | Path | nn.Module | ModelSource,
    data: Any,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch: int = 32,
    lr: float | None = None,
    weight_decay: float | None = None,
    optimizer: OptimizerFactory | None = None,
    schedule: str | Schedule = "linear",
    warmup: float = 0.0,
    clip: float | None = 1.0,
    precision: str = "float32",
    loss: Loss | None = None,
    eval: Any = None,
    task: str = "auto",
    column: str | None = None,
    label: str | None = None,
    length: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    processor: Any = None,
    weights: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Training:
    """An ordinary fine-tuning of a model on labelled data, as a value that a search for tickets can repeat.

    An encoder folder without a head for the task gets a fresh, seeded one; a CLIP model becomes its image tower under a
    frozen head made of the classes' names; models stored in half precision are trained in float32. What was decided is
    said in ``Training.notes``.

    Args:
        model: a Hugging Face folder or name, ``"package.module:function"``, or a module (which is not changed).
        data: labelled data of any form of :func:`winnow.data.open_data`; with a ``loss`` of your own also a DataLoader
            or another iterable, whose batches reach the loss as they are.
        steps: T. Else ``epochs`` over the data, 3 unless given; the two are mutually exclusive.
        batch: examples a step; a DataLoader brings its own.
        lr, weight_decay: by the kind of model unless given: encoders 2e-5 and 0, CLIP 1e-5 and 0.1 (Jaiswal et al. 2023,
            table 1), language models 2e-5 and 0, vision transformers 5e-5 and 0, everything else 1e-3 and 0.01.
        optimizer: (parameters, lr, weight_decay) -> optimizer; AdamW unless given.
        schedule: "linear" (to 0), "cosine" (to 0), or progress in [0, 1) -> factor.
        warmup: share of the steps in which the rate rises to its height.
        clip: norm to which gradients are clipped, None for none.
        loss: (model, batch) -> scalar. Else cross entropy for classes, squared error for real-valued scores, and the
            model's own loss for running text.
        eval: evaluation data of any of those forms, a :class:`winnow.measure.task.Task`, or a function of the model
            that returns an :class:`Evaluation`. Else a fifth of ``data`` is held out.
        task: "classification", "regression", "perplexity"; "auto" finds it; "none" evaluates nothing.
        column, label: names of the text and label columns.
        length: tokens a text is cut to.
        include, exclude: patterns of prunable tensors; one string is a list of one.
        processor: tokenizer, or image settings, for a model in memory.
        weights: of ``package.module:function``.

    Raises:
        InputError: anything about model, data or numbers that would stop the training later.
    """
    if steps is not None and epochs is not None:
        raise InputError("steps and epochs are mutually exclusive: give one of them.")
    batch, seed = whole("batch", batch, 1), whole("seed", seed)
    steps = None if steps is None else whole("steps", steps, 1)
    length = None if length is None else whole("length", length)
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("clip", clip), ("epochs", epochs)):
        if value is not None:
            real(name, value, zero=name == "weight_decay")
    if not callable(schedule) and not (isinstance(schedule, str) and schedule in SCHEDULES):
        raise InputError(
            f"the schedule {schedule!r} is not known: choose linear or cosine, or give a function of the progress."
        )
    if task not in TASKS:
        raise InputError(
            f"the task {task!r} is not known: choose classification, regression, perplexity, auto or none."
        )
    schedule = warm(warmup, SCHEDULES[schedule] if isinstance(schedule, str) else schedule)
    include, exclude = patterns("include", include), patterns("exclude", exclude)
    if data is None:
        raise InputError("a ticket is trained on labelled data: give data.")
    if isinstance(model, nn.Module):
        require_dense(model)
    source = (
        model if isinstance(model, ModelSource) else open_model(model, weights, trust_remote_code=trust_remote_code)
    )
    if source.folder is not None:  # both are written anew, with all that they hold
        refuse_links([source.folder / "config.json", source.folder / "generation_config.json"], source.folder)
    options = DataOptions(
        eval, TASKS[task], batch, column, label, length, seed, processor, loss, steps, source.arguments
    )
    as_they_are = loss is not None and is_batches(data)
    found = from_batches(source, data, options) if as_they_are else from_records(source, data, options)
    kind = kind_of(source)
    beside = source.companions([data, eval])
    return Training(
        model=found.model,
        examples=found.examples,
        loss=loss or TaskLoss(found.loss),
        steps=steps or max(1, round(found.examples.parts * (EPOCHS if epochs is None else epochs))),
        optimizer=optimizer or adamw,
        lr=RATES[kind][0] if lr is None else lr,
        weight_decay=RATES[kind][1] if weight_decay is None else weight_decay,
        schedule=schedule,
        clip=clip,
        precision=precision,  # type: ignore[arg-type]
        evaluate=found.evaluate,
        include=include,
        exclude=exclude,
        seed=seed,
        notes=[*found.notes, *beside.left_out],
        types=found.types,
        kind=kind,
        processor=processor if hasattr(processor, "save_pretrained") else None,
        files=beside.files,
    )
