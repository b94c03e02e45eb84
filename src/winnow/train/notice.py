"""What a plain :class:`transformers.Trainer` says of a sparse model: that its zeros will go, and what keeps them.

transformers has no registry for such a thing, but a list of the callbacks that every Trainer begins with. The notice joins it
when ``transformers.trainer`` is imported; it looks at the model once, before the first step, and changes nothing.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from transformers.trainer_callback import TrainerCallback

from winnow.masks.unwrap import unwrap
from winnow.train.attach import is_attached


class ZerosNotice(TrainerCallback):  # type: ignore[misc]
    """Warns (UserWarning, once a Trainer) where a model that winnow made sparse is trained without masks.

    Nothing is said of a model that is attached, whichever way, and of zeros in weights that are frozen, as under adapters.
    """

    def __init__(self) -> None:
        self._looked = False

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Here and not when training begins, for callbacks of that moment are what attaches."""
        if self._looked or model is None:
            return
        self._looked = True
        model = unwrap(model)
        loaded = getattr(model, "winnow_zeros", None) or {}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        zeros = sum(n for name, n in loaded.items() if name in trained)
        if zeros and state.is_world_process_zero and not is_attached(model):
            warnings.warn(
                f"this model has {zeros:,} pruned weights, and training fills them in: give the Trainer "
                "callbacks=[winnow.train.WinnowCallback()], which keeps them zero.",
                stacklevel=2,
            )


def enlist() -> None:
    """Enters the notice in the list, once; a transformers that keeps no such list goes without it."""
    callbacks = getattr(sys.modules.get("transformers.trainer"), "DEFAULT_CALLBACKS", None)
    if isinstance(callbacks, list) and ZerosNotice not in callbacks:
        callbacks.append(ZerosNotice)
