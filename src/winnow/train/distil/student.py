"""A model that runs with masked weights in place of its own, gradients reaching both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.forward.batch import call
from winnow.forward.modes import plain_eval
from winnow.forward.slots import TensorSlots
from winnow.masks.prunable import Scope
from winnow.train.examples import map_tensors


class Student:
    """The model being fitted. Its parameters are trained in place; ``dense`` runs what it was at the start.

    Dropout is off; batch norms use the statistics of the batch and keep their running averages up to date.
    Embeddings, output heads and other tensors outside the scope with two or more dimensions stay as they are.
    A parameter under several names is one: its mask holds wherever it is used. Batches are moved to the model's device.

    ``weights`` (prunable) and ``small`` (biases, norms and other vectors) are what may be trained, by name; ``start``
    holds copies of both and of the vectors among the buffers, under every name of the state dict.

    Raises:
        InputError: weights in half precision, which lose the small steps of training.
    """

    def __init__(self, model: nn.Module, scope: Scope) -> None:
        self.model, self.scope = model, scope
        self.weights = {name: model.get_parameter(name) for name in scope.prunables}
        taken = {id(p) for p in self.weights.values()}
        self.small = {
            name: p
            for name, p in model.named_parameters()
            if p.ndim <= 1 and p.is_floating_point() and id(p) not in taken
        }
        for name, p in {**self.weights, **self.small}.items():
            if p.dtype in (torch.float16, torch.bfloat16):
                raise InputError(
                    f"training needs float32 weights and {name} is {str(p.dtype).removeprefix('torch.')}: convert the model with model.float()."
                )
        self._buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        self._inside = False  # of training()
        self._places = TensorSlots(model)
        self.start: dict[str, torch.Tensor] = {}
        copies: dict[int, torch.Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if torch.is_tensor(tensor) and (id(tensor) in taken or tensor.ndim <= 1):
                self.start[name] = copies.setdefault(id(tensor), tensor.detach().clone())

    @property
    def device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    def matrices(self) -> dict[str, torch.Tensor]:
        """Every prunable weight as its matrix [rows, cols], connected to the parameter."""
        return {name: p.matrix(self.weights[name]) for name, p in self.scope.prunables.items()}

    def __call__(self, batch: Any, masked: Mapping[str, torch.Tensor]) -> Any:
        """The model's output on a batch with these matrices as its prunable weights."""
        stored = {name: self.scope.prunables[name].restore(m) for name, m in masked.items()}
        with self._places.replaced(stored):
            return self._run(batch)

    @torch.no_grad()
    def dense(self, batch: Any) -> Any:
        """What the model put out before anything was trained, in evaluation mode."""
        # Copies of buffers: a forward may write to them.
        tensors = {name: t.clone() if name in self._buffers else t for name, t in self.start.items()}
        with self._eval_mode(), self._places.replaced(tensors):
            return self._run(batch)

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Evaluation mode throughout; inside :meth:`training` only the batch norms have to be told."""
        if not self._inside:
            with plain_eval(self.model):
                yield
            return
        busy = [m for m in self.model.modules() if m.training]
        try:
            for m in busy:
                m.training = False
            yield
        finally:
            for m in busy:
                m.training = True

    def _run(self, batch: Any) -> Any:
        return call(self.model, map_tensors(batch, lambda t: t.to(self.device)))

    @contextmanager
    def training(self, weights: bool, small: bool) -> Iterator[None]:
        """Gradients for what is trained and for nothing else; modes, flags and gradients are put back at the end."""
        before = [(p, p.requires_grad, p.grad) for p in self.model.parameters()]
        with plain_eval(self.model):
            try:
                self._inside = True
                for p, _, _ in before:
                    p.requires_grad_(False)
                    p.grad = None
                for chosen, group in ((weights, self.weights), (small, self.small)):
                    for p in group.values():
                        p.requires_grad_(chosen)
                for m in self.model.modules():
                    if isinstance(m, nn.modules.batchnorm._BatchNorm):
                        m.training = True
                yield
            finally:
                self._inside = False
                for p, flag, grad in before:
                    p.requires_grad_(flag)
                    p.grad = grad
