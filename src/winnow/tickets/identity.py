"""Names for trainings: what a stored part of a search depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from winnow.data.records import raw_bytes
from winnow.measure.task import Task
from winnow.models import open_model
from winnow.tickets.training import Training
from winnow.train.examples import Examples

SAMPLED = 32  # batches read of examples that are made when they are drawn


def training_identity(training: Training) -> dict[str, Any]:
    """Everything that the result of a training depends on, as JSON: weights, data and settings by their hashes.

    Of data that is made when it is drawn (images, data sets behind a loader) the number of examples and 32 batches are
    read. Functions count by their code and the plain values that they hold.
    """
    frozen = [n for n, p in training.model.named_parameters() if not p.requires_grad]
    return {
        "model": open_model(training.model).sha256(),
        "frozen": frozen,
        "data": examples_hash(training.examples),
        "steps": training.steps,
        "lr": training.lr,
        "weight_decay": training.weight_decay,
        "clip": training.clip,
        "precision": training.precision,
        "include": list(training.include),
        "exclude": list(training.exclude),
        "seed": training.seed,
        "loss": function_name(training.loss),
        "optimizer": function_name(training.optimizer),
        "schedule": function_name(training.schedule),
        "evaluate": _evaluation(training.evaluate),
    }


def examples_hash(examples: Examples) -> str:
    digest = hashlib.sha256(f"{type(examples).__name__}:{examples.count}:{examples.size}:{examples.parts}".encode())
    if examples.joined is not None:
        _feed(digest, examples.joined)
        return digest.hexdigest()
    order = examples.order(torch.Generator().manual_seed(0))
    step = max(1, len(order) // SAMPLED)
    for index in order[::step]:
        _feed(digest, examples.take(index))
    return digest.hexdigest()


def _feed(digest: Any, batch: Any) -> None:
    if isinstance(batch, Mapping):
        digest.update(",".join(map(str, batch)).encode())
        batch = dict(batch)
    for leaf in tree_leaves(batch):
        digest.update(raw_bytes(leaf) if torch.is_tensor(leaf) else repr(leaf).encode())


def function_name(function: Any) -> str:
    """A function by its name and code, a value by its fields; bound methods by their object's class."""
    if function is None:
        return ""
    if isinstance(function, partial):
        held = [*map(_plain, function.args), *(f"{k}={_plain(v)}" for k, v in sorted(function.keywords.items()))]
        return f"{function_name(function.func)}({', '.join(held)})"
    if is_dataclass(function) and not isinstance(function, type):
        return (
            f"{type(function).__qualname__}({', '.join(_plain(getattr(function, f.name)) for f in fields(function))})"
        )
    inner = getattr(function, "__func__", function)
    code = getattr(inner, "__code__", None)
    name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(function).__qualname__)}"
    if code is None:
        return name
    held = [_plain(c.cell_contents) for c in inner.__closure__ or () if _filled(c)] + [
        _plain(d) for d in inner.__defaults__ or ()
    ]
    return f"{name}:{_code(code)}({', '.join(held)})"


def _code(code: Any) -> str:
    digest = hashlib.sha256(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        digest.update(_code(constant).encode() if hasattr(constant, "co_code") else repr(constant).encode())
    return digest.hexdigest()[:12]


def _plain(value: Any) -> str:
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_plain, value))}]"
    if torch.is_tensor(value):
        return hashlib.sha256(raw_bytes(value)).hexdigest()[:12]
    return function_name(value) if callable(value) else type(value).__qualname__


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _evaluation(evaluate: Any) -> str:
    """Tasks are named by their data."""
    task = getattr(evaluate, "__self__", None)
    if isinstance(task, Task):
        return f"{type(task).__name__}:{task.data_sha256}"
    return function_name(evaluate)
