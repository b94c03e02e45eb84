"""SynFlow: which weights carry most of the flow from inputs to outputs, without a single example's values."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from winnow.errors import InputError
from winnow.masks.global_ranking import MAX_RATE, prune_globally
from winnow.masks.unwrap import working_copy
from winnow.train.distil.outputs import read_output
from winnow.train.examples import map_tensors
from winnow.train.saliency.linearized import Linearized, linearize
from winnow.train.saliency.saliency import spend
from winnow.train.saliency.subject import Subject


def synflow_masks(
    run: Subject, zeros: int, iterations: int = 100, max_rate: float = MAX_RATE
) -> dict[str, torch.Tensor]:
    """Keep masks [rows, cols] with exactly ``zeros`` zeros, found in ``iterations`` prunings of rising sparsity.

    After pruning k of n a share (1 - S)^(k/n) is left (Tanaka et al. 2020, arXiv 2006.05467, algorithm 1); each scores
    what the one before left, and no tensor loses more than ``max_rate`` of its weights. The network is made linear as
    :mod:`winnow.train.saliency.linearized` says. One pass counts as a step in ``run.cost`` although it sees one example, not a
    mini-batch.

    Beside the authors' code (ganguli-lab/Synaptic-Flow): 100 prunings, the exponential schedule, an input of ones and
    eval mode are the same. There biases and batch norms' means become their absolute values, which are zero in the new
    networks it is made for and not in a pretrained one: here they are zero. There a tensor may lose everything
    (``max_rate`` 1), and what is not linear stays.

    Raises:
        InputError: the loss does not call the model.
    """
    started = time.perf_counter()
    flow = Flow(run)
    keeps, numel = run.keeps, run.scope.numel
    for k in range(1, iterations + 1):
        target = numel - round(numel * (1 - zeros / numel) ** (k / iterations)) if k < iterations else zeros
        scores = flow.scores(keeps)
        largest = max(float(s.max()) for s in scores.values()) or 1.0
        spend(run, 1)
        keeps = prune_globally({n: s / largest for n, s in scores.items()}, keeps, min(target, zeros), max_rate)
    run.cost.seconds += time.perf_counter() - started
    return keeps


class Flow:
    """A linear, non-negative float64 copy of a run's model at its start, and the flow through each weight of it."""

    def __init__(self, run: Subject) -> None:
        self.training, self.scope = run.training, run.scope
        self.model = linearize(working_copy(run.training.model))
        self.weights = {n: self.model.get_parameter(n) for n in self.scope.prunables}
        for p in self.model.parameters():
            p.requires_grad_(False)
        self.full = {n: w.detach().clone() for n, w in self.weights.items()}
        for w in self.weights.values():
            w.requires_grad_(True)
        examples = self.training.examples
        order = examples.order(torch.Generator().manual_seed(0))[0]
        self.batch = map_tensors(examples.take(order[:1]), _one)

    def scores(self, keeps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """|w| dR/d|w| as float64 matrices [rows, cols]; R is the sum of all outputs for inputs of one."""
        with torch.no_grad():
            for n, w in self.weights.items():
                w.copy_(self.full[n] * self.scope.prunables[n].restore(keeps[n]))
        total = read_output(self._outputs(), None).values.sum()
        gradients = torch.autograd.grad(total, list(self.weights.values()), materialize_grads=True)
        return {n: self.scope.prunables[n].matrix(w.detach() * g) for (n, w), g in zip(self.weights.items(), gradients)}

    def _outputs(self) -> Any:
        """What the model puts out; the loss only says how it is called, and is left when the outputs are there."""
        hooks = [
            self.model.register_forward_pre_hook(_ones, with_kwargs=True),
            self.model.register_forward_hook(_leave),
        ]
        try:
            with Linearized():
                self.training.loss(self.model, self.batch)
        except _Reached as reached:
            return reached.outputs
        finally:
            for hook in hooks:
                hook.remove()
        raise InputError("SynFlow found no outputs, as the loss never calls the model: write the loss with model(...).")


class _Reached(Exception):
    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs


def _leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
    raise _Reached(outputs)


def _ones(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Numbers become ones, whatever the loss made of its batch; tokens and masks stay, since embeddings are ones."""
    return tree_map(_one, (args, dict(kwargs)))


def _one(value: Any) -> Any:
    real = torch.is_tensor(value) and value.is_floating_point()
    return torch.ones_like(value, dtype=torch.float64) if real else value
