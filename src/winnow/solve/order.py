"""The order in which the column loop settles its columns: inputs that matter most first, while most can make up for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.quantize import Grid


@dataclass(frozen=True)
class Order:
    """A permutation of the columns; ``columns[k]`` is settled k-th."""

    columns: torch.Tensor  # [C] int64
    whole: bool  # quantization groups are torn apart, so their scales must be fitted before the loop

    def __post_init__(self) -> None:
        assert bool((self.columns.sort().values == torch.arange(len(self.columns), device=self.columns.device)).all())


def by_activation(power: torch.Tensor, size: int | None = None) -> Order:
    """Columns by descending ``power`` [C] (the diagonal of the Gram matrix), the earlier first among equals.

    Column ordering by activation ("act-order", GPTQ's reference code, after arXiv 2210.17323). With ``size`` the runs of so
    many columns that share a scale stay together: runs by their mean power, columns by theirs inside, a shorter
    last run last. A scale is then fitted when the loop reaches its run, and lies where it would without an order.
    """
    cols = len(power)
    if size is None or size >= cols:
        return Order(power.argsort(descending=True, stable=True), whole=True)
    full = cols // size * size
    runs = power[:full].reshape(-1, size)
    order = runs.mean(1).argsort(descending=True, stable=True)
    inside = runs.argsort(dim=1, descending=True, stable=True)[order] + size * order[:, None]
    rest = power[full:].argsort(descending=True, stable=True) + full
    return Order(torch.cat([inside.flatten(), rest]), whole=False)


def orders(power: torch.Tensor, grid: Grid, *, pruned: bool) -> list[Order | None]:
    """The orders to round in, of which each row takes the one that leaves it the least error; None: as the columns lie.

    Nothing pruned (GPTQ): groups kept together, and torn apart with scales fitted before; which is better depends on the
    layer. On a mask that is settled an order pays where some inputs are far larger than others, and else not: as the columns lie,
    or groups together. A mask chosen inside the loop keeps the columns as they lie: it comes out worse by activation.
    """
    together = by_activation(power, grid.group)
    if pruned:
        return [None, together]
    return [together] if together.whole else [together, by_activation(power)]
