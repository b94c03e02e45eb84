"""Masks on a model in training: what keeps them, and what methods see and change."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.mask import Mask, MaskSet
from winnow.masks.prunable import Scope
from winnow.train.cost import TrainingCost
from winnow.train.factors import Factors
from winnow.train.masking import masked, moments, on_gradient, zero, zero_all
from winnow.train.meter import Meter
from winnow.train.method import SparseMethod, plan, title, unfinished
from winnow.train.ranks import asked_for, masked_by, require_same
from winnow.train.shards import is_sharded, local, part, whole
from winnow.train.state_file import of_another_method, require_state
from winnow.train.targets import held, places_of, require_known, require_trained

live: weakref.WeakSet[Attached] = weakref.WeakSet()  # whose hooks are on


class Attached:
    """Masks on a model in training. Made by :func:`attach`.

    Attributes:
        keeps: bool matrices [rows, cols] by tensor name, True where the weight stays; change them with :meth:`set`.
        zeros: number of weights that the masks remove.
        step: optimizer steps since the start.
        meter: what :meth:`cost` is measured by.
        scope: what is prunable.
        weights: the prunable parameters, by the same names.
        factors: what the optimizer steps in the weights' places, where the method splits them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        method: SparseMethod,
        scope: Scope,
        state: Mapping[str, Any] | None = None,
        steps: int | None = None,
        together: Any = None,
    ) -> None:
        if not hasattr(method, "stepped"):
            raise InputError(f"{type(method).__name__} is no method: give Fixed(masks), Gradual(...) or your own.")
        if steps is not None and (not hasattr(steps, "__index__") or steps < 1):
            raise InputError(
                f"steps is {steps!r}: give the number of optimizer steps of the whole training, 1 or more."
            )
        plan(method, steps)
        if together is not None:  # before anything is gathered
            require_same(asked_for(scope.prunables, method, state), together)
        self.model, self.optimizers, self.method, self.scope = model, list(optimizers), method, scope
        self._places = places_of(model, scope)
        self._known = held(self.optimizers) | set(map(id, model.parameters()))
        self._groups = {o: len(o.param_groups) for o in self.optimizers}
        self.weights: dict[str, nn.Parameter] = {n: parameters[key] for n, (parameters, key) in self._places.items()}
        require_trained(self.weights, self.optimizers)
        self._check_alone()
        self.step = 0
        self.keeps = {
            name: torch.ones(p.rows, p.cols, dtype=torch.bool, device=self.weights[name].device)
            for name, p in scope.prunables.items()
        }
        self._masks: dict[str, torch.Tensor] = {}  # laid out as the weights are; tensors that lose nothing are not here
        self.zeros = 0
        self._trains_pruned: bool = getattr(method, "trains_pruned", False)
        self._handles: list[Any] = []
        self._arrived: set[str] = set()  # weights whose gradients have come through the hook since their last step
        self.factors = Factors(self.method, self.weights, self.optimizers, self._masks)
        self.meter = Meter(self)
        if state is None:
            method.start(self)
            self.factors.start()
        else:
            self.load_state_dict(state)
        if together is not None:
            require_same(masked_by(self.masks), together)
        self.meter.begin()
        timed = self.meter.timed
        self._handles += [on_gradient(p, timed(self._gradient(name))) for name, p in self.weights.items()]
        self._handles += [o.register_step_pre_hook(timed(self._stepping)) for o in self.optimizers]
        for o in self.optimizers:
            self._handles.append(o.register_step_post_hook(timed(self._stepped, last=o is self.optimizer)))
        live.add(self)

    def __repr__(self) -> str:
        masked = f"{self.zeros:,} of {self.numel:,} weights masked"
        return f"Attached({type(self.method).__name__} on {type(self.model).__name__}, {masked}, step {self.step:,})"

    def __str__(self) -> str:
        return f"{self!r}\n{self.cost()}"

    def cost(self) -> TrainingCost:
        """Memory, time in the hooks and FLOPs of this training as far as they are known by now; the hooks measure them.

        Logged once, at INFO after 20 steps, to the logger ``winnow.train.meter``; ``print(attached)`` shows it too.
        """
        return self.meter.cost()

    def _check_alone(self) -> None:
        """Two methods on one optimizer undo each other's masks; a second optimizer is a training of its own."""
        optimizers, weights = set(map(id, self.optimizers)), set(map(id, self.weights.values()))
        for other in live:
            if optimizers & set(map(id, other.optimizers)) and weights & set(map(id, other.weights.values())):
                raise InputError(
                    "this model and optimizer are attached already: detach first, with detach() of what attach returned."
                )

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one whose steps are counted."""
        return self.optimizers[-1]

    @property
    def numel(self) -> int:
        return self.scope.numel

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel

    @property
    def masks(self) -> MaskSet:
        return MaskSet(self.keeps)

    def matrices(self) -> dict[str, torch.Tensor]:
        """The prunable weights as matrices [rows, cols], detached; whole ones, where they are sharded."""
        return {name: p.matrix(whole(self.weights[name].detach())) for name, p in self.scope.prunables.items()}

    @torch.no_grad()
    def set(self, keeps: Mapping[str, torch.Tensor] | MaskSet) -> None:
        """New masks: bool matrices [rows, cols] by name; names left out keep theirs.

        Weights, gradients and moments are brought into line at once. A weight that comes back starts from zero. The
        matrices are not copied: do not write to them afterwards.

        Raises:
            InputError: an unknown name, or another shape; nothing has changed then.
        """
        found = {}
        for name, given in keeps.items():
            keep = given.unpack() if isinstance(given, Mask) else given
            if name not in self.keeps:
                raise InputError(f"{name} is not prunable here: give masks of {next(iter(self.keeps))} and the like.")
            if not torch.is_tensor(keep) or keep.dtype != torch.bool or keep.shape != self.keeps[name].shape:
                kind = f"{keep.dtype} {tuple(keep.shape)}" if torch.is_tensor(keep) else type(keep).__name__
                raise InputError(
                    f"the mask of {name} is {kind}: "
                    f"give a bool matrix {tuple(self.keeps[name].shape)}, True where the weight stays."
                )
            found[name] = keep.to(self.weights[name].device)
        for name, keep in found.items():
            self.keeps[name] = keep
            if bool(keep.all()) or self._trains_pruned:  # such a method projects the weights itself
                self._masks.pop(name, None)
            else:
                weight = local(self.weights[name])
                mask = part(self.scope.prunables[name].restore(keep), self.weights[name])
                if mask.stride() != weight.stride():  # channels last: an order of magnitude slower if the two differ
                    mask = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
                self._masks[name] = mask
        self.zeros = self.numel - sum(int(torch.count_nonzero(k)) for k in self.keeps.values())
        self.enforce()

    @torch.no_grad()
    def enforce(self) -> None:
        """Zeros in weights, gradients and moments wherever the masks say so."""
        self._check_places()
        for name, mask in self._masks.items():
            weight = self.weights[name]
            zero(weight, mask, name)
            if weight.grad is not None:
                weight.grad = masked(weight.grad, mask, name)
            for moment in () if name in self.factors else moments(self.optimizers, weight):
                zero(moment, mask, name)
        self.factors.follow(zeros=not self._trains_pruned)

    def detach(self) -> nn.Module:
        """Takes the hooks off and returns the model: a plain one, zeros in place.

        Warns (UserWarning) where the method has not come to its end, such as a schedule that is longer than the training.
        """
        if self._handles and (sentence := unfinished(self)) is not None:
            warnings.warn(sentence, stacklevel=2)
        return self.release()

    def release(self) -> nn.Module:
        """:meth:`detach` without a word, as after an error."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.meter.close()
        self.factors.release()
        live.discard(self)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """For your checkpoint, beside the model's and the optimizer's own: masks (packed bits), steps, the method's state.

        Plain values and tensors: ``torch.save`` and ``torch.load(weights_only=True)`` do, and so does
        :func:`winnow.train.write_state`.
        """
        masks = {name: mask.bits for name, mask in self.masks.items()}
        state = {"step": self.step, "masks": masks, "of": title(self.method), "method": self.method.state()}
        state["cost"] = self.meter.totals
        return state | ({"factors": self.factors.state()} if self.factors.tensors else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; load the model and the optimizer first.

        A method that has pruned when it was started leaves its zeros in weights that were loaded before that: attach
        first and load then, or give ``state`` to :func:`attach`.

        Raises:
            InputError: masks of another model, or another method's state; nothing has changed then.
        """
        require_state(state, self.keeps, title(self.method))
        try:
            self.method.restore(state["method"])
        except (KeyError, TypeError) as error:
            raise of_another_method(None, title(self.method)) from error
        self.factors.expect(state.get("factors", {}))
        packed = {n: Mask(bits.cpu(), tuple(self.keeps[n].shape)) for n, bits in state["masks"].items()}  # type: ignore[arg-type]
        self.set({n: mask.unpack() for n, mask in packed.items()})
        self.step = int(state["step"])
        self.factors.restore(state.get("factors", {}))
        self.meter.restore(state.get("cost"))

    def _gradient(self, name: str) -> Any:
        prunable, dense = self.scope.prunables[name], getattr(self.method, "gradient", None)
        due = getattr(self.method, "due", None) if is_sharded(self.weights[name]) else None

        def hook(parameter: torch.Tensor) -> None:
            self._arrived.add(name)
            if parameter.grad is None:  # a hook before this one has used it up
                return
            if dense is not None and (due is None or due(self.step + 1)):
                dense(self, name, prunable.matrix(whole(parameter.grad.detach())))
            mask = self._masks.get(name)
            if mask is not None:
                parameter.grad = masked(parameter.grad, mask, name)

        return hook

    def _held(self, optimizer: torch.optim.Optimizer) -> Collection[str]:
        """The weights that an optimizer trains, by name; simply all where there is only one."""
        if len(self.optimizers) == 1:
            return self.weights
        trained = held([optimizer])
        return [name for name, weight in self.weights.items() if id(weight) in trained]

    def _stepping(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Gradients that the loop has written itself went past the hook: they go through it now."""
        if len(optimizer.param_groups) != self._groups[optimizer]:
            self._groups[optimizer] = require_known(optimizer, self._known, self.model)
        for name in [n for n in self._held(optimizer) if n not in self._arrived]:
            self._gradient(name)(self.weights[name])
        return self.factors.enter(optimizer, args, kwargs)

    @torch.no_grad()
    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """With gradients and moments of zero most optimizers leave the zeros alone; those that mix entries (Muon) do not."""
        self._check_places()
        whole = self.factors.leave(optimizer)
        self._arrived.difference_update(self._held(optimizer))
        zero_all(self.weights, {n: mask for n, mask in self._masks.items() if n not in whole})
        # A fused optimizer is called by GradScaler also where it finds infinite gradients and does nothing.
        infinite = getattr(optimizer, "found_inf", None)
        if optimizer is self.optimizers[-1] and (infinite is None or not bool(infinite)):
            self.step += 1
            self.method.stepped(self)

    def _check_places(self) -> None:
        for name, (parameters, key) in self._places.items():
            if parameters.get(key) is not self.weights[name] and not is_sharded(self.weights[name]):
                raise InputError(
                    f"{name} is another parameter now than when attached: replace parameters first, then make the optimizer "
                    "and attach; to train something in their place give the method split and merge."
                )
