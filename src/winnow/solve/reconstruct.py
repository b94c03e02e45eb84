"""Reconstruction of one unit: the remaining weights are fitted, by gradient, to the unit's target outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from winnow.errors import InputError
from winnow.forward.slots import TensorSlots
from winnow.masks.prunable import Prunable
from winnow.solve.batchnorm import has_batchnorm
from winnow.solve.calls import (
    Call,
    Calls,
    MiniBatches,
    Part,
    examples,
    joined,
    output_of,
    shared_rows,
    split,
    target_power,
    unpadded,
)
from winnow.solve.settings import ReconstructSettings
from winnow.solve.statistics import Moments, correction, is_conv, watching

State = dict[str, torch.Tensor]


@dataclass
class Fit:
    """What became of a unit.

    ``tensors`` by name inside the unit, float32: prunable weights in their stored layout with zeros folded in, and those
    biases, norms and batch-norm statistics that changed. ``before`` (mask alone, its batch norms estimated anew) and
    ``after`` are squared errors of the unit's output over the power of the target, on the calls held out: no step and no
    correction saw them. ``after`` is never above ``before``. ``gained``: whether it is below; else the mask's own values stay.
    """

    tensors: State = field(default_factory=dict)
    before: float = 0.0
    after: float = 0.0
    steps: int = 0

    @property
    def gained(self) -> bool:
        return self.after < self.before


LOOKS = 10  # at the calls held out, in the course of a fit


class Reconstruction:
    """Fits the weights, biases and norms of one unit under a fixed mask.

    Adam on mini-batches of the calls, rates falling to zero as a cosine, the mask multiplied in at every step; the loss is
    the squared error of the unit's output over the power of the target. Batch norms use the statistics of the
    mini-batch meanwhile. Before the fit and after it every layer's outputs get the dense mean and deviation back
    (:func:`winnow.solve.statistics.correction`) and batch norms are estimated anew, both in one run through
    the calls in which a layer sees what the corrected layers before it put out.

    One call in five is held out (:func:`held_out`; of a single call that may be cut, a fifth of its examples): it takes part
    in nothing but ten looks at the fit, of which the best stays, and the choice. Of mask alone, corrected, fitted,
    and fitted and corrected, what leaves the least error there stays, so that on examples it was not fitted to a unit is no
    worse than its mask. Where nothing can be held out, nothing is fitted.

    Inputs come from the pruned prefix. The target that ``settings.target`` "dense" stands for is what the dense model puts
    out there, so that a block also undoes what the blocks before it lost; with "own", what the unit's dense
    weights make of the same inputs, each block keeps its function and the losses add up. "own" holds half as many
    hidden states.

    Args:
        module: the unit, holding its start values; it is left as it is.
        layers: prunable and keep mask [rows, cols] by the weight's name inside the unit.
        statistics: estimate batch norms anew; otherwise they stay as they are.
        seed: of the order of the mini-batches.

    Raises:
        InputError: the error is not finite.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[str, tuple[Prunable, torch.Tensor]],
        calls: Calls,
        settings: ReconstructSettings,
        *,
        statistics: bool = True,
        seed: int = 0,
        where: str = "the model",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.module, self.layers, self.calls, self.settings = module, layers, calls, settings
        self._places = TensorSlots(module)
        self.seed, self.where, self.progress = seed, where, progress
        parameters = dict(module.named_parameters())
        self.own = {n: parameters[n].detach() for n in layers}
        self.own |= {n: p.detach() for n, p in parameters.items() if p.ndim <= 1 and p.is_floating_point()}
        modules = module.named_modules() if statistics else ()
        norms = {n: m for n, m in modules if isinstance(m, _BatchNorm) and has_batchnorm(m)}
        self.norms = list(norms.values())
        self.buffers = {
            f"{n}.{b}" if n else b: t.detach() for n, m in norms.items() for b, t in m.named_buffers(recurse=False)
        }
        self.masks = {n: p.restore(keep).to(self.own[n].device) for n, (p, keep) in layers.items()}
        self.corrected = {n: n.rpartition(".")[0] for n in layers if n in calls.moments}

    def run(self) -> Fit:
        """The fit; with no calls, the masked weights as they are."""
        buffers = {n: t.clone() for n, t in self.buffers.items()}
        start = self._masked({n: t.float() for n, t in self.own.items()} | buffers)
        if not len(self.calls):
            return Fit(self._changed(start))
        rows = self._rows_to_cut(start)
        self.cut = rows is not None  # whether calls may be cut into examples, and examples joined
        self.fitting, self.judging, whole = split(self.calls, rows or 1)
        self._corrects = self.settings.correct and whole  # the dense statistics are of whole calls
        mask = self._restored(start, correct=False) if len(self.fitting) else start
        before = self._error(mask)
        if not math.isfinite(before):
            raise InputError(
                f"the outputs of {self.where} are not finite: look for NaN in the weights and the data, and load a "
                "half-precision model in float32."
            )
        if not len(self.fitting):
            return Fit(self._changed(mask), before, before)
        begin = self._restored(start)
        fitted, steps = self._fit(begin)
        best, least = mask, before
        for state in (begin, self._restored(fitted, correct=False), self._restored(fitted)):
            error = self._error(state)
            if error < least:
                best, least = state, error
        return Fit(self._changed(best), before, least, steps)

    def _rows_to_cut(self, state: State) -> int | None:
        """Examples of the first call where calls may be cut into their examples, and joined; else None."""
        layouts, rows = set(), []
        for i in range(len(self.calls)):
            with self.calls.at(i) as call:
                leaves = tree_leaves((call.args, call.kwargs))
                layouts.add(tuple((x.shape[1:], x.dtype) if isinstance(x, torch.Tensor) else str(x) for x in leaves))
                rows.append(shared_rows(leaves, call.target) if call.counts is None else None)
        return rows[0] if len(layouts) == 1 and all(rows) and self._separable(state) else None

    @torch.no_grad()
    def _separable(self, state: State) -> bool:
        """Whether the examples of a call do not see each other (a sequence along the first dimension would)."""
        parts: list[Part] = []
        alone = []
        for i in range(min(len(self.calls), 2)):
            with self.calls.at(i) as call:
                some = torch.arange((call.target.shape[0] + 1) // 2)
                parts.append((i, some))
                alone.append(self._output(state, call)[some])
        one = torch.cat(alone)
        several = self._output(state, joined(self.calls, parts))
        return one.shape == several.shape and torch.allclose(
            one, several, rtol=1e-2, atol=1e-3 * float(one.abs().max())
        )

    def _output(self, state: State, call: Call) -> torch.Tensor:
        """What the unit puts out with these tensors as its own."""
        tensors = {n: t.to(self.own[n].dtype) if n in self.own else t for n, t in state.items()}
        with self._places.replaced(tensors):
            return output_of(self.module(*call.args, **call.kwargs))

    @torch.no_grad()
    def _error(self, state: State) -> float:
        """On the calls that judge, over the power of their targets."""
        total = target_power = 0.0
        for i in range(len(self.judging)):
            with self.judging.at(i) as call:
                delta = unpadded(self._output(state, call) - call.target, call.counts)
                total += float(delta.double().square().sum())
                target_power += float(unpadded(call.target, call.counts).double().square().sum())
        return total / max(target_power, 1e-30)

    @torch.no_grad()
    def _restored(self, state: State, *, correct: bool = True) -> State:
        """The state with batch norms estimated anew and, with ``correct``, dense means and deviations put back."""
        state = dict(state)
        for name, buffer in self.buffers.items():
            state[name] = torch.ones_like(buffer) if name.endswith("running_var") else torch.zeros_like(buffer)
        paths = self.corrected if correct and self._corrects else {}
        if not paths and not self.norms:
            return state
        pruned = {name: Moments() for name in paths}
        changed: State = {}
        counts: torch.Tensor | None = None

        def seen(name: str, layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
            pruned[name].add(output, counts, conv=is_conv(layer))
            beside = f"{self.corrected[name]}.bias".lstrip(".")
            bias = state[beside] if beside in self.own else None
            # A bias that is pruned itself keeps its values: a correction would fill the positions that its mask removes.
            scale, shift = correction(self.calls.moments[name], pruned[name], None if beside in self.masks else bias)
            prunable = self.layers[name][0]
            weight = prunable.matrix(state[name]) * scale[:, None].to(state[name])
            changed[name] = prunable.restore(weight)
            like = (1, -1, *[1] * (output.ndim - 2)) if is_conv(layer) else (-1,)
            scale = scale.to(output).reshape(like)
            if bias is None:
                return output * scale
            if shift is not None:
                changed[beside] = shift.to(bias)
            shift = bias if shift is None else shift
            return (output - bias.to(output).reshape(like)) * scale + shift.to(output).reshape(like)

        with self._batchnorms(training=True, average=True), watching(self.module, paths, seen):
            for i in range(len(self.fitting)):
                with self.fitting.at(i) as call:
                    counts = call.counts
                    self._output(state, call)
        return {**state, **changed}

    @contextmanager
    def _batchnorms(self, *, training: bool, average: bool = False) -> Iterator[None]:
        """Batch norms in training mode or not; with ``average`` their running statistics become plain averages."""
        before = [(m, m.training, m.momentum) for m in self.norms]
        try:
            for m in self.norms:
                m.training, m.momentum = training, None if average else m.momentum
            yield
        finally:
            for m, training, momentum in before:
                m.training, m.momentum = training, momentum

    @torch.enable_grad()
    def _fit(self, begin: State) -> tuple[State, int]:
        s = self.settings
        leaves = {n: begin[n].clone().requires_grad_() for n in self.own}
        buffers = {n: begin[n].clone() for n in self.buffers}
        groups = []
        for name, leaf in leaves.items():
            lr = s.bias_lr
            if name in self.masks:  # in root mean squares of the weights that stay
                lr = s.lr * float((begin[name].square().sum() / self.masks[name].sum().clamp_min(1)).sqrt())
            groups.append({"params": [leaf], "lr": lr, "base": lr})
        optimizer = torch.optim.Adam(groups)
        power, positions = target_power(self.fitting)
        taken, best, least = 0, begin, self._error(begin)
        with self._batchnorms(training=True):
            for parts in MiniBatches(examples(self.fitting), s.batch, cut=self.cut, seed=self.seed).steps():
                for group in optimizer.param_groups:
                    group["lr"] = group["base"] * 0.5 * (1 + math.cos(math.pi * taken / s.steps))
                optimizer.zero_grad(set_to_none=True)
                value = 0.0
                for call, share in self._opened(parts):
                    state = self._masked({**leaves, **buffers})
                    delta = unpadded(self._output(state, call) - call.target, call.counts)
                    loss = delta.float().square().mean() * (share / (power / max(positions, 1)))
                    loss.backward()
                    value += float(loss.detach())
                    del state, delta, loss, call
                optimizer.step()
                taken += 1
                if not math.isfinite(value):
                    raise InputError(
                        f"the error of {self.where} became {value} at step {taken}: lower the rate (--set lr={s.lr / 10:g})."
                    )
                if self.progress:
                    self.progress(taken, s.steps)
                over = taken >= s.steps or value < s.stop
                if over or taken % max(s.steps // LOOKS, 1) == 0:
                    found = self._masked({n: t.detach().clone() for n, t in {**leaves, **buffers}.items()})
                    with self._batchnorms(training=False):
                        error = self._error(found)
                    if error < least:
                        best, least = found, error
                if over:
                    break
        return best, taken

    def _opened(self, parts: list[Part]) -> Iterator[tuple[Call, float]]:
        """The calls of one step, joined where that is possible, and the share of the step each stands for."""
        if self.cut:
            yield joined(self.fitting, parts), 1.0
            return
        for i, _ in parts:
            with self.fitting.at(i) as call:
                yield call, 1 / len(parts)

    def _masked(self, state: State) -> State:
        return {n: t * self.masks[n] if n in self.masks else t for n, t in state.items()}

    def _changed(self, state: State) -> State:
        """Weights, and whatever else is not what it was."""
        was = {**self.own, **self.buffers}
        kept = [n for n, t in state.items() if n in self.masks or not torch.equal(t.to(was[n].dtype), was[n])]
        return {n: state[n].detach() for n in kept}
