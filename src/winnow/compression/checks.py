"""What ``compress`` refuses once it has seen the model, before any work."""

from __future__ import annotations

from pathlib import Path

import torch

from winnow.compression.hosts import Host
from winnow.compression.job import Job
from winnow.compression.recovery import Recovery
from winnow.errors import InputError
from winnow.formats.resaved import refuse_other_shapes
from winnow.masks.prunable import Scope
from winnow.models.source import ModelSource


def check_trainable(job: Job, host: Host, scope: Scope, method: str) -> None:
    """Training holds the whole model, in float32, on the CPU: what cannot be trained so is refused before any work."""
    if job.ram is not None:
        raise InputError(
            f"--method {method} trains the whole model in memory: leave out --ram, or take --method reconstruct, which goes block by block.",
            option="ram",
        )
    if job.device != "cpu":
        raise InputError(f"--method {method} trains on the CPU: leave out --device.", option="device")
    other = next((n for n in scope.prunables if host.model.get_parameter(n).dtype != torch.float32), None)
    if other is not None:
        dtype = str(host.model.get_parameter(other).dtype).removeprefix("torch.")
        raise InputError(
            f"--method {method} trains in float32 and {other} would be {dtype}: give --dtype float32, or take "
            "--method reconstruct where memory is short.",
            option="dtype",
        )


def check_loadable(source: ModelSource) -> None:
    """A model in memory may have shapes that its configuration does not say (after winnow.shrink): no folder of it could be loaded.

    Raises:
        InputError: it has.
    """
    if source.module is not None and source.config is not None:
        refuse_other_shapes(source.module)


def check_zeros(zeros: int, scope: Scope, spec: str) -> None:
    """A model that is packed as it is has zeros among its prunable weights, and other values."""
    if not zeros:
        raise InputError(
            f"{spec} has no zeros among its prunable weights: give a pruned model, or a --sparsity and another --method."
        )
    if zeros == scope.numel:
        raise InputError(f"every prunable weight of {spec} is zero: give a model with some nonzero weights.")


def check_earlier(job: Job, fitting: Recovery) -> None:
    """The run compared with is read before any work."""
    from winnow.compression.earlier import earlier_record

    if not fitting.trains:
        raise InputError(
            "--compare-with compares allocations of methods that train: choose fcpts or distil, or leave it out.",
            option="compare_with",
        )
    earlier_record(Path(str(job.compare_with)))


def stored_quantized(source: ModelSource) -> list[str]:
    """What the dense model is where its folder holds it quantized."""
    return [
        f"{source.spec} is stored quantized ({source.quantized}); the dense model here are its values as transformers "
        "dequantizes them, and sizes compare with the quantized file."
    ] * (source.quantized is not None)
