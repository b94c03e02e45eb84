"""A ticket as a folder that loads without winnow: weights with their zeros, masks beside them, and where it comes from."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from winnow.disk.files import copy_below, write_text
from winnow.errors import FormatError, disk_errors
from winnow.formats.output import OutputFolder
from winnow.models.pretrained import quiet_transformers
from winnow.naming import nameless, without_paths
from winnow.tickets.search import Ticket
from winnow.train.task.training import Training

if TYPE_CHECKING:
    from pydantic import BaseModel

    from winnow.records.ticket import TicketReport

TICKET, MASKS, WEIGHTS = "ticket.json", "masks.safetensors", "model.safetensors"
FORMAT = 1


def write_tickets(
    folder: Path,
    tickets: Sequence[tuple[str, Ticket]],
    training: Training,
    settings: BaseModel,
    report: TicketReport,
    given: Sequence[Any],
    *,
    made: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes tickets and their report (ticket.html, ticket-report.json), whole or not at all.

    Hugging Face models are written by ``save_pretrained`` with their tokenizer or image settings, other models as
    ``model.safetensors``: the state dict under its own names, zeros in place.

    Args:
        tickets: each with its subfolder, an index beside them; or a single one with "", for the folder itself.
        given: paths that a person typed; the files, which are given away, call them by name.
        made, overwrite: see :class:`winnow.formats.output.OutputFolder`.
    """
    from winnow.report.ticket.page import write  # jinja2, which only those who write reports need

    output = OutputFolder(folder, inputs=training.files.values(), made=made, overwrite=overwrite)
    try:
        index = []
        for name, t in tickets:
            if name:
                with disk_errors(output.path / name):
                    (output.path / name).mkdir()
            _fill(output.path / name, t, training, settings, given)
            index.append({"folder": name, "sparsity": t.sparsity, "zeros": t.zeros, "evaluation": _evaluated(t)})
        if tickets[0][0]:
            about = {"winnow_ticket": FORMAT, "method": tickets[0][1].method, "tickets": index}
            write_text(output.path / TICKET, _json(about))
        write(type(report).model_validate(without_paths(report.model_dump(), given)), output.path)
        output.publish()
    except BaseException:
        output.discard()
        raise
    return output.final


def _fill(folder: Path, ticket: Ticket, training: Training, settings: BaseModel, given: Sequence[Any]) -> None:
    with disk_errors(folder):
        _weights(folder, ticket.model)
        for place, file in training.files.items():
            if not (folder / place).exists():
                copy_below(file, folder, place)
        if hasattr(training.processor, "save_pretrained"):
            training.processor.save_pretrained(folder)
        ticket.masks.save(folder / MASKS)
    write_text(folder / TICKET, _json(without_paths(describe(ticket, training, settings), given)))
    # Every file as readable as one that was just opened for writing: safetensors lets its own be read by nobody else.
    rights = (folder / TICKET).stat().st_mode & 0o777
    with disk_errors(folder):
        for file in folder.rglob("*"):
            if file.is_file() and file.stat().st_mode & 0o777 != rights:
                file.chmod(rights)
    _verify(folder, ticket)


def describe(ticket: Ticket, training: Training, settings: BaseModel) -> dict[str, Any]:
    """``ticket.json``: the method, what it cost, how it went, and what would make it again."""
    from winnow.version import __version__

    return {
        "winnow_ticket": FORMAT,
        "method": ticket.method,
        "settings": settings.model_dump(mode="json"),
        "sparsity": ticket.sparsity,
        "zeros": ticket.zeros,
        "prunable": ticket.masks.numel,
        "parameters": sum(p.numel() for p in ticket.model.parameters()),
        "cost": {**vars(ticket.cost), "steps": ticket.cost.steps},
        "history": [asdict(r) for r in ticket.history],
        "evaluation": _evaluated(ticket),
        "training": {
            "steps": training.steps, "batch": training.examples.size, "examples": training.examples.count,
            "lr": training.lr, "weight_decay": training.weight_decay, "clip": training.clip, "precision": training.precision,
            "include": list(training.include), "exclude": list(training.exclude),
        },
        "seed": training.seed,
        "model": type(ticket.model).__name__,
        "versions": {"winnow": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "notes": [*training.notes, *ticket.notes],
    }  # fmt: skip


def _weights(folder: Path, model: nn.Module) -> None:
    if hasattr(model, "save_pretrained") and hasattr(model, "config"):
        kind: Any = type(model)  # whose method says nothing of packed weights: a ticket is dense
        with quiet_transformers():
            kind.save_pretrained(model, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (named := nameless(config)) != config:
            write_text(folder / "config.json", _json(named))
        return
    from safetensors.torch import save_file

    # Clones: names that share memory are all written, so that a plain load_state_dict finds every one.
    save_file({n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}, folder / WEIGHTS)


def _verify(folder: Path, ticket: Ticket) -> None:
    """Compares what is on disk with the model in memory, tensor by tensor, and its masks."""
    from safetensors import safe_open

    from winnow.masks.mask import MaskSet

    state = ticket.model.state_dict()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name in state and not torch.equal(file.get_tensor(name), state[name].detach().cpu()):
                    raise FormatError(f"{name} in {path} is not what was written: look at the disk and save again.")
    if MaskSet.load(folder / MASKS).zeros != ticket.zeros:
        raise FormatError(f"the masks in {folder} have another number of zeros than the ticket: save again.")


def _evaluated(ticket: Ticket) -> dict[str, Any] | None:
    return None if ticket.evaluation is None else ticket.evaluation.summary()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)) + "\n"
