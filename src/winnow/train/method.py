"""What a method of training under masks is to the hook that carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from winnow.train.attach import Attached


class SparseMethod(Protocol):
    """What decides about the masks in any training loop: see :mod:`winnow.train.methods`. It holds the state of one training.

    More methods are optional, none of which a loop needs to know of:

    - ``gradient(attached, name, gradient)`` gets the dense dL/dtheta of every prunable weight, a matrix [rows, cols], each
      time one is accumulated and before it is masked (what RigL grows by): of pruned weights that of the last micro-batch,
      of the others the sum so far. It is read only.
    - ``split(name, weight)`` and ``merge(name, factors)`` together train other numbers than the weights, as
      theta = m * w: ``split`` gets the weight, or its entries [n] that a mask keeps, and returns factors [k, *shape] of
      its type, which the optimizer then steps in its place (None: the weight itself); ``merge`` gives back what factors
      stand for, differentiable. Both work entry by entry; what a weight of zero splits into must merge to zero. See
      :class:`winnow.train.factors.Factors`; ``attached.factors.follow(everywhere=True)`` splits anew on the way.
    - ``shared(name)`` returns a parameter of the method's own that ``merge`` of this weight depends on as well (None: there is
      none), such as the threshold of a tensor. Its ``grad`` is set at every step of the optimizer; the method steps it in
      ``stepped``: ``attached.factors.follow()``, the change, ``attached.factors.write()``.
    - ``unfinished(attached, last=None)`` returns a sentence that is warned with when training ends at ``attached.step``
      (None: nothing to say); the Trainer's callback also asks at the start, with the ``last`` step to come.
    """

    def start(self, attached: Attached) -> None:
        """Called once when attached anew, not when resumed: sets the first masks, if there are any."""

    def stepped(self, attached: Attached) -> None:
        """Called after every optimizer step, ``attached.step`` counting it; may call :meth:`Attached.set`."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside masks and the number of steps; numbers, text and tensors."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""


def unfinished(attached: Attached, last: int | None = None, method: SparseMethod | None = None) -> str | None:
    """A warning of the method (one within ``attached.method``, where given) where training ends now, or after ``last``."""
    find = getattr(method or attached.method, "unfinished", None)
    return None if find is None else find(attached, last)
