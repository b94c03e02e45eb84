"""Probing a module that multiplies by its parameters directly: stacked experts, packed attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from winnow.coupled.call import Call, noise, probing_mode, tensors_in
from winnow.coupled.cut import Cols, Rows, Seen
from winnow.forward.slots import TensorSlots
from winnow.masks.prunable import Prunable


class WeightProbe:
    """The questions of :class:`CutProbe` for a module without inner layers to cut, asked through its weights.

    Two layers deep: the weights whose rows are separate features of the output are the consumers, those
    that reach every feature of it the producers. NaN in producer rows shows in the gradient of the
    consumer columns that read them. Names are parameter names relative to the module; the input features
    of a consumer with several parts are counted over all parts, part * cols + column.
    """

    def __init__(self, module: nn.Module, call: Call, prunables: Mapping[str, Prunable]) -> None:
        self.module, self.call, self.prunables = module, call, dict(prunables)
        self._places = TensorSlots(module)
        params = dict(module.named_parameters())
        self.weights = {name: params[name].detach() for name in prunables}
        self.consumers: dict[str, int] = {}
        self.producers: dict[str, int] = {}
        for name, p in self.prunables.items():
            first = torch.zeros(p.rows, dtype=torch.bool)
            first[:: p.rows // p.parts] = True  # one row of every part
            out = self._output({name: self._with_rows(name, first, float("nan"))})
            hit = out.isnan().reshape(-1, out.shape[-1]).any(0)
            if bool(hit.all()) and p.rows > p.parts:
                self.producers[name] = p.rows
            elif bool(hit.any()):
                self.consumers[name] = p.parts * p.cols

    def escaping(self) -> Rows:
        """Producer rows that reach the output without passing a consumer."""
        return self._sources({name: torch.zeros(n, dtype=torch.bool) for name, n in self.consumers.items()})

    def sources(self, consumer: str, mask: torch.Tensor) -> Rows:
        """Producer rows on which the masked columns of a consumer depend (by gradient)."""
        others = {name: torch.zeros(n, dtype=torch.bool) for name, n in self.consumers.items()}
        return self._sources(others | {consumer: mask})

    def _sources(self, masks: Cols) -> Rows:
        found = {name: torch.zeros(n, dtype=torch.bool) for name, n in self.producers.items()}
        for draw in range(2):  # as trained, then noise: a dead ReLU wakes
            generator = torch.Generator().manual_seed(draw)
            values: dict[str, torch.Tensor] = {}
            for name, mask in masks.items():
                p, weight = self.prunables[name], self.weights[name]
                bands = noise(p.matrix(weight), generator).view(p.parts, -1, p.cols)
                bands = bands * mask.view(p.parts, 1, p.cols).to(bands.device)
                values[name] = p.restore(bands.view(p.rows, p.cols))
            leaves = {}
            for name in self.producers:
                weight = self.weights[name]
                leaf = noise(weight, generator) * weight.float().std().to(weight.dtype) if draw else weight.clone()
                leaves[name] = leaf.requires_grad_()
            with torch.enable_grad(), saved_tensors_hooks(torch.clone, lambda saved: saved):
                out = self._output(values | leaves)
                if not out.requires_grad:
                    continue
                grads = torch.autograd.grad(out, list(leaves.values()), noise(out, generator), allow_unused=True)
            for name, grad in zip(leaves, grads):
                if grad is not None:
                    found[name] |= (self.prunables[name].matrix(grad).abs() > 0).any(1).cpu()
        return found

    def reach(self, rows: Rows) -> Seen:
        """Consumer columns that NaN in the given producer rows reaches."""
        return Seen(
            cols={n: hit.isnan().all(1).flatten() for n, hit in self._gradients(rows, float("nan"), {}).items()}
        )

    def silenced(self, rows: Rows, biases: Mapping[str, torch.Tensor]) -> Cols:
        """Consumer columns that see exactly zero when the given rows and bias entries (bool, flattened) are zero."""
        params = dict(self.module.named_parameters())
        extra = {
            n: params[n].detach().masked_fill(m.view(params[n].shape).to(params[n].device), 0)
            for n, m in biases.items()
        }
        return {n: (g == 0).all(1).flatten() for n, g in self._gradients(rows, 0.0, extra).items()}

    def _gradients(self, rows: Rows, value: float, extra: dict[str, torch.Tensor]) -> Cols:
        """Gradient of every consumer, [parts, rows of a part, cols], with ``value`` in the given producer rows."""
        changed = {n: self._with_rows(n, mask, value) for n, mask in rows.items() if n in self.producers}
        leaves = {name: self.weights[name].clone().requires_grad_() for name in self.consumers}
        if not leaves:
            return {}
        with torch.enable_grad(), saved_tensors_hooks(torch.clone, lambda saved: saved):
            out = self._output(changed | leaves | extra)
            seed = noise(out, torch.Generator().manual_seed(0))
            grads = torch.autograd.grad(out, list(leaves.values()), seed, allow_unused=True)
        found = {}
        for name, grad in zip(leaves, grads):
            p = self.prunables[name]
            grad = torch.zeros(p.shape) if grad is None else grad
            found[name] = p.matrix(grad).reshape(p.parts, -1, p.cols).cpu()
        return found

    def _with_rows(self, name: str, mask: torch.Tensor, value: float) -> torch.Tensor:
        p = self.prunables[name]
        matrix = p.matrix(self.weights[name])
        return p.restore(matrix.masked_fill(mask.to(matrix.device)[:, None], value))

    def _output(self, values: dict[str, Any]) -> torch.Tensor:
        call = self.call.fresh()
        with probing_mode(self.module), self._places.replaced(values):
            return tensors_in(self.module(*call.args, **call.kwargs))[0]
