"""The hook for :class:`transformers.Trainer`. Imported when asked for: it needs transformers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from winnow.errors import InputError
from winnow.masks.mask import Mask, MaskSet
from winnow.masks.prunable import Scope
from winnow.masks.unwrap import unwrap
from winnow.train.attach import attach
from winnow.train.attached import Attached
from winnow.train.method import SparseMethod, pruned_by, unfinished
from winnow.train.methods.fixed import Fixed
from winnow.train.ranks import asked_for, masked_by, require_same
from winnow.train.shards import whole
from winnow.train.state_file import read_state, write_state
from winnow.train.targets import scope_of

try:
    from transformers import TrainerCallback
except ImportError:
    raise InputError("training with transformers needs it: pip install 'winnow-nn[hf]'.") from None

FILE = "winnow_train.safetensors"  # in every checkpoint folder

_log = logging.getLogger(__name__)


class WinnowCallback(TrainerCallback):  # type: ignore[misc]
    """Trains under masks with the Trainer: ``Trainer(..., callbacks=[WinnowCallback(Gradual(0.9))])``.

    ``WinnowCallback()`` alone fine-tunes a model that is sparse already: the zeros it has are the masks, and stay.

    Attaches when training begins and detaches when it ends; what is left is a plain model with its zeros. Steps are the
    Trainer's ``global_step``; where a method is given no ``end`` or ``every``, they come of its ``max_steps``. Every checkpoint folder gets masks and the method's state (``winnow_train.safetensors``), and
    ``resume_from_checkpoint`` goes on from it. With ``load_best_model_at_end`` the masks are the best checkpoint's, which a
    gradual method may have written before its last zeros: a warning says so. A schedule that is longer than the training is
    warned about (UserWarning) before the first step and at the end. What it all costs is in the Trainer's log, as far as it is
    known: ``winnow_memory_ratio``, ``winnow_hook_seconds``, ``winnow_step_seconds``, ``winnow_dense_flops`` and
    ``winnow_sparse_flops`` (:class:`winnow.train.cost.TrainingCost`); reporters that come before this callback log without.

    Args:
        method: as for :func:`winnow.train.attach`; by default :class:`winnow.train.Fixed`, the model's own zeros.
        include, exclude: as for :func:`winnow.train.attach`.

    Attributes:
        attached: the hook while training goes on; None before and after.
        masks: the masks at the end of training.

    Raises:
        InputError: at the start of training, as :func:`winnow.train.attach`, and where the resumed folder's masks are missing or
            belong to other weights.
    """

    def __init__(
        self, method: SparseMethod | None = None, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self.method: SparseMethod = Fixed() if method is None else method
        self.include, self.exclude = include, exclude
        self.attached: Attached | None = None
        self.masks: MaskSet | None = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        if self.attached is not None:  # the training before this one ended in an error
            self.attached.release()
        # What was pruned by name only, such as a head, is in no scope by itself.
        pruned = pruned_by(self.method, unwrap(model))
        scope, saved = scope_of(unwrap(model), [*self.include, *pruned], self.exclude, None), None
        if state.global_step:
            path = _resumed(args, state.global_step)
            saved = read_state(path)
            _require_zeros(model, scope, saved["masks"], path)
        steps = state.max_steps if state.max_steps > 0 else None
        self.attached = attach(model, optimizer, self.method, scope=scope, state=saved, steps=steps)
        if args.world_size > 1 and torch.distributed.is_initialized():  # the model that comes here is not wrapped
            facts = asked_for(scope.prunables, self.method, saved) | masked_by(self.attached.masks)
            require_same(facts, None)
        self.attached.step = state.global_step
        if state.max_steps > 0:
            _warn(unfinished(self.attached, state.max_steps), state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.attached is not None:  # the Trainer counts steps that loss scaling has skipped
            self.attached.step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.attached is None or logs is None or not {"loss", "train_runtime"} & set(logs):
            return
        metrics = self.attached.cost().metrics()
        logs.update(metrics)  # for callbacks after this one: the Trainer's own printer is
        if state.log_history:
            state.log_history[-1].update(metrics)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = _folder(args, state.global_step)
        state_dict = (
            None if self.attached is None else self.attached.state_dict()
        )  # of shards, gathered by every process
        if state_dict is not None and args.should_save and folder.is_dir():
            write_state(folder / FILE, state_dict)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.attached is None:
            return
        sentence = unfinished(self.attached)  # of this training, not of the best checkpoint
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            last = self.attached.zeros
            self.attached.load_state_dict(read_state(Path(state.best_model_checkpoint) / FILE))
            if self.attached.zeros < last:
                _log.warning(
                    "the best checkpoint, step %d, has %d zeros and training ended with %d: "
                    "turn load_best_model_at_end off to keep the last.",
                    self.attached.step, self.attached.zeros, last,
                )  # fmt: skip
        self.masks = self.attached.masks
        self.attached.release()
        self.attached = None
        _warn(sentence, state)


def _warn(sentence: str | None, state: Any) -> None:
    if sentence is not None and state.is_world_process_zero:
        warnings.warn(sentence, stacklevel=2)


def _folder(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


def _resumed(args: Any, step: int) -> Path:
    """The state in the folder that is resumed from. The Trainer does not tell callbacks which one that is."""
    given = getattr(args, "resume_from_checkpoint", None)
    folders = [Path(given)] if isinstance(given, str) and Path(given).is_dir() else []
    folders.append(_folder(args, step))
    for folder in folders:
        if (folder / FILE).is_file():
            return folder / FILE
    raise InputError(
        f"there is no {FILE} in {folders[0]}: resume from a checkpoint written with this callback, and if it lies outside "
        "output_dir set TrainingArguments.resume_from_checkpoint to it too."
    )


def _require_zeros(model: Any, scope: Scope, masks: dict[str, torch.Tensor], path: Path) -> None:
    """Masks of another run at the same step would prune what was loaded without a word."""
    for name, bits in masks.items():
        if name not in scope.prunables:
            continue  # attach says so
        weight = scope.prunables[name].matrix(whole(model.get_parameter(name).detach()))
        keep = Mask(bits, tuple(weight.shape)).unpack(weight.device)  # type: ignore[arg-type]
        if bool(((weight != 0) & ~keep).any()):
            raise InputError(
                f"{name} has weights where the masks of {path} have none: set TrainingArguments.resume_from_checkpoint "
                "to the folder that is resumed from."
            )
