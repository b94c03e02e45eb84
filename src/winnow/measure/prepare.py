"""Data for a compression: what calibrates, what selects, what is reported on - disjoint, and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from winnow.data import Records, calibration_batches, disjoint, open_data, split_disjoint
from winnow.data.frames import both_splits
from winnow.data.images import describe_preprocessing, with_normalisation
from winnow.data.text import ModelKind
from winnow.data.tokens import context_length
from winnow.errors import InputError
from winnow.forward.batch import call
from winnow.measure.fits import check_held_out, check_length, try_first
from winnow.measure.quality import open_task, single_output
from winnow.measure.task import Task
from winnow.models.kind import model_kind, processor_of
from winnow.models.source import ModelSource


@dataclass
class Prepared:
    """Calibration batches, and the tasks that select and report. Any of them may be missing."""

    kind: ModelKind
    batches: list[Any] = field(default_factory=list)
    task: Task | None = None
    selection: Task | None = None
    calibration: Records | None = None
    evaluation: Records | None = None
    length: int | None = None
    images: str | None = None  # how images are fed
    batch_size: int = 8  # examples in a calibration batch
    hashes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what the user can act on
    remarks: list[str] = field(default_factory=list)  # how images are fed, where the model says it


def prepare(
    source: ModelSource,
    data: Any,
    evaluation: Any,
    *,
    task: str,
    column: str | None,
    label: str | None,
    samples: int,
    length: int | None,
    batch_size: int,
    seed: int,
    eval_limit: int | None,
    select: bool,
    tokenizer: Any = None,
    tokens: int | None = None,
    model: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Prepared:
    """Opens the data, splits it, and builds batches and tasks.

    ``model`` is run on two records, to see whether it puts out classes or one number. ``mean`` and ``std`` (of pixels between
    0 and 1, one number or one a channel) take the place of the model's own for images.

    With ``tokens``, batches of running text hold at most so many: ``batch_size`` is cut where texts are long.

    Without evaluation data of its own, a part of ``data`` is held out for it; with ``select`` a further part, never
    reported on, is held out for choosing among candidates.

    Raises:
        InputError: unreadable data, calibration and evaluation data that are mostly the same (records that they share are
            left out of calibration), labels named and not the model's classes, no tokenizer for text, a mean without images.
    """
    kind = model_kind(source)
    found = Prepared(kind, batch_size=batch_size)
    if data is None and evaluation is None:
        if select:
            raise InputError("--max-drop needs data to measure on: give --data (and --eval).")
        return found
    data, evaluation = both_splits(data, evaluation)
    opening = partial(open_data, column=column, label=label, forward=source.arguments)
    records = opening(data) if data is not None else None
    held_out = opening(evaluation) if evaluation is not None else None
    selection = None
    if records is not None and held_out is not None:  # before the split: no record that chooses is reported on either
        records, left_out = disjoint(records, held_out)
        found.notes += [left_out] if left_out else []
    if held_out is None and task != "none" and records is not None:
        sizes = (0.25, 0.35, 0.4) if select else (0.3, 0.7)
        records, *rest = split_disjoint(records, seed, sizes)
        selection, held_out = rest if select else (None, rest[0])
        found.notes.append(
            f"no --eval given: {len(held_out):,} of the records of {held_out.name} were held out for measuring."
        )
    elif select and records is not None:
        records, selection = split_disjoint(records, seed, (0.4, 0.6))
    given = records if records is not None else held_out
    if given is not None and given.kind == "tensors":
        kind = found.kind = "tensors"  # already what the model's forward takes
    processor = tokenizer if tokenizer is not None else processor_of(source, kind, given)
    if mean is not None or std is not None:
        processor = with_normalisation(processor, given, mean, std)
    if given is not None and given.kind == "images":
        found.images = describe_preprocessing(processor, given)
        (found.notes if "--mean" in found.images else found.remarks).append(found.images)
    found.length = length
    if tokens is not None and kind in ("causal-lm", "seq2seq") and source.config is not None:
        longest = length or context_length(processor, source.config, kind)
        found.batch_size = max(1, min(batch_size, tokens // longest))
        if found.batch_size < batch_size:
            found.notes.append(
                f"a training step takes {found.batch_size} texts of {longest} tokens: --set batch={batch_size} takes more, --length shortens them."
            )
    if records is not None:
        found.calibration = records
        found.notes += _one_label(records)
        found.batches = calibration_batches(
            records,
            processor,
            model_kind=kind,
            samples=samples,
            length=length,
            batch_size=found.batch_size,
            seed=seed,
            config=source.config,
        )
        found.hashes["calibration"] = records.sha256
    if task == "none":
        return found

    single = None
    if given is not None:
        single = (
            single_output(model, given, processor, model_kind=kind, length=length)
            if model is not None
            else getattr(source.config, "num_labels", None) == 1 and "Classification" in source.architecture
        )

    def build(part: Records) -> Task:
        named = None if task == "auto" else task
        opened = open_task(
            part,
            processor,
            model_kind=kind,
            task=named,
            length=length,
            limit=eval_limit,
            config=source.config,
            single=single,
        )
        if named is None and label is not None and opened.metric == "agreement":
            part.class_labels()  # says what is wrong with them
            raise InputError(
                f"{part.name}: the labels in {label!r} are no classes: leave --label out, or say --task agreement."
            )
        return opened

    found.evaluation = held_out
    if held_out is not None:
        found.hashes["evaluation"] = held_out.sha256
        found.task = build(held_out)
    if selection is not None:
        found.hashes["selection"] = selection.sha256
        found.selection = build(selection)
    return found


def _one_label(records: Records) -> list[str]:
    """A note where all calibration records have the same label, but for -1, which stands for labels that are not public."""
    labels, names = records.labels, records.label_names
    if labels is None or len(labels) < 2 or labels[0] == -1 or bool((labels != labels[0]).any()):
        return []
    label = repr(names[int(labels[0])]) if names is not None else f"{labels[0]:g}"
    return [
        f"all {len(labels):,} calibration records of {records.name} have one label, {label}: data sorted by class are a common "
        "cause; shuffle them before you take a part, so that every class is calibrated on."
    ]


def try_model(prepared: Prepared, model: nn.Module, config: Any = None) -> None:
    """The first batches of calibration and of the measures are put into the model, one example of each.

    Raises:
        InputError: the model does not take one, or answers with NaN; texts are longer than its table of positions.
    """
    check_length(model, config, prepared.length)
    if prepared.batches:
        try_first(model, lambda: call(model, prepared.batches[0]), "calibration")
    for task in (prepared.task, prepared.selection):
        if task is None:
            continue
        try:
            try_first(model, partial(task.evaluate, model), "evaluation")
        except InputError as error:
            if prepared.kind != "seq2seq":
                raise
            raise InputError(
                f"this encoder-decoder cannot be measured on such data, for which it wants decoder inputs ({error.__cause__ or error.flagged}): "
                "give --task none, which prunes and packs without measuring, or tensors with decoder_input_ids."
            ) from error
    if prepared.evaluation is not None and prepared.task is not None:
        check_held_out(model, prepared.evaluation)
