"""A run on disk: one checked file, without pickle, that is there whole or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from winnow.errors import FormatError, InputError
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, write_tensors
from winnow.train.state_file import with_tensors, without_tensors

if TYPE_CHECKING:
    from winnow.train.task.run import Run

log = logging.getLogger(__name__)


def write(run: Run, path: Path, optimizer: bool = True) -> None:
    """Weights, masks, the method's state, step, cost, losses and notes of a run, and on request the optimizer's state.

    Raises:
        InputError: the optimizer's state or the notes are no tensors, numbers and text.
        WinnowError: the disk is full or read-only; the file before stays.
    """
    tensors = {f"model.{n}": t for n, t in run.model.state_dict().items()}
    attached = without_tensors(run.attached.state_dict(), "attached", tensors)
    numbers: dict[str, Any] = {}
    for i, state in run.optimizer.state_dict()["state"].items() if optimizer else ():
        for key, value in state.items():
            if torch.is_tensor(value):
                tensors[f"optimizer.{i}.{key}"] = value
            elif value is not None:
                numbers[f"{i}.{key}"] = value
    groups = [{k: v for k, v in g.items() if type(v) in (int, float, bool)} for g in run.optimizer.param_groups]
    notes = {
        "step": run.step, "cost": vars(run.cost), "losses": run.losses, "notes": run.notes,
        "attached": attached, "optimizer": numbers, "groups": groups,
    }  # fmt: skip
    try:
        json.dumps(notes)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the state of {type(run.optimizer).__name__} fits no checkpoint ({error}): train without a store, or with another optimizer."
        ) from None
    write_tensors(path, tensors, {"format_version": FORMAT_VERSION, "run": notes})


def resume(run: Run, path: Path) -> None:
    """Puts a run of the same training where :func:`write` left it.

    A file that is truncated or altered leaves the run at its beginning, with a warning: the same steps give the same
    weights, so that nothing but time is lost, and the next checkpoint takes its place.

    Raises:
        FormatError: a whole file of another training.
    """
    try:
        file = TensorFile(path)
        tensors = {n: file.read(n) for n in file.keys}
    except FormatError as error:
        log.warning("a checkpoint is left out, and its training starts again from its beginning: %s", error)
        return
    try:
        notes = file.about["run"]
        state: dict[int, dict[str, Any]] = {}
        for name, value in (_under("optimizer.", tensors) | notes["optimizer"]).items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        step, losses, cost = int(notes["step"]), list(notes["losses"]), type(run.cost)(**notes["cost"])
        run.model.load_state_dict(_under("model.", tensors))
        run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": state})
        for group, numbers in zip(run.optimizer.param_groups, notes["groups"], strict=True):
            group.update(numbers)
        run.attached.load_state_dict(with_tensors(notes["attached"], tensors.__getitem__))
    except (FormatError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"the checkpoint {path} is of another training: delete it and run again.") from error
    run.step, run.losses, run.cost, run.notes = step, losses, cost, notes["notes"]


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
