"""Names for trainings: what a stored part of a search depends on."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import torch

from winnow.measure.task import Task
from winnow.models.source import open_model
from winnow.run.identity import Unnameable, fingerprint
from winnow.train.examples import Examples
from winnow.train.task.from_trainer import TrainerLoss
from winnow.train.task.training import Training

SAMPLED = 32  # batches read of examples that are made when they are drawn
# Of a Trainer: what the training carries itself (model, data, optimizer, schedule), and bookkeeping.
_ELSEWHERE = {
    "model", "model_wrapped", "model_init", "train_dataset", "eval_dataset", "data_collator", "processing_class",
    "tokenizer", "optimizer", "lr_scheduler", "optimizer_cls_and_kwargs", "callback_handler", "accelerator",
    "gather_function", "state", "control", "compute_metrics", "preprocess_logits_for_metrics", "hub_model_id",
    "_memory_tracker", "_signature_columns", "current_flos", "args",
}  # fmt: skip
# Of its arguments: where it writes, what it says, and the machine it finds itself on.
_PLACE = (
    "output_dir", "logging_", "run_name", "report_to", "save_", "hub_", "push_to_hub", "disable_tqdm",
    "distributed_state", "deepspeed_plugin", "_", "local_rank",
)  # fmt: skip


def training_identity(training: Training) -> dict[str, Any]:
    """Everything that the result of a training depends on, as JSON: weights, data and settings by their hashes.

    Of data that is made when it is drawn (images, data sets behind a loader) the number of examples and 32 batches are
    read. Loss, optimizer, schedule, evaluation and the structure of the model count by their
    :func:`winnow.run.identity.fingerprint`; the training's own weights and examples, where they hold those, by name.
    Where one of them has none, the identity equals no other one, not even of the same training, and a sentence in
    ``training.notes`` says so.
    """
    model, loss = training.model, training.loss
    state = model.state_dict(keep_vars=True)
    tensors = {id(t): n for n, t in state.items() if torch.is_tensor(t)}
    known = tensors | {id(m): f"module {n}" for n, m in model.named_modules()} | {id(training.examples): "examples"}
    if isinstance(loss, TrainerLoss):
        known[id(loss.trainer)] = "trainer"
    named: dict[str, Callable[[], str]] = {
        "structure": lambda: fingerprint(model, tensors),
        "data": lambda: examples_hash(training.examples),
        "loss": lambda: fingerprint(_trainer(loss.trainer) if isinstance(loss, TrainerLoss) else loss, known),
        "optimizer": lambda: fingerprint(training.optimizer, known),
        "schedule": lambda: fingerprint(training.schedule, known),
        "evaluate": lambda: _evaluation(training.evaluate, known),
    }
    return {
        "model": open_model(model).sha256(),
        "frozen": [n for n, p in model.named_parameters() if not p.requires_grad],
        **{name: getattr(training, name) for name in ("steps", "lr", "weight_decay", "clip", "precision", "seed")},
        "include": list(training.include),
        "exclude": list(training.exclude),
        **{what: _certain(training, what, name) for what, name in named.items()},
    }


def _certain(training: Training, what: str, name: Callable[[], str]) -> str:
    """The name, or where there is none that holds in another process one that is like no other."""
    try:
        return name()
    except Unnameable as error:
        what = {"structure": "model", "data": "examples", "evaluate": "evaluation"}.get(what, what)
        fix = "" if what == "examples" else ", unless it has a winnow_name"
        note = (
            f"the {what} cannot be recognized by another process (it holds {error}): a killed search begins anew{fix}."
        )
        if note not in training.notes:
            training.notes.append(note)
        return f"unlike any other: {secrets.token_hex(16)}"


def examples_hash(examples: Examples) -> str:
    """All examples where they are in memory, else their number and 32 batches. Raises Unnameable."""
    digest = hashlib.sha256(f"{type(examples).__name__}:{examples.count}:{examples.size}:{examples.parts}".encode())
    if examples.joined is not None:
        return _update(digest, examples.joined).hexdigest()
    order = examples.order(torch.Generator().manual_seed(0))
    step = max(1, len(order) // SAMPLED)
    for index in order[::step]:
        _update(digest, examples.take(index))
    return digest.hexdigest()


def _update(digest: Any, batch: Any) -> Any:
    digest.update(fingerprint(dict(batch) if isinstance(batch, Mapping) else batch).encode())
    return digest


def _trainer(trainer: Any) -> tuple[Any, ...]:
    """Class, arguments and further attributes of a transformers Trainer, a subclass's own among them."""
    own = {n: v for n, v in vars(trainer).items() if n not in _ELSEWHERE}
    return type(trainer), own, {n: v for n, v in vars(trainer.args).items() if not n.startswith(_PLACE)}


def _evaluation(evaluate: Any, known: Mapping[int, str]) -> str:
    """Tasks are named by their data and plain settings, and by their code where it is the user's."""
    task = getattr(evaluate, "__self__", None)
    if not isinstance(task, Task):
        return fingerprint(evaluate, known)
    plain = {n: v for n, v in vars(task).items() if isinstance(v, (str, int, float, bool))}
    return f"{task.data_sha256}:{fingerprint((type(task), sorted(plain.items())))}"
