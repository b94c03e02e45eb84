"""A layer kept in two forms, each used for the numbers of rows at which it is the faster one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.kernels.dense import Substitute
from winnow.kernels.spec import LayerSpec


class RoutedLayer(Substitute):
    """Calls the first of ``routes`` - (rows of x up to this number, layer), the last up to ``math.inf`` - that fits x.

    Where one of the layers is the dense one as it was, ``weight`` and ``bias`` are its parameters; else ``weight`` is
    made where it is used. The layers are no children of this module: its state dict is that of the dense layer alone.
    """

    routes: tuple[tuple[float, nn.Module], ...]
    _width: int  # features of x; 0 for a convolution

    def __init__(self, spec: LayerSpec, routes: Sequence[tuple[float, nn.Module]]) -> None:
        if not routes or routes[-1][0] != math.inf:
            raise InputError("routes are (rows of x up to, layer) in rising order, the last up to math.inf")
        layers = [layer for _, layer in routes]
        dense = next((layer for layer in layers if "weight" in layer._parameters), None)
        super().__init__(spec, None)
        if dense is not None:
            self._parameters["weight"] = dense.weight  # type: ignore[assignment]
        self.bias = (layers[0] if dense is None else dense).bias  # type: ignore[assignment]
        for layer in layers:
            layer.bias = self.bias  # type: ignore[assignment]  # one parameter: it is converted, moved and loaded once for all of them
        # Not through nn.Module.__setattr__, which would make them children.
        self.__dict__["routes"] = tuple(routes)
        self.__dict__["_width"] = max(spec.cols, 1) if spec.geometry is None else 0

    @property
    def layers(self) -> list[nn.Module]:
        """Each layer once."""
        return list(dict.fromkeys(layer for _, layer in self.routes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self._width if self._width else self.spec.count(x)
        for upto, layer in self.routes:
            if rows <= upto:
                return layer.forward(x)
        raise AssertionError("routes end with math.inf")

    def expand(self) -> torch.Tensor:
        return self.spec.matrix(_dense(self.layers[0]))

    def _take(self, weight: torch.Tensor) -> None:
        for layer in self.layers:
            if "weight" in layer._parameters:
                with torch.no_grad():
                    layer.weight.copy_(weight)  # type: ignore[operator, union-attr]
            else:
                layer.pack(weight)  # type: ignore[operator]

    def bias_changed(self) -> None:
        for layer in self.layers:
            if isinstance(layer, Substitute):
                layer.bias_changed()

    def train(self, mode: bool = True) -> RoutedLayer:
        for layer in self.layers:
            layer.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for layer in self.layers:
            layer._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        routes = (f"{type(layer).__name__} up to {upto} rows" for upto, layer in self.routes)
        return f"{super().extra_repr()}, {', '.join(routes)}"


def _dense(layer: nn.Module) -> torch.Tensor:
    return layer.weight if "weight" in layer._parameters else layer.dense()  # type: ignore[operator, return-value]
