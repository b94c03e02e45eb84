"""Names for trainings: what a stored part of a search depends on."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import torch

from winnow.measure.task import Task
from winnow.models.source import open_model
from winnow.train.examples import Examples
from winnow.train.task.describe import describe
from winnow.train.task.parts import Indescribable
from winnow.train.task.training import Training

SAMPLED = 32  # batches read of examples that are made when they are drawn


def training_identity(training: Training) -> dict[str, Any]:
    """Everything that the result of a training depends on, as JSON: weights, data and settings by their hashes.

    Of data that is made when it is drawn (images, data sets behind a loader) the number of examples and 32 batches are
    read. Loss, optimizer, schedule, evaluation and the structure of the model count by their code and by all that they
    hold (:func:`winnow.train.task.describe.describe`); the training's own weights and examples, where they hold those,
    by name. Where one of them cannot be named for certain, the identity equals no other one, not even of the same
    training, and a sentence in ``training.notes`` says so.
    """
    model = training.model
    state = model.state_dict(keep_vars=True)
    tensors = {id(t): n for n, t in state.items() if torch.is_tensor(t)}
    known = tensors | {id(m): f"module {n}" for n, m in model.named_modules()} | {id(training.examples): "examples"}
    return {
        "model": open_model(model).sha256(),
        "structure": _certain(training, "model", lambda: describe(model, tensors)),
        "frozen": [n for n, p in model.named_parameters() if not p.requires_grad],
        "data": _certain(training, "examples", lambda: examples_hash(training.examples)),
        "steps": training.steps,
        "lr": training.lr,
        "weight_decay": training.weight_decay,
        "clip": training.clip,
        "precision": training.precision,
        "include": list(training.include),
        "exclude": list(training.exclude),
        "seed": training.seed,
        "loss": _certain(training, "loss", lambda: function_name(training.loss, known)),
        "optimizer": _certain(training, "optimizer", lambda: function_name(training.optimizer, known)),
        "schedule": _certain(training, "schedule", lambda: function_name(training.schedule, known)),
        "evaluate": _certain(training, "evaluation", lambda: _evaluation(training.evaluate, known)),
    }


def _certain(training: Training, what: str, name: Callable[[], str]) -> str:
    """The name, or where there is none that holds in another process one that is like no other."""
    try:
        return name()
    except Indescribable as error:
        note = f"the {what} cannot be recognized by another process (it holds: {error}): a killed search begins anew."
        if note not in training.notes:
            training.notes.append(note)
        return f"unlike any other: {secrets.token_hex(16)}"


def examples_hash(examples: Examples) -> str:
    """All examples where they are in memory, else their number and 32 batches. Raises Indescribable."""
    digest = hashlib.sha256(f"{type(examples).__name__}:{examples.count}:{examples.size}:{examples.parts}".encode())
    if examples.joined is not None:
        return _with(digest, examples.joined).hexdigest()
    order = examples.order(torch.Generator().manual_seed(0))
    step = max(1, len(order) // SAMPLED)
    for index in order[::step]:
        _with(digest, examples.take(index))
    return digest.hexdigest()


def _with(digest: Any, batch: Any) -> Any:
    digest.update(describe(dict(batch) if isinstance(batch, Mapping) else batch).encode())
    return digest


def function_name(function: Any, known: Mapping[int, str] | None = None) -> str:
    """A function or another value by its name and a hash of its code and of all that it holds; "" for None.

    Args:
        known: names by ``id`` of objects that count by these names.

    Raises:
        Indescribable: it has no description that would hold in another process.
    """
    if function is None:
        return ""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name}:{describe(function, known)}"


def _evaluation(evaluate: Any, known: Mapping[int, str]) -> str:
    """Tasks are named by their data and plain settings, and by their code where it is the user's."""
    task = getattr(evaluate, "__self__", None)
    if not isinstance(task, Task):
        return function_name(evaluate, known)
    plain = {n: v for n, v in vars(task).items() if isinstance(v, (str, int, float, bool))}
    return f"{type(task).__name__}:{task.data_sha256}:{describe((type(task), sorted(plain.items())))}"
