"""What a layer could run on, for the dispatcher to time and to choose from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.kernels import native
from winnow.kernels.dense import Int8Linear, RoundedLayer, RoutedLayer, ShrunkLayer, torch_int8_works, unpacked
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.modules import PackedConv2d, PackedLayer, PackedLinear
from winnow.kernels.swap import LayerSpec, live, pack_layer

PACK_LIMIT = 4 << 30  # bytes of values that a packed matrix can address
DENSEST = 0.85  # share of kept weights above which the index costs what the missing values save
WORTH_SHRINKING = 0.95  # share of the dense matrix that its live rows and columns span
MANY = 8  # rows of x from which expanding a panel or laying x out by features can pay


@dataclass
class Layer:
    """One layer of the model to accelerate, looked at once: what it holds and how much of it counts."""

    name: str
    module: nn.Module
    spec: LayerSpec
    rows: set[int]  # rows of x to measure
    inputs: dict[int, tuple[int, ...]] = field(default_factory=dict)  # convolutions: shape of x for each of them
    density: float = 1.0
    live_rows: int = 0
    live_cols: int = 0  # columns, for a convolution input channels times kernel
    _made: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.module, PackedLayer):
            self.density = self.matrix.density
            self.live_rows, self.live_cols = _live_of_packed(self.matrix, self.spec)
        else:
            weight = self.spec.matrix(self.weight())
            rows, cols = live(self.spec, weight)
            self.live_rows = len(rows)
            self.live_cols = len(cols) * (self.spec.cols // self.spec.filters(weight).shape[1])
            self.density = int(torch.count_nonzero(weight)) / max(self.spec.numel, 1)

    @property
    def packed(self) -> bool:
        """Whether the given layer is a packed one."""
        return isinstance(self.module, PackedLayer)

    @property
    def given(self) -> PackedLayer:
        """The given layer, a packed one."""
        assert isinstance(self.module, PackedLayer)
        return self.module

    @property
    def matrix(self) -> PackedMatrix:
        return self.given.matrix

    @property
    def dtype(self) -> str:
        return str(self.spec.dtype).removeprefix("torch.")

    @property
    def values(self) -> str:
        return self.matrix.values if self.packed else self.dtype

    def weight(self) -> torch.Tensor:
        """The dense weight as stored; of a packed layer it is expanded."""
        if isinstance(self.module, PackedLayer):
            return self.module.dense()
        assert isinstance(self.module.weight, torch.Tensor)
        return self.module.weight.detach()

    def made(self, member: str, make: Callable[[], nn.Module]) -> nn.Module:
        """``make()``, once for each form of the layer."""
        if member not in self._made:
            self._made[member] = make().train(self.module.training)
        return self._made[member]

    def sample(self, rows: int) -> torch.Tensor:
        """Random x of ``rows`` rows; the global generator is left alone."""
        shape = self.inputs.get(rows, (rows, self.spec.cols))
        return torch.randn(shape, generator=torch.Generator().manual_seed(rows)).to(self.spec.dtype)


@dataclass(frozen=True)
class Contender:
    """One way to run a layer. Contenders of one ``member`` use the same copy of the weights."""

    label: str  # "dense float32", "packed bfloat16 avx512" ...
    member: str
    nbytes: int  # of that copy
    make: Callable[[], nn.Module] = field(repr=False)  # the module, made once
    way: str | None = None  # of a packed layer

    def module(self) -> nn.Module:
        """A module that goes this way whatever the number of rows."""
        made = self.make()
        return made if self.way is None else _with_ways(made, [(math.inf, self.way)])


def contenders(layer: Layer, values: Sequence[str], activations: str, prefer: str) -> dict[str, Contender]:
    """Everything ``layer`` may run on, by label, the way it runs as given first.

    ``values`` are the types that the user allowed beside the layer's own. With ``prefer="memory"`` nothing is offered
    whose weights take more bytes than those of the given layer. Outputs differ from exact ones by at most, relative to the
    largest: 1e-5 in float32, 3e-3 in float16, 2% where anything is bfloat16, 4% with int8 activations.
    """
    sparse = layer.packed or layer.density <= DENSEST
    packed = _packed(layer, layer.values, activations) if sparse else []
    offered = [*packed, _dense(layer)] if layer.packed else [_dense(layer), *packed]
    for value in values:
        if value != layer.dtype:
            offered.append(_substitute(layer, "dense bfloat16", "rounded", 2 * layer.spec.numel, RoundedLayer))
        if value != layer.values and layer.values in ("float32", "float16") and sparse:
            offered += _packed(layer, value, "keep")
    if _has_codes(layer):
        offered.append(_substitute(layer, "torch int8", "int8", layer.spec.numel + 4 * layer.spec.rows, Int8Linear))
    spanned = layer.live_rows * layer.live_cols
    if spanned <= WORTH_SHRINKING * layer.spec.numel:
        size = spanned * layer.spec.dtype.itemsize + 8 * (layer.live_rows + layer.live_cols)
        offered.append(_substitute(layer, "shrunk dense", "shrunk", size, ShrunkLayer))
    given = offered[0]
    return {c.label: c for c in offered if prefer == "speed" or c.nbytes <= given.nbytes}


def worth_timing(contender: Contender, rows: int) -> bool:
    """False for ways that cannot pay with so few rows of x: they move more memory than the others."""
    return rows >= MANY or contender.way in (None, "packed")


def assemble(layer: Layer, chosen: dict[int, Contender]) -> nn.Module:
    """The module that goes ``chosen[r]`` for up to r rows of x, for the next larger r in between, the last above."""
    limits = sorted(chosen)
    uptos = [*map(float, limits[:-1]), math.inf]
    members: dict[str, nn.Module] = {}
    for contender in chosen.values():
        if contender.member in members:
            continue
        made = contender.make()
        if contender.way is not None:
            ways = [(u, c.way) for u, r in zip(uptos, limits) if (c := chosen[r]).member == contender.member]
            made = _with_ways(made, _merged([*ways[:-1], (math.inf, ways[-1][1])]))
        members[contender.member] = made
    if len(members) == 1:
        return next(iter(members.values()))
    return RoutedLayer(layer.spec, _merged([(u, members[chosen[r].member]) for u, r in zip(uptos, limits)]))


def _dense(layer: Layer) -> Contender:
    def make() -> nn.Module:
        module = layer.module
        return layer.made("dense", lambda: unpacked(module)) if isinstance(module, PackedLayer) else module

    return Contender(f"dense {layer.dtype}", "dense", layer.spec.numel * layer.spec.dtype.itemsize, make)


def _substitute(layer: Layer, label: str, member: str, nbytes: int, build: Callable[..., nn.Module]) -> Contender:
    """A dense layer of another kind: ``build(spec, matrix, bias)``."""

    def build_it() -> nn.Module:
        matrix = layer.matrix if build is Int8Linear else layer.spec.matrix(layer.weight())
        return build(layer.spec, matrix, layer.module.bias)

    return Contender(label, member, nbytes, lambda: layer.made(member, build_it))


def _packed(layer: Layer, values: str, activations: str) -> list[Contender]:
    """The ways of the layer packed with ``values``; none where a packed matrix cannot hold it."""
    own = layer.packed and layer.values == values
    if own:
        size = layer.matrix.nbytes
    else:
        kept = round(layer.density * layer.spec.numel) * getattr(torch, values).itemsize
        if kept >= PACK_LIMIT:
            return []
        size = kept + layer.spec.rows * (-(-layer.spec.cols // 8) + 4)

    def make() -> nn.Module:
        if own:
            return layer.module
        return layer.made(f"packed {values}", lambda: _pack(layer, values))

    def make_rounding() -> nn.Module:
        return layer.made(f"packed {values} int8", lambda: _like(layer.given, layer.matrix, "int8"))

    def entered(way: str, make: Callable[[], nn.Module], note: str = "") -> Contender:
        return Contender(f"{way} {values} {native.isa()}{note}", f"packed {values}{note}", size, make, way)

    if layer.spec.geometry is not None:
        return [entered(way, make) for way in ("spmm", "expanded")]
    note = " int8 activations"
    if own and layer.given.activations == "int8":
        return [entered(way, make, note) for way in layer.matrix.ways("int8")]
    found = [entered(way, make) for way in ("packed", "expanded", "spmm")]
    if own and activations == "int8":
        found += [entered(way, make_rounding, note) for way in layer.matrix.ways("int8")]
    return found


def _pack(layer: Layer, values: str) -> nn.Module:
    matrix = PackedMatrix.from_dense(layer.spec.matrix(layer.weight()), values)
    if not isinstance(layer.module, PackedLayer):
        return pack_layer(layer.module, matrix, layer.spec.dtype)
    return _like(layer.module, matrix)


def _like(given: PackedLayer, matrix: PackedMatrix, activations: str = "keep") -> PackedLayer:
    """A packed layer as ``given``, with another matrix or type of activations."""
    if isinstance(given, PackedConv2d):
        return PackedConv2d(matrix, given.bias, given.geometry, dtype=given.weight.dtype)
    assert isinstance(given, PackedLinear)
    return PackedLinear(
        matrix, given.bias, dtype=given.weight.dtype, transposed=given.transposed, activations=activations
    )


def _with_ways(module: nn.Module, ways: list[tuple[float, str]]) -> PackedLayer:
    """The same packed layer with other ways."""
    assert isinstance(module, PackedLayer)
    other = _like(module, module.matrix, module.activations)
    other.ways = ways  # type: ignore[assignment]
    return other.train(module.training)


def _merged(entries: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
    """Entries (up to, what) without those that the next one covers."""
    return [entry for entry, after in zip(entries, [*entries[1:], None]) if after is None or after[1] != entry[1]]


def _has_codes(layer: Layer) -> bool:
    """Whether torch's weight-only int8 kernel can take the layer's own codes."""
    return (
        layer.packed
        and layer.values == "int8"
        and layer.spec.geometry is None
        and layer.spec.dtype == torch.bfloat16
        and layer.spec.cols % Int8Linear.MULTIPLE == 0
        and torch_int8_works()
    )


def _live_of_packed(matrix: PackedMatrix, spec: LayerSpec) -> tuple[int, int]:
    """Rows and columns (of whole input channels) that keep anything."""
    if matrix.mask is None:
        return matrix.rows, matrix.cols
    mask = matrix.mask.numpy()
    bits = np.bitwise_or.reduce(mask, axis=0)
    cols = np.unpackbits(bits, count=matrix.cols // matrix.block, bitorder="little").repeat(matrix.block)
    width = 1 if spec.geometry is None else spec.geometry.kernel[0] * spec.geometry.kernel[1]
    return int(np.count_nonzero(mask.any(axis=1))), int(np.count_nonzero(cols.reshape(-1, width).any(axis=1))) * width
