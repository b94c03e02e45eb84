"""A run on disk: one checked file, without pickle, that is there whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from winnow.errors import FormatError, InputError
from winnow.train.state_file import read_state, write_state

if TYPE_CHECKING:
    from winnow.train.task.run import Run

log = logging.getLogger(__name__)


def require_tensors(model: nn.Module) -> None:
    """Refuses a model whose ``get_extra_state`` puts something other than a tensor into its state dict.

    Positions, checkpoints and saved tickets are tensors by name, without pickle: the rest would be lost on the way.

    Raises:
        InputError: there is such an entry.
    """
    for name, value in model.state_dict().items():
        if not torch.is_tensor(value):
            raise InputError(
                f"{name} in the model's state dict is a {type(value).__name__}: let get_extra_state return a tensor."
            )


def write(run: Run, path: Path, optimizer: bool = True) -> None:
    """Weights, masks, the method's state, step, cost, losses and notes of a run, and on request the optimizer's state.

    Raises:
        InputError: the state of the optimizer or the method, or the notes, hold more than tensors, numbers and text.
        WinnowError: the disk is full or read-only; the file before stays.
    """
    moments = run.optimizer.state_dict()["state"] if optimizer else {}
    groups = [{k: v for k, v in g.items() if type(v) in (int, float, bool)} for g in run.optimizer.param_groups]
    state = {
        "model": run.model.state_dict(), "attached": run.attached.state_dict(), "groups": groups,
        "optimizer": {str(i): s for i, s in moments.items()}, "step": run.step, "cost": vars(run.cost),
        "losses": run.losses, "notes": run.notes,
    }  # fmt: skip
    write_state(path, state)


def resume(run: Run, path: Path) -> None:
    """Puts a run of the same training where :func:`write` left it.

    A file that is truncated or altered leaves the run at its beginning, with a warning: the same steps give the same
    weights, so that nothing but time is lost, and the next checkpoint takes its place.

    Raises:
        FormatError: a whole file of another training.
    """
    try:
        state = read_state(path)
    except FormatError as error:
        log.warning("a checkpoint is left out, and its training starts again from its beginning: %s", error)
        return
    try:
        step, losses, cost = int(state["step"]), list(state["losses"]), type(run.cost)(**state["cost"])
        run.model.load_state_dict(state["model"])
        moments = {int(i): s for i, s in state["optimizer"].items()}
        run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": moments})
        for group, numbers in zip(run.optimizer.param_groups, state["groups"], strict=True):
            group.update(numbers)
        run.attached.load_state_dict(state["attached"])
    except (FormatError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"the checkpoint {path} is of another training: delete it and run again.") from error
    run.step, run.losses, run.cost, run.notes = step, losses, cost, state["notes"]
