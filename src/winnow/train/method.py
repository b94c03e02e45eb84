"""What a method of training under masks is to the hook that carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from winnow.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from winnow.train.attached import Attached


Made = TypeVar("Made", bound="Planned")


class SparseMethod(Protocol):
    """What decides about the masks in any training loop: see :mod:`winnow.train.methods`. It holds the state of one training.

    More things are optional, none of which a loop needs to know of:

    - ``plan(steps)`` is called before ``start`` and ``restore`` with the optimizer steps of the whole training, None where they
      are not known: for steps that the user left out, by :func:`planned`.
    - ``gradient(attached, name, gradient)`` gets the dense dL/dtheta of every prunable weight, a matrix [rows, cols], each
      time one is accumulated and before it is masked (what RigL grows by): of pruned weights that of the last micro-batch,
      of the others the sum so far. It is read only. Of sharded weights it is gathered; with ``due(step)`` as well only
      for the steps that the method needs it of.
    - ``split(name, weight)`` and ``merge(name, factors)`` together train other numbers than the weights, as
      theta = m * w: ``split`` gets the weight, or its entries [n] that a mask keeps, and returns factors [k, *shape] of
      its type, which the optimizer then steps in its place (None: the weight itself); ``merge`` gives back what factors
      stand for, differentiable. Both work entry by entry; what a weight of zero splits into must merge to zero.
      ``vjp(name, factors, gradient)``, where there is one, returns dL/dfactors for a dL/dtheta in place of autograd
      through ``merge``, at a quarter of its time. See :class:`winnow.train.factors.Factors`;
      ``attached.factors.follow(everywhere=True)`` splits anew on the way.
    - ``trains_pruned = True``, beside ``split`` and ``merge``: pruned weights are trained on behind the masks. Factors are of whole
      tensors, and ``merge``, which may look at a tensor as a whole then, makes the zeros: after every step it must be zero
      where the masks that the method sets are. Gradients, moments and factors are not masked.
    - ``shared(name)`` returns a parameter of the method's own that ``merge`` of this weight depends on as well (None: there is
      none), such as the threshold of a tensor. Its ``grad`` is set at every step of the optimizer; the method steps it in
      ``stepped``: ``attached.factors.follow()``, the change, ``attached.factors.write()``.
    - ``unfinished(attached, last=None)`` returns a sentence that is warned with when training ends at ``attached.step``
      (None: nothing to say); the Trainer's callback also asks at the start, with the ``last`` step to come.
    - ``pruned(model)`` names tensors that are prunable because the method knows that they are pruned, such as an output head.
    """

    def start(self, attached: Attached) -> None:
        """Called once when attached anew, not when resumed: sets the first masks, if there are any."""

    def stepped(self, attached: Attached) -> None:
        """Called after every optimizer step, ``attached.step`` counting it; may call :meth:`Attached.set`."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside masks and the number of steps; numbers, text and tensors."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""


def plan(method: SparseMethod, steps: int | None) -> None:
    """Tells a method, where it asks, how long the training is."""
    tell = getattr(method, "plan", None)
    if tell is not None:
        tell(steps)


class Planned:
    """Methods some of whose steps follow from the length of the training, where the user leaves them out."""

    _length: int | None = None

    @classmethod
    def of(cls: type[Made], steps: int, *args: Any, **options: Any) -> Made:
        """For a training of ``steps`` optimizer steps, whatever :func:`winnow.train.attach` is told; what else the class takes."""
        if not hasattr(steps, "__index__") or steps < 1:
            raise InputError(
                f"steps is {steps!r}: give the number of optimizer steps of the whole training, 1 or more."
            )
        made = cls(*args, **options)
        made._length = steps
        made.plan(steps)
        return made

    def plan(self, steps: int | None) -> None:
        """See :class:`SparseMethod`."""
        self._plan(self._length or steps)

    def _plan(self, steps: int | None) -> None:
        """Works out what was not given."""
        raise NotImplementedError


def planned(method: SparseMethod, name: str, given: int | None, share: float, steps: int | None) -> int:
    """A step that a method needs: the one ``given``, else ``share`` of the training's ``steps``, 1 or more.

    Raises:
        InputError: neither is known; the sentence says how to give them.
    """
    if given is not None:
        return int(given)
    if steps is None:
        kind = type(method).__name__
        raise InputError(
            f"{kind} needs to know how long the training is: give {kind}(..., {name}=STEP), or the optimizer steps of the "
            "whole training with attach(..., steps=STEPS)."
        )
    return max(1, int(share * steps + 1e-9))  # 0.9 times 70 is a little less than 63


def unfinished(attached: Attached, last: int | None = None, method: SparseMethod | None = None) -> str | None:
    """A warning of the method (one within ``attached.method``, where given) where training ends now, or after ``last``."""
    find = getattr(method or attached.method, "unfinished", None)
    return None if find is None else find(attached, last)


def pruned_by(method: SparseMethod, model: nn.Module) -> list[str]:
    """The tensors of a model that a method knows to be pruned (see ``pruned`` of :class:`SparseMethod`)."""
    find = getattr(method, "pruned", None)
    there = dict(model.named_parameters(remove_duplicate=False))
    return [] if find is None else [name for name in find(model) if name in there]


def title(method: Any) -> str:
    """The class of a method, and that of the method within it: "SignIn(RigL)"."""
    inner = getattr(method, "inner", None)
    own = type(method).__name__
    return f"{own}({title(inner)})" if hasattr(inner, "stepped") else own
