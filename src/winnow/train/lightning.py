"""The hook for :class:`lightning.pytorch.Trainer`. Imported when asked for: it needs lightning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from winnow.errors import InputError
from winnow.masks.mask import MaskSet
from winnow.train.attach import attach
from winnow.train.attached import Attached
from winnow.train.method import SparseMethod, unfinished
from winnow.train.methods.fixed import Fixed

try:
    from lightning.pytorch import Callback
except ImportError:
    raise InputError("training with Lightning needs it: pip install 'winnow-nn[lightning]'.") from None


class LightningCallback(Callback):  # type: ignore[misc]
    """Trains under masks with Lightning: ``Trainer(..., callbacks=[LightningCallback(Gradual(0.9, end=1000))])``.

    ``LightningCallback()`` alone fine-tunes a model that is sparse already: the zeros it has are the masks, and stay.

    Attaches to the LightningModule and its optimizers when training begins (the sanity check of validation runs before) and
    detaches when ``fit`` ends; what is left is a plain module with its zeros. Automatic and manual optimization, gradient
    accumulation and clipping, precision plugins, DDP and sharding with ``fully_shard`` are as in :func:`winnow.train.attach`.
    Steps are those of the last optimizer, without the ones that loss scaling has skipped. Every checkpoint holds masks and
    the method's state as the state of this callback, and ``fit(ckpt_path=...)`` goes on from it. A checkpoint that is saved when
    ``fit`` is over has no moments of a method's factors (Sign-In), which start anew then: let a ModelCheckpoint write the last one.

    Args:
        method: as for :func:`winnow.train.attach`; by default :class:`winnow.train.Fixed`, the model's own zeros.
        include, exclude: as for :func:`winnow.train.attach`; names begin at the LightningModule (``model.head.weight``).
            Exclude what lies in it and is not to be pruned, such as a teacher.

    Attributes:
        attached: the hook while training goes on; None before and after.
        masks: the masks at the end of training.

    Raises:
        InputError: at the start of training, as :func:`winnow.train.attach`, and where a checkpoint was written without this
            callback.
    """

    def __init__(
        self, method: SparseMethod | None = None, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self.method: SparseMethod = Fixed() if method is None else method
        self._own_zeros = method is None
        self.include, self.exclude = include, exclude
        self.attached: Attached | None = None
        self.masks: MaskSet | None = None
        self._loaded: dict[str, Any] | None = None
        self._last: dict[str, Any] = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def state_dict(self) -> dict[str, Any]:
        return self._last if self.attached is None else self.attached.state_dict()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Model, optimizers and this callback have been restored by now."""
        if self.attached is not None:  # the training before this one ended in an error
            self.attached.release()
            self.attached = None
        resumed, saved, self._loaded = trainer.ckpt_path is not None, self._loaded, None
        if resumed and saved is None:
            raise InputError(
                f"{trainer.ckpt_path} holds no masks: resume from a checkpoint written with this callback, or load its weights "
                "into the module and train anew."
            )
        given = trainer.strategy.model if trainer.world_size > 1 else pl_module  # wrapped by DistributedDataParallel
        include = [*self.include, *(_pruned_by_name(pl_module) if self._own_zeros else ())]
        last = trainer.estimated_stepping_batches
        known = pl_module.automatic_optimization and last != float("inf")
        self.attached = attach(
            given,
            trainer.optimizers,
            self.method,
            include=include,
            exclude=self.exclude,
            state=saved if resumed else None,
            steps=int(last) if known else None,
        )
        if known:
            _warn(unfinished(self.attached, int(last)), trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.attached is not None:
            _warn(unfinished(self.attached), trainer)
            self.masks, self._last = self.attached.masks, self.attached.state_dict()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Not when training ends: the last checkpoints are written then, and need the optimizers as they are."""
        if self.attached is not None:
            self.attached.release()
            self.attached = None


def _pruned_by_name(module: Any) -> list[str]:
    """What models within were made sparse in, a head for one, which is in no scope by itself."""
    found = [(path, getattr(m, "winnow_zeros", ())) for path, m in module.named_modules()]
    return [f"{path}.{name}" if path else name for path, zeros in found for name in zeros]


def _warn(sentence: str | None, trainer: Any) -> None:
    if sentence is not None and trainer.is_global_zero:
        warnings.warn(sentence, stacklevel=2)
