"""Sparsity patterns: unstructured, n of m inputs kept, whole blocks, or coupled units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch

from winnow.errors import InputError, meant
from winnow.masks.ranking import comparable, lowest, lowest_of_groups, lowest_per_row

Unit = Literal["neuron", "head", "channel"]
Group = Literal["layer", "row"]


@dataclass(frozen=True)
class Unstructured:
    """Any weight can be removed."""

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NM:
    """n weights KEPT of every m consecutive inputs of a row."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise InputError(f"{self.n}:{self.m} keeps {self.n} of {self.m}: give n:m with 0 < n < m, such as 2:4")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class BlockShape:
    """Blocks of r rows by c columns are removed whole."""

    r: int
    c: int

    def __post_init__(self) -> None:
        if self.r < 1 or self.c < 1:
            raise InputError(
                f"a block of {self.r}x{self.c} holds no weight: give two positive sides, such as block:1x4"
            )

    def __str__(self) -> str:
        return f"block:{self.r}x{self.c}"


@dataclass(frozen=True)
class Coupled:
    """Whole units that several tensors share: an FFN neuron, an attention head (or KV group), a conv channel."""

    unit: Unit

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise InputError(f"unknown coupled unit {self.unit!r}: use one of {', '.join(get_args(Unit))}")

    def __str__(self) -> str:
        return self.unit


Structure = Unstructured | NM | BlockShape | Coupled


@cache
def parse_structure(text: str) -> Structure:
    """The structure a text names: ``unstructured``, ``2:4``, ``block:1x4``, ``neuron``, ``head`` or ``channel``.

    Raises InputError on anything else.
    """
    word = text.strip().lower()
    if word == "unstructured":
        return Unstructured()
    if word in get_args(Unit):
        return Coupled(word)  # type: ignore[arg-type]
    if found := re.fullmatch(r"(\d{1,4}):(\d{1,4})", word):
        return NM(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"block:(\d{1,6})x(\d{1,6})", word):
        return BlockShape(int(found[1]), int(found[2]))
    raise InputError(
        f"unknown structure {text!r}{meant(word, ('unstructured', *get_args(Unit)))}: use unstructured, n:m such as 2:4 (2 kept of 4), block:RxC such as block:1x4, "
        "neuron, head or channel"
    )


def within_tensor(structure: Structure) -> Structure:
    """What a structure is inside one tensor: coupled units are whole rows and columns, stored as unstructured."""
    return Unstructured() if isinstance(structure, Coupled) else structure


def unit_size(structure: Structure) -> int:
    """Weights that are removed together: those of a block, else one."""
    return structure.r * structure.c if isinstance(structure, BlockShape) else 1


def check(structure: Structure, rows: int, cols: int, name: str = "") -> None:
    """Raises InputError when ``structure`` does not tile a [rows, cols] matrix."""
    label = f"{name or 'a matrix'} of {rows} x {cols}"
    if isinstance(structure, NM) and cols % structure.m:
        raise InputError(
            f"{structure} needs a multiple of {structure.m} inputs, which {label} does not have: "
            "exclude that tensor or choose another structure"
        )
    if isinstance(structure, BlockShape) and (rows % structure.r or cols % structure.c):
        raise InputError(
            f"{structure} does not tile {label}: exclude that tensor or choose sides that divide its shape"
        )


def nearest_zeros(structure: Structure, numel: int, zeros: int, name: str = "the matrix") -> int:
    """The zero count that ``numel`` weights get when ``zeros`` are requested: the same, or the nearest whole unit.

    Unstructured: ``zeros``. Blocks: the nearest multiple of the block (half rounds down). n:m: the implied
    ``numel * (m - n) / m``, from which ``zeros`` may differ by at most one group.
    Raises InputError when the count is out of range or does not fit n:m, and for coupled units.
    """
    if not 0 <= zeros <= numel:
        raise InputError(f"{zeros} zeros do not fit {name} of {numel} weights: ask for 0 to {numel}")
    if isinstance(structure, NM):
        implied = numel // structure.m * (structure.m - structure.n)
        if abs(zeros - implied) > structure.m:
            raise InputError(
                f"{structure} leaves {implied} zeros in {name}, not {zeros}: "
                f"ask for sparsity {1 - structure.n / structure.m:g} or choose another structure"
            )
        return implied
    if isinstance(structure, BlockShape):
        area = unit_size(structure)
        return (2 * zeros + area - 1) // (2 * area) * area
    if isinstance(structure, Coupled):
        raise InputError(
            f"{structure} units are selected over the whole model, not matrix by matrix: use masks.coupled"
        )
    return zeros


def select(
    scores: torch.Tensor,
    zeros: int,
    structure: Structure,
    group: Group = "layer",
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which weights stay: bool [R, C], True where kept; the lowest ``scores`` [R, C] are removed.

    * Unstructured: exactly ``zeros`` are removed. ``group="row"`` gives every row floor or ceil of ``zeros / R`` (the first
      rows the extra one), ``"layer"`` ranks the whole matrix.
    * n:m: exactly n stay in each run of m columns; ``zeros`` must agree with that to one group.
    * Blocks: whole blocks by their mean absolute score, to the number of blocks nearest to ``zeros``;
      ``group="row"`` shares them over the bands of rows.

    Among equal scores the lowest flat index is removed first. With ``weight`` [R, C], weights that are already zero
    (blocks: all zero) are removed before any other.

    Raises InputError on NaN scores, a count that does not fit, or a structure that does not tile the matrix.
    """
    if scores.ndim != 2:
        raise InputError(f"scores must be a matrix [rows, cols], not of shape {tuple(scores.shape)}: reshape them")
    if weight is not None and weight.shape != scores.shape:
        raise InputError(
            f"weight {tuple(weight.shape)} and scores {tuple(scores.shape)} differ in shape: give the same matrix view"
        )
    rows, cols = scores.shape
    if group not in get_args(Group):
        raise InputError(f"unknown comparison group {group!r}: use layer or row")
    check(structure, rows, cols)
    zeros = nearest_zeros(structure, rows * cols, zeros)
    if not scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    ranked = _ranked(scores, structure, weight)
    if isinstance(structure, NM):
        drop = lowest_of_groups(ranked.reshape(-1, structure.m), structure.m - structure.n)
        return drop.logical_not().reshape(rows, cols)
    count = zeros // unit_size(structure)
    keep = (lowest(ranked, count) if group == "layer" else lowest_per_row(ranked, count)).logical_not_()
    if isinstance(structure, BlockShape):  # one decision per block as one per weight
        return keep.repeat_interleave(structure.r, dim=0).repeat_interleave(structure.c, dim=1)
    return keep


def _ranked(scores: torch.Tensor, structure: Structure, weight: torch.Tensor | None) -> torch.Tensor:
    """What is ranked: a score per weight or per block, minus infinity where the weights are already zero."""
    scores = comparable(scores)
    zero = None if weight is None else weight == 0
    if isinstance(structure, BlockShape):
        blocks = (scores.shape[0] // structure.r, structure.r, scores.shape[1] // structure.c, structure.c)
        scores = scores.abs().reshape(blocks).mean(dim=(1, 3), dtype=torch.float64).to(scores.dtype)
        zero = None if zero is None else zero.reshape(blocks).all(dim=3).all(dim=1)
    return scores if zero is None else scores.masked_fill(zero, -torch.inf)
