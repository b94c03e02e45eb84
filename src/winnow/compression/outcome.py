"""What became of a tensor, of a model, and of a candidate that was made and measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.compression.candidates import Candidate
from winnow.compression.hosts import Host
from winnow.formats.packed import PackedTensor
from winnow.formats.tensorfile import TensorFile
from winnow.masks.prunable import Prunable, Scope
from winnow.measure.compare import Comparison
from winnow.measure.evaluation import Evaluation
from winnow.notebook import Card, Shown, frame
from winnow.words import count, number, percent, size


@dataclass
class LayerOutcome:
    """What became of one prunable tensor."""

    name: str
    block: str | None
    kind: str
    rows: int
    cols: int
    zeros: int
    error: float | None  # ||X W^T - X W0^T||^2 / ||X W0^T||^2 on the calibration inputs; of the unit if reconstructed
    bits_per_weight: float
    seconds: float
    unit: str  # the stored unit it lies in: a block's path, or "" for a model taken whole
    parts: int = 1
    unseen: int = 0  # parts whose inputs calibration did not see, and the method reads them
    values: str | None = None  # how its weights are stored: "int8", "float32"
    fitted: bool | None = None  # of a reconstructed unit: whether that beat the mask alone on examples held out

    @property
    def numel(self) -> int:
        return self.rows * self.cols

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel

    @property
    def method(self) -> str | None:
        """What replaced the recipe's method in parts (experts, groups) whose inputs were not seen; None if nothing did."""
        if not self.unseen:
            return None
        instead = "magnitude" if self.zeros else "round to nearest"
        return instead if self.unseen == self.parts else f"{instead} in {self.unseen} of {self.parts} parts"


class Layers(Shown, list[LayerOutcome]):
    """The pruned tensors of a model, in its order."""

    def to_frame(self) -> Any:
        """A pandas DataFrame by name. Raises InputError where pandas is missing."""
        return frame(self._rows(), "name")

    def _rows(self) -> list[dict[str, Any]]:
        names = (
            "name",
            "block",
            "kind",
            "rows",
            "cols",
            "numel",
            "zeros",
            "sparsity",
            "error",
            "bits_per_weight",
            "seconds",
        )
        return [{name: getattr(layer, name) for name in names} for layer in self]

    def _card(self) -> Card:
        zeros, numel = sum(x.zeros for x in self), sum(x.numel for x in self)
        said = (
            f"{len(self)} layers, {count(zeros)} of {count(numel)} weights are zero ({percent(zeros / max(numel, 1))})"
        )
        return Card("Layers", said, tables=[(f"{len(self)} layers", self._rows())])


@dataclass
class Pruned:
    """The result of one recipe: per-layer outcomes, packed weights, and dense tensors that changed beside them."""

    layers: list[LayerOutcome]
    packed: Callable[[str], PackedTensor]  # by tensor name; reads the stored unit
    extra: dict[str, torch.Tensor] = field(default_factory=dict)  # batch-norm statistics, compensated biases
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    files: Callable[[], dict[str, TensorFile]] = dict  # the file that each packed tensor is stored in
    folder: Path | None = None  # of the stored units
    remarks: list[str] = field(default_factory=list)  # how it was done, with nothing to act on
    rest: dict[str, Prunable] = field(default_factory=dict)  # packed too: unpruned tensors stored in fewer bits

    def __repr__(self) -> str:
        return (
            f"Pruned({len(self.layers)} layers, {count(self.zeros)} zeros, {self.bits_per_weight:.2f} bits per weight)"
        )

    @property
    def zeros(self) -> int:
        return sum(layer.zeros for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        return sum(x.bits_per_weight * x.numel for x in self.layers) / max(sum(x.numel for x in self.layers), 1)

    def in_place(self, host: Host, scope: Scope) -> AbstractContextManager[nn.Module]:
        """The host's model with these weights, in the layout and type they are stored in."""

        def weight(name: str) -> torch.Tensor:
            view = self.rest[name] if name in self.rest else scope.prunables[name]
            return view.restore(self.packed(name).unpack(host.stored_dtype[name]))

        host.set_rest({name: partial(weight, name) for name in self.rest})
        return host.with_weights(weight, scope, self.extra)


@dataclass
class Outcome:
    """A candidate that was made and measured. ``pruned`` is None for the dense model."""

    candidate: Candidate
    pruned: Pruned | None
    evaluation: Evaluation | None
    comparison: Comparison | None
    file_bytes: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    record: dict[str, Any] | None = None  # an AllocationRecord as JSON, of methods that train
    contents: list[tuple[str, str | None, int]] = field(default_factory=list)  # of the file: (what, data type, bytes)

    def __repr__(self) -> str:
        parts = [self.candidate.label, size(self.file_bytes)]
        if (e := self.evaluation) is not None:
            parts.append(f"{e.metric} {number(e.value)}")
        return f"Outcome({self.name!r}: {', '.join(parts)})"

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def drop(self) -> float | None:
        return None if self.comparison is None else self.comparison.drop
