"""What a method of training under masks is to the hook that carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from winnow.train.attach import Attached


class SparseMethod(Protocol):
    """What decides about the masks while somebody else's loop trains: see :mod:`winnow.train.methods.gradual`.

    A method that has ``gradient(attached, name, gradient)`` too is handed the dense gradient of every prunable weight, as
    a matrix [rows, cols], each time one is accumulated and before it is masked (what RigL grows by): the gradient of
    weights that are gone is the last micro-batch's, of the others the sum so far. It is read only. One that has
    ``unfinished(attached, last=None)`` may return a sentence, which is warned with when training ends at
    ``attached.step`` (None: nothing to say); the callback for the Trainer also asks at the start, with the ``last`` step
    to come.
    """

    def start(self, attached: Attached) -> None:
        """Called once when attached anew, not when resumed: sets the first masks, if there are any."""

    def stepped(self, attached: Attached) -> None:
        """Called after every optimizer step, ``attached.step`` counting it; may call :meth:`Attached.set`."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside masks and the number of steps; numbers, text and tensors."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""


def unfinished(attached: Attached, last: int | None = None) -> str | None:
    """What the method of ``attached`` has to say about training that ends now, or after step ``last``."""
    asked = getattr(attached.method, "unfinished", None)
    return None if asked is None else asked(attached, last)
