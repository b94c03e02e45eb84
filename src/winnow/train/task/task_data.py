"""Data as what a training needs of it: examples with labels, the loss that fits them, and an evaluation beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from winnow.data import Records, disjoint, open_data, split_disjoint
from winnow.data.frames import both_splits
from winnow.data.text import ModelKind
from winnow.data.tokens import context_length
from winnow.errors import InputError
from winnow.forward.model import call, evaluating, forward_parameters, logits_of
from winnow.measure.classification import ClassificationTask, model_order
from winnow.measure.evaluation import Evaluation
from winnow.measure.fits import check_held_out, explaining_errors
from winnow.measure.quality import open_task
from winnow.measure.spearman import ScoreTask
from winnow.measure.task import Task
from winnow.models.kind import model_kind, processor_of
from winnow.models.source import ModelSource
from winnow.train.examples import Examples
from winnow.train.task.batches import from_loader, labelled, own_tokens, running_text
from winnow.train.task.starting_model import in_float, starting_model
from winnow.train.task_loss import Loss, split_labels

HELD_OUT = 0.2  # of the data, where no evaluation data is given
Kind = Literal["classes", "scores", "own"]
TASKS = {
    "auto": "auto", "none": "none", "classification": "classes", "accuracy": "classes", "classify": "classes",
    "regression": "scores", "similarity": "scores", "perplexity": "own", "lm": "own", "language-model": "own",
}  # fmt: skip
Evaluate = Callable[[nn.Module], Evaluation]


@dataclass(frozen=True)
class DataOptions:
    """How the data is read, as the user set it; see :func:`winnow.tickets.training_from`. ``task`` is a value of ``TASKS``."""

    eval: Any
    task: str
    batch: int
    column: str | None
    label: str | None
    length: int | None
    seed: int
    processor: Any
    loss: Loss | None
    steps: int | None
    forward: Any = None  # arguments of the model's forward: see winnow.data.open_data


@dataclass
class TaskData:
    """The model that is trained, its examples, the loss that fits where the user has none, and the evaluation."""

    model: nn.Module
    examples: Examples
    loss: Kind
    evaluate: Evaluate | None
    notes: list[str] = field(default_factory=list)
    types: dict[str, torch.dtype] = field(default_factory=dict)  # of tensors that were widened, by name


def from_batches(source: ModelSource, data: Any, options: DataOptions) -> TaskData:
    """A DataLoader or an iterable of batches, for a loss that knows what they are. Evaluation data is the user's, too."""
    examples, note = from_loader(data, options.steps, options.seed)
    found = TaskData(source.load(), examples, "classes", None, [note])
    found.model = in_float(found.model, found.notes, found.types)
    if options.eval is None or options.task == "none":
        found.notes.append("no evaluation data given: the tickets are not measured.")
        return found
    found.evaluate, records = _evaluation(options)
    if records is not None:
        kind = _kind(source, records)
        loss = _loss_for(records, kind, replace(options, loss=None))
        found.evaluate = _task(
            loss, records, _processor(source, kind, records, options), options.length, source.config
        ).evaluate
        if loss != "own":
            check_held_out(found.model, records)
    return found


def from_records(source: ModelSource, data: Any, options: DataOptions) -> TaskData:
    """Records of any form.

    Raises:
        InputError: no labels, a single class, training and evaluation data that overlap, a model whose outputs do not fit.
    """
    notes: list[str] = []
    types: dict[str, torch.dtype] = {}
    data, held = both_splits(data, options.eval)
    options = replace(options, eval=held)
    records = open_data(data, column=options.column, label=options.label, forward=source.arguments)
    kind = _kind(source, records)
    loss = _loss_for(records, kind, options)
    if loss == "own" and options.task != "own" and records.labels is not None:
        notes.append(
            "the labels are not used: a language model is trained on the text (task='classification' trains a head)."
        )
    records, held_out, evaluate = _split(records, kind, options, notes)
    processor = _processor(source, kind, records, options)
    if options.loss is None and loss != "own":
        model = starting_model(
            source, records, held_out, scores=loss == "scores", processor=processor, seed=options.seed, notes=notes,
            types=types,
        )  # fmt: skip
    else:
        model = in_float(source.load(), notes, types)
    if records.kind == "images" and isinstance(processor, tuple):
        processor = processor[1]  # CLIP's: its tokenizer has made the head
    config = getattr(model, "config", None)
    config = config if hasattr(config, "to_dict") else source.config
    length, batch = options.length, options.batch
    if loss == "own":
        examples = (
            own_tokens(records, batch)
            if records.kind == "tensors"
            else running_text(records, processor, batch=batch, length=length, config=config)
        )
    else:
        if records.kind in ("text", "pairs"):
            length = length or context_length(processor, config, "encoder")
        pixels = "pixel_values" if "pixel_values" in forward_parameters(model) else None
        labels = _labels(loss, records, config)
        examples = labelled(records, labels, processor, batch=batch, length=length, pixels=pixels)
    if held_out is not None:
        evaluate = _task(loss, held_out, processor, length, config).evaluate
    found = TaskData(model, examples, loss, evaluate, notes, types)
    if options.loss is None and loss != "own":
        assert labels is not None
        _check_outputs(found, labels, held_out, config)
    if held_out is not None and loss != "own":
        check_held_out(found.model, held_out)
    return found


def _kind(source: ModelSource, records: Records) -> ModelKind:
    kind = model_kind(source)
    return "tensors" if records.kind == "tensors" and kind not in ("causal-lm", "seq2seq") else kind


def _processor(source: ModelSource, kind: ModelKind, records: Records, options: DataOptions) -> Any:
    return options.processor if options.processor is not None else processor_of(source, kind, records)


def _language(kind: ModelKind, options: DataOptions) -> bool:
    return options.task == "own" or (options.task in ("auto", "none") and kind in ("causal-lm", "seq2seq"))


def _split(
    records: Records, kind: ModelKind, options: DataOptions, notes: list[str]
) -> tuple[Records, Records | None, Evaluate | None]:
    """What trains, what is evaluated on, or an evaluation that the user brought."""
    if options.task == "none":
        return records, None, None
    if options.eval is None and records.labels is None and not _language(kind, options):
        notes.append("no evaluation data given, and no labels to measure by: the tickets are not measured.")
        return records, None, None
    if options.eval is None:
        part, held_out = split_disjoint(records, options.seed, (1 - HELD_OUT, HELD_OUT))
        notes.append(
            f"no evaluation data given: {len(held_out):,} of the records of {held_out.name} were held out for it."
        )
        return part, held_out, None
    own, held = _evaluation(options)
    if held is None:
        return records, None, own
    records, left_out = disjoint(records, held, "training")
    notes += [left_out] if left_out else []
    return records, _same_names(held, records), None


def _evaluation(options: DataOptions) -> tuple[Evaluate | None, Records | None]:
    """A ready evaluation, or records to build one of."""
    given = options.eval
    if isinstance(given, Task):
        return given.evaluate, None
    if callable(given) and not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
        return given, None
    return None, open_data(given, column=options.column, label=options.label, forward=options.forward)


def _same_names(held_out: Records, records: Records) -> Records:
    """Evaluation labels numbered as the training data numbers them, where both name their classes."""
    names, own = records.label_names, held_out.label_names
    if names is None or own is None or held_out.labels is None or own == names:
        return held_out
    unknown = sorted(set(own) - set(names))
    if unknown:
        raise InputError(
            f"{held_out.name} has the class {unknown[0]!r}, which {records.name} has not: give data of the same classes."
        )
    number = np.asarray([names.index(n) for n in own], dtype=np.int64)
    return replace(held_out, labels=number[held_out.labels], label_names=names)


def _loss_for(records: Records, kind: ModelKind, options: DataOptions) -> Kind:
    if options.task in ("classes", "scores", "own"):
        loss: str = options.task
    elif _language(kind, options):
        loss = "own"
    elif records.labels is None:
        if options.loss is None:
            raise InputError(f"{records.name} has no labels: name their column with label, or give a loss of your own.")
        loss = "classes"
    else:
        real = records.labels.dtype.kind == "f"
        whole = bool(np.all(records.labels == np.round(records.labels)))
        loss = "scores" if real and (not whole or records.kind == "pairs") else "classes"
    if loss == "own" and kind != "causal-lm" and options.loss is None:
        raise InputError(
            "only decoder language models are trained on running text: give labelled data, a DataLoader with a loss, or a Trainer."
        )
    return loss  # type: ignore[return-value]


def _labels(loss: Kind, records: Records, config: Any) -> torch.Tensor | None:
    """int64 classes as the model counts them, or float32 scores; None where a loss of the user's own needs none."""
    if records.labels is None:
        return None
    if loss == "scores":
        scores = records.scores()
        if len(np.unique(scores)) < 2:
            raise InputError(f"{records.name}: all scores are {scores[0]:g}, which teaches nothing: check label.")
        return torch.tensor(scores, dtype=torch.float32)
    labels = model_order(records, config, trained=True)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"{records.name}: every record has class {labels[0]}, which teaches nothing: give data of two classes or more."
        )
    return torch.from_numpy(labels)


def _task(loss: Kind, records: Records, processor: Any, length: int | None, config: Any) -> Task:
    if loss == "own":
        return open_task(records, processor, model_kind="causal-lm", task="perplexity", length=length, config=config)
    if records.labels is None:
        raise InputError(
            f"{records.name} has no labels to measure by: name their column with label, or give eval a function of the model."
        )
    if loss == "scores":
        return ScoreTask(records, processor, length=length, config=config)
    return ClassificationTask(records, processor, length=length, config=config, trained=True)


def _check_outputs(found: TaskData, labels: torch.Tensor, held_out: Records | None, config: Any) -> None:
    """The model's outputs fit the labels: found out on one batch, before any training."""
    _, batch = next(found.examples.all())
    inputs, batch_labels = split_labels(batch)
    rows = len(batch_labels)
    with evaluating(found.model), explaining_errors(inputs, "training"):
        logits = logits_of(call(found.model, inputs))
    if found.loss == "scores":
        if logits.numel() != rows:
            raise InputError(
                f"the model returned {list(logits.shape)} for {rows} examples: a score is one number each, so give a model with one output."
            )
        return
    if logits.ndim != 2 or len(logits) != rows:
        raise InputError(
            f"the model returned {list(logits.shape)} for {rows} examples: give a classifier, or add a head with winnow.tickets.with_head."
        )
    highest = int(labels.max())
    if held_out is not None and held_out.labels is not None:
        highest = max(highest, int(model_order(held_out, config, trained=True).max()))
    if highest >= logits.shape[1]:
        raise InputError(
            f"the data has label {highest}, the model knows the {logits.shape[1]} classes 0 to {logits.shape[1] - 1}: check label, or give a model with that many outputs."
        )
