"""The main verb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from winnow.compression.plan import Plan
    from winnow.compression.result import Result

__all__ = ["compress"]


def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    sparsity: float | str | Sequence[float] | None = None,
    bits_per_weight: float | None = None,
    size: str | int | None = None,
    max_drop: float | None = None,
    out: str | Path | None = None,
    dry_run: bool = False,
    progress: Callable[[str], Callable[[int, int, str], None]] | None = None,
    command: str | None = None,
    **options: Any,
) -> Result | Plan:
    """Prunes a model to a budget, packs it, measures it against the dense model and plain quantization.

    Args:
        model: a Hugging Face folder or name, ``"package.module:function"`` (with ``weights=``), or a module (which
            is not changed).
        data: calibration data: a file, a folder of images, an npz, a Hugging Face data set name,
            ``"package.module:function"``, or records in memory; see :func:`winnow.data.open_data`.
        sparsity: share of zeros among the prunable weights in [0, 1), or several. Exactly one of this,
            ``bits_per_weight`` (of the prunable weights, index and scales counted), ``size`` (of the weights file,
            e.g. "40MB") and ``max_drop`` (points, or per cent of perplexity, that the paired upper 95 % bound may lose);
            none with ``method="zeros"``, which packs a sparse model as it is.
        out: folder to write; without it, use :meth:`Result.save`.
        dry_run: return the :class:`Plan` and write nothing.
        progress: called with a stage's name, gives a function (done, total, what).
        options: the other fields of :class:`winnow.compression.job.Job`: eval, task, column, label, method, score,
            group, allocation, table, structure, solver, values, group_size, baselines, keep, include, exclude,
            samples, length, batch_size, eval_limit, seed, damp, recalibrate, ram, device, dtype, weights,
            tokenizer, trust_remote_code, speed; and for methods that train (fcpts, distil, ``allocation="learned"``):
            settings (a dict, see :mod:`winnow.train.distil.settings`), time (seconds, in place of a number of steps),
            compare_with (an earlier run's folder), floor (a value of the metric that quality should not fall below);
            mean and std of pixels between 0 and 1 (numbers, one or one a channel), for images given as bytes.

    Raises:
        InputError: something about the arguments, the model or the data must change; the sentence says what.
        GateError: ``max_drop`` cannot be kept.
        WinnowError: the work failed, e.g. a full disk; running again continues.
    """
    from winnow.compression.job import Job
    from winnow.compression.verb import run, set_up
    from winnow.errors import InputError

    unknown = sorted(set(options) - set(Job.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"compress has no option {unknown[0]!r}: the options are the fields of winnow.compression.job.Job."
        )
    job = Job(
        model=model, data=data, sparsity=sparsity, bits_per_weight=bits_per_weight, size=size, max_drop=max_drop,
        out=Path(out) if out is not None else None, **options,
    )  # fmt: skip
    setup = set_up(job)
    if dry_run:
        return setup.plan
    return run(setup, progress=progress, command=command)
