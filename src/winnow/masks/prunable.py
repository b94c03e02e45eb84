"""What a prunable tensor looks like to everything else: a matrix with one row per output unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

Kind = Literal["linear", "conv1d", "conv", "conv_transposed", "experts", "attention_in"]

CONVOLUTIONS: tuple[Kind, ...] = ("conv", "conv_transposed")


@dataclass(frozen=True)
class Prunable:
    """One parameter whose weights may be removed, and how to see it as a matrix [rows, cols].

    A row is one output unit, the columns are its inputs. Scores, masks, solvers and packed files all
    speak of this matrix, never of the stored layout:

    ===============  ==========================  ==========================  ======================
    kind             stored                      matrix                      parts
    ===============  ==========================  ==========================  ======================
    linear           [out, in]                   [out, in]                   1
    conv1d           [in, out]  (GPT-2 style)    [out, in]                   1
    conv             [out, in/groups, *kernel]   [out, in/groups*prod(k)]    groups
    conv_transposed  [in, out/groups, *kernel] (``transposed``)
                                                 [out, in/groups*prod(k)]    groups
    experts          [E, out, in] or [E, in, out] (``transposed``)
                                                 [E*out, in]                 E
    attention_in     [3*E, E] (MultiheadAttention.in_proj_weight)
                                                 [3*E, E]                    3
    ===============  ==========================  ==========================  ======================

    ``parts`` is the number of equal bands of rows that each see inputs of their own (an expert's routed
    tokens, a group's channels); calibration keeps one set of input statistics per part.
    """

    name: str  # key in model.state_dict(), e.g. "model.layers.0.mlp.up_proj.weight"
    module: str  # path of the module that owns the parameter
    kind: Kind
    shape: tuple[int, ...]  # as stored
    transposed: bool = False
    parts: int = 1
    block: str | None = None  # path of the repeated block it lies in, None outside

    @property
    def rows(self) -> int:
        if self.kind == "experts":
            return self.shape[0] * self.shape[2 if self.transposed else 1]
        if self.kind == "conv_transposed":
            return self.shape[1] * self.parts
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def cols(self) -> int:
        return self.numel // self.rows

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def kernel(self) -> int:
        """Columns that one input channel takes: the places of a convolution's kernel, 1 of all others."""
        return torch.Size(self.shape[2:]).numel() if self.kind in CONVOLUTIONS else 1

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """The [rows, cols] matrix of a stored tensor (a view where the layout allows it)."""
        if self.kind == "experts":
            tensor = tensor.transpose(1, 2) if self.transposed else tensor
            return tensor.reshape(self.rows, self.cols)
        if self.kind == "conv_transposed":  # [G, in/G, out/G, k] -> [G, out/G, in/G, k]
            return (
                tensor.reshape(self.parts, -1, self.shape[1], self.kernel).transpose(1, 2).reshape(self.rows, self.cols)
            )
        return tensor.t() if self.transposed else tensor.reshape(self.rows, self.cols)

    def restore(self, matrix: torch.Tensor) -> torch.Tensor:
        """The stored layout of a [rows, cols] matrix; the inverse of :meth:`matrix`, contiguous."""
        if self.kind == "experts":
            experts, out = self.shape[0], self.rows // self.shape[0]
            tensor = matrix.reshape(experts, out, self.cols)
            return (tensor.transpose(1, 2) if self.transposed else tensor).contiguous()
        if self.kind == "conv_transposed":
            tensor = matrix.reshape(self.parts, self.shape[1], -1, self.kernel)
            return tensor.transpose(1, 2).reshape(self.shape).contiguous()
        return (matrix.t() if self.transposed else matrix).reshape(self.shape).contiguous()


@dataclass(frozen=True)
class Skipped:
    """A parameter that stays dense, and why."""

    name: str
    numel: int
    reason: str


@dataclass
class Scope:
    """What may be pruned, in the model's own order, and what is left alone."""

    prunables: dict[str, Prunable] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was guessed, and how to overrule it
    # What is not pruned and could hold fewer bits, by the first of its names: embeddings, output layers, first convolutions.
    rest: dict[str, Prunable] = field(default_factory=dict)

    def __repr__(self) -> str:
        left = sum(s.numel for s in self.skipped)
        return f"Scope({len(self.prunables)} tensors of {self.numel:,} weights; {len(self.skipped)} of {left:,} are not pruned)"

    @property
    def numel(self) -> int:
        return sum(p.numel for p in self.prunables.values())


_NAMED = 3  # matrices in a message; of more, the modules that own them
_LEFT_DENSE = ("output head", "embedding", "router", "bias", "norm", "vector")
# Not even by name, or only one of them.
_FIXED = ("tied", "not float", "not init", "empty", "a single number", "recomputed")


def nothing_to_prune(skipped: Sequence[Skipped]) -> str:
    """The sentence for a model in which nothing is prunable by itself: what of its own could be named.

    ``skipped`` are its matrices with their reasons; heads, embeddings and shared parameters are not proposed.
    """
    start = "there is nothing to prune in this model"
    left = [s for s in skipped if s.reason not in _LEFT_DENSE and not s.reason.startswith(_FIXED)]
    if any(s.reason == "excluded by name" for s in left):
        return f"{start} that exclude leaves: exclude less, or name other matrices with include."
    left = sorted((s for s in left if s.numel), key=lambda s: -s.numel)
    made = [s for s in skipped if s.reason.startswith("recomputed")]
    if not left and made:
        return (
            f"{start}: its weights are recomputed at each call (such as {made[0].name}): make them permanent first, with "
            "torch.nn.utils.remove_weight_norm, remove_spectral_norm or parametrize.remove_parametrizations."
        )
    if not left:
        return f"{start} but its head and embeddings, if any: name those with include, or give a model with other linear layers."
    names = [s.name for s in left]
    if len(names) > _NAMED:
        names = list(dict.fromkeys(n.rpartition(".")[0] or n for n in names))[:_NAMED]
    asked = ", ".join(f'"{n}"' for n in sorted(names))
    return f"{start} by itself: name its matrices with include=[{asked}]."
