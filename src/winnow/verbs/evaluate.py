"""``eval``: the quality of one model, packed or dense, alone or against another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.models import ModelSource, open_model
from winnow.untrained import untrained

Stage = Callable[[str], Callable[[int, int, str], None]]


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval, and the paired change against a reference where one was given."""

    model: str
    metric: str
    unit: str
    value: float
    low: float
    high: float
    n: int
    description: str
    reference: str | None = None
    reference_value: float | None = None
    drop: float | None = None  # points, or per cent of perplexity; positive is worse
    drop_low: float | None = None
    drop_high: float | None = None
    relative: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    harness: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what to keep in mind of the figure


def evaluate(
    model: str | Path | nn.Module,
    data: Any,
    *,
    task: str = "auto",
    column: str | None = None,
    label: str | None = None,
    length: int | None = None,
    eval_limit: int | None = None,
    reference: str | Path | nn.Module | None = None,
    harness_tasks: Sequence[str] = (),
    harness_path: Path | None = None,
    dtype: str = "auto",
    weights: str | Path | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    progress: Stage | None = None,
) -> Measured:
    """Measures a model on data; see ``winnow eval``.

    Args:
        reference: a dense model to compare with: paired change with its 95 % interval, agreement and KL.
        harness_tasks: local lm-eval tasks to run too, found in ``harness_path``.

    Raises:
        InputError: the model or the data cannot be read, or the task does not fit them.
    """
    from winnow.compression.job import RANGES, check_range
    from winnow.compression.prepare import prepare, written_unit
    from winnow.measure.quality import compare

    check_range("length", length, *RANGES["length"])
    check_range("eval_limit", eval_limit, *RANGES["eval_limit"])
    if dtype not in ("auto", "float32", "bfloat16"):
        raise InputError(f"--dtype {dtype!r} is not known: choose auto, float32 or bfloat16.")
    if harness_tasks and harness_path is None:
        raise InputError("--harness needs the folder of its task files: give --harness-path.")
    source = open_model(model, weights, trust_remote_code=trust_remote_code)
    prepared = prepare(
        source, None, data, task=task, column=column, label=label, samples=1, length=length, batch_size=8, seed=0,
        eval_limit=eval_limit, select=False, tokenizer=tokenizer,
    )  # fmt: skip
    if prepared.task is None:
        raise InputError("there is nothing to measure: --task none leaves no figure.")
    work = prepared.task
    dense = dense_source = anchor = None
    if reference is not None:
        dense_source = open_model(reference, trust_remote_code=trust_remote_code)
        dense_model = _load(dense_source, dtype)
        anchor = work.reference(dense_model)
        dense = anchor.evaluation
        del dense_model
    loaded = _load(source, dtype)
    stage = progress("measuring") if progress else None
    found = work.evaluate(loaded, anchor, progress=(lambda done, total: stage(done, total, "")) if stage else None)
    against = compare(dense, found, higher_is_better=work.higher_is_better) if dense is not None else None
    figures = {}
    if harness_tasks:
        assert harness_path is not None
        from winnow.measure.harness import harness

        figures = harness(loaded, tokenizer or source.tokenizer(), list(harness_tasks), harness_path)
    return Measured(
        model=str(source.spec), metric=work.metric, unit=written_unit(work), value=found.value * work.scale, low=found.low * work.scale, high=found.high * work.scale, n=found.n,
        description=work.describe(), reference=str(dense_source.spec) if dense_source else None, reference_value=dense.value * work.scale if dense else None,
        drop=against.drop if against else None, drop_low=against.low if against else None, drop_high=against.high if against else None,
        relative=bool(against and against.relative), details=dict(found.details), harness=figures,
        notes=[note for one in (source, dense_source) if one is not None and (note := untrained(one))],
    )  # fmt: skip


def _load(source: ModelSource, dtype: str) -> nn.Module:
    loaded = source.load()
    return loaded.to(torch.float32 if dtype == "auto" else getattr(torch, dtype))
