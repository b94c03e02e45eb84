"""The training that a transformers Trainer would run, as a value."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from winnow.data.records import raw_bytes
from winnow.errors import InputError
from winnow.masks.unwrap import plain_module
from winnow.measure.classification import ClassificationTask
from winnow.measure.spearman import ScoreTask
from winnow.measure.task import Task
from winnow.models.source import open_model
from winnow.train.examples import Examples, map_tensors
from winnow.train.task.batches import Fetched, from_loader
from winnow.train.task.starting_model import in_float, kind_of
from winnow.train.task.training import Training, decay_groups
from winnow.train.task_loss import split_labels


def training_from_trainer(trainer: Any) -> Training:
    """A transformers Trainer as a training: its model, data, collator, ``compute_loss`` and arguments.

    Carried over: ``learning_rate``, ``weight_decay`` and the other arguments of the optimizer, ``max_steps`` or
    ``num_train_epochs``, batch size times ``gradient_accumulation_steps`` as one batch, ``lr_scheduler_type`` with its
    warm-up, ``max_grad_norm``, ``seed``, ``bf16``; an optimizer class and a LambdaLR that were handed to the Trainer; and
    ``eval_dataset`` where its labels are one number per example. Callbacks, ``compute_metrics`` and checkpoints of the
    Trainer play no part. Its model is not changed.

    Raises:
        InputError: no training data, fp16, several processes, or an optimizer or schedule that cannot be made anew.
    """
    args = trainer.args
    if getattr(trainer, "train_dataset", None) is None:
        raise InputError("the Trainer has no train_dataset: give it one.")
    if args.fp16:
        raise InputError("fp16 needs loss scaling, which a search for tickets has not: set bf16=True, or neither.")
    if args.world_size > 1 or args.n_gpu > 1:
        raise InputError(
            "the Trainer runs on several devices: a search for tickets takes one, so set CUDA_VISIBLE_DEVICES."
        )
    notes: list[str] = []
    limit = args.max_steps if args.max_steps > 0 else None
    examples, note = from_loader(trainer.get_train_dataloader(), limit, args.seed)
    notes.append(note)
    accumulated = args.gradient_accumulation_steps
    if accumulated > 1:
        if not isinstance(examples, Fetched):
            raise InputError(
                "gradient_accumulation_steps needs a data set that can be indexed: give one, or larger batches."
            )
        examples.size *= accumulated
        notes.append(f"{accumulated} accumulated batches are one batch of {examples.size}.")
    steps = limit or max(1, math.ceil(args.num_train_epochs * examples.parts))
    optimizer, lr, weight_decay = _optimizer(trainer)
    types: dict[str, torch.dtype] = {}
    model = in_float(plain_module(trainer.model), notes, types)
    processor = getattr(trainer, "processing_class", None)
    return Training(
        model=model,
        examples=examples,
        loss=TrainerLoss(trainer),
        steps=steps,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        schedule=_schedule(trainer, steps, lr),
        clip=args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None,
        precision="bfloat16" if args.bf16 else "float32",
        evaluate=_evaluate(trainer, notes),
        seed=args.seed,
        notes=notes,
        types=types,
        kind=kind_of(open_model(model)),
        processor=processor if hasattr(processor, "save_pretrained") else None,
    )


@dataclass(frozen=True)
class TrainerLoss:
    """(model, batch) -> what the Trainer's ``compute_loss``, overridden or not, makes of it."""

    trainer: Any = field(repr=False)

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        device = next(model.parameters()).device
        inputs = map_tensors(batch, lambda t: t.to(device))
        counted = self.trainer._get_num_items_in_batch([inputs], device)
        return self.trainer.compute_loss(model, inputs, num_items_in_batch=counted)


@dataclass(frozen=True)
class TrainerOptimizer:
    """(parameters, lr, weight_decay) -> the Trainer's optimizer; decay on matrices only, as the Trainer has it."""

    kind: type
    settings: dict[str, Any]

    def __call__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return self.kind(decay_groups(parameters, weight_decay), **{**self.settings, "lr": lr})


@dataclass(frozen=True)
class TrainerSchedule:
    """progress -> the factor that a LambdaLR has at that share of its steps."""

    factor: Any
    steps: int

    def __call__(self, progress: float) -> float:
        return float(self.factor(progress * self.steps))


def _optimizer(trainer: Any) -> tuple[TrainerOptimizer, float, float]:
    args = trainer.args
    given = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # what accelerate has wrapped
    if given is not None:
        rates = {g.get("initial_lr", g["lr"]) for g in given.param_groups}
        if len(rates) > 1:
            raise InputError(
                "the Trainer's optimizer has a learning rate for each group, which cannot be carried to copies of the model: give a Training with your own optimizer factory."
            )
        known = inspect.signature(type(given).__init__).parameters
        settings = {k: v for k, v in given.defaults.items() if k in known and k not in ("lr", "weight_decay")}
        decay = max(float(g.get("weight_decay", 0.0)) for g in given.param_groups)
        return TrainerOptimizer(type(given), settings), float(rates.pop()), decay
    kind, settings = trainer.optimizer_cls_and_kwargs or trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or {"params", "model", "optimizer_dict"} & set(settings):  # fmt: skip
        raise InputError(
            f"the optimizer {args.optim} is bound to one model: choose adamw_torch, or give a Training with your own factory."
        )
    lr = float(settings.get("lr", args.learning_rate))
    return TrainerOptimizer(kind, {k: v for k, v in settings.items() if k != "lr"}), lr, float(args.weight_decay)


def _schedule(trainer: Any, steps: int, lr: float) -> TrainerSchedule:
    from torch.optim.lr_scheduler import LambdaLR

    args = trainer.args
    given = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    if given is None:
        from transformers import get_scheduler

        stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)  # some schedules end at a rate of their own
        try:
            given = get_scheduler(
                args.lr_scheduler_type, optimizer=stand_in, num_warmup_steps=args.get_warmup_steps(steps),
                num_training_steps=steps, scheduler_specific_kwargs=args.lr_scheduler_kwargs,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the schedule {args.lr_scheduler_type} cannot be made ({error}): choose linear or cosine."
            ) from None
    if not isinstance(given, LambdaLR):
        raise InputError(
            f"the schedule {type(given).__name__} is no function of the step: choose linear, cosine or constant."
        )
    return TrainerSchedule(given.lr_lambdas[0], steps)


def _evaluate(trainer: Any, notes: list[str]) -> Any:
    data = trainer.eval_dataset
    if data is None or isinstance(data, dict):
        notes.append("the Trainer has no single eval_dataset: the tickets are not measured.")
        return None
    examples, _ = from_loader(trainer.get_eval_dataloader(), None, trainer.args.seed)
    task = collated_task(examples, "the Trainer's eval_dataset", getattr(trainer.model, "config", None))
    if task is None:
        notes.append("eval_dataset has labels that are not one number per example: the tickets are not measured.")
        return None
    return task.evaluate


class CollatedFeed:
    """Examples in order, as (rows, inputs without labels)."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.labels: np.ndarray
        digest, labels = hashlib.sha256(), []
        for _, batch in examples.all():
            inputs, found = split_labels(batch)
            labels.append(found.detach().cpu())
            for leaf in tree_leaves(inputs):
                digest.update(raw_bytes(leaf) if torch.is_tensor(leaf) else repr(leaf).encode())
        known = [t.float() if t.dtype == torch.bfloat16 else t for t in labels]  # numpy does not know bfloat16
        self.labels = torch.cat(known).numpy() if all(t.ndim == 1 for t in labels) else np.zeros((0, 0))
        digest.update(self.labels.tobytes())
        self.sha256 = digest.hexdigest()

    def batches(self, model: nn.Module) -> Iterator[tuple[np.ndarray, Any]]:
        for index, batch in self.examples.all():
            yield index.numpy(), split_labels(batch)[0]


class _Classes(ClassificationTask):
    def __init__(self, feed: CollatedFeed, name: str, names: list[str] | None) -> None:
        self.truth, self.class_names, self._feed = feed.labels.astype(np.int64), names, feed  # type: ignore[assignment]
        Task.__init__(self, name, feed.sha256, len(feed.labels))


class _Scores(ScoreTask):
    def __init__(self, feed: CollatedFeed, name: str) -> None:
        self.truth, self._feed = feed.labels.astype(np.float64), feed  # type: ignore[assignment]
        Task.__init__(self, name, feed.sha256, len(feed.labels))


def collated_task(examples: Examples, name: str, config: Any = None) -> Task | None:
    """Accuracy for one class number per example, rank correlation for one real number; None for other labels.

    Raises:
        InputError: batches without labels, or a single example.
    """
    feed = CollatedFeed(examples)
    if feed.labels.ndim != 1:
        return None
    if feed.labels.dtype.kind == "f":
        return _Scores(feed, name)
    named = getattr(config, "id2label", None) or {}
    return _Classes(feed, name, [str(named[i]) for i in sorted(named)] or None)
