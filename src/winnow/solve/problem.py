"""The pruning problem of one weight matrix, and its solution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

import torch

from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.masks.structure import Group, Structure, Unstructured
from winnow.quantize import Grid, Quantized


@dataclass
class Problem:
    """Remove ``zeros`` weights of ``weight`` so that the output X W^T on the calibration inputs changes least."""

    weight: torch.Tensor  # [R, C], one row per output unit
    stats: InputStats | None  # of the inputs along the columns; None: no calibration data
    zeros: int
    structure: Structure = field(default_factory=Unstructured)
    group: str = "layer"  # "layer": weights of all rows compete; "row": every row loses equally many
    scores: torch.Tensor | None = None  # [R, C], low goes first; read by chains that start from scores
    grid: Grid | None = None  # quantize the remaining weights
    damp: float = 0.01  # dampening: this fraction of the Gram matrix's mean diagonal is added to its diagonal
    keep: torch.Tensor | None = None  # [R, C] bool: a mask already chosen (swap starts from it, the others hold it)
    where: str = ""  # the layer's name, for messages

    def check(self) -> None:
        """Raise InputError, naming the fix, when this cannot be solved as given."""
        name = self.where or "the layer"
        if self.weight.dim() != 2:
            raise InputError(f"the weights of {name} have {self.weight.dim()} dimensions: pass its [rows, cols] matrix")
        if not torch.isfinite(self.weight).all():
            raise InputError(
                f"the weights of {name} contain NaN or infinity: repair the checkpoint or exclude the layer"
            )
        if self.group not in get_args(Group):
            raise InputError(f"unknown comparison group {self.group!r}: use {' or '.join(get_args(Group))}")
        if not 0 <= self.zeros <= self.weight.numel():
            raise InputError(
                f"{self.zeros} zeros were requested of {name}, which has {self.weight.numel()} weights: request fewer"
            )
        for label, tensor in (("scores", self.scores), ("mask", self.keep)):
            if tensor is not None and tensor.shape != self.weight.shape:
                raise InputError(
                    f"the {label} of {name} are of shape {list(tensor.shape)}, its weights of "
                    f"{list(self.weight.shape)}: pass the layer's own"
                )
        if self.scores is not None and torch.isnan(self.scores).any():
            raise InputError(f"the scores of {name} contain NaN: check the calibration data for NaN or infinity")
        if self.stats is not None and self.stats.cols != self.weight.shape[1]:
            raise InputError(
                f"the statistics of {name} are of {self.stats.cols} inputs and it has {self.weight.shape[1]}: "
                "pass the statistics of its own input"
            )


@dataclass
class Solution:
    """The pruned matrix. Exactly zero where ``keep`` is False; remaining values may have changed."""

    weight: torch.Tensor  # [R, C] float32 (float64 where the problem's are)
    keep: torch.Tensor  # [R, C] bool, False at exactly the requested zeros (a kept weight may round to code 0)
    quantized: Quantized | None  # with a grid: the codes and scales that ``weight`` is the exact product of
    error: float | None  # ||X W^T - X W0^T||^2 / ||X W0^T||^2; None without a Gram matrix
