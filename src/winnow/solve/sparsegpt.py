"""SparseGPT: prune (and round) column by column, letting the columns to the right make up for each error."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.errors import InputError
from winnow.masks.ranking import lowest, lowest_of_groups, lowest_per_row
from winnow.masks.structure import NM, Group, Structure, Unstructured, select
from winnow.quantize import Grid, Quantized
from winnow.solve.factor import Factor
from winnow.solve.order import Order

BLOCK = 32  # columns whose mask is chosen together
_LAZY = 128  # columns after which the rest of the matrix is brought up to date
_PANEL = 32  # columns eliminated one by one, with matrix-vector products


@dataclass(frozen=True)
class Band:
    """Rows of one layer in a stack of layers that share an input, and how many of their weights go."""

    rows: slice
    zeros: int


def sparsegpt(
    weight: torch.Tensor,
    factor: Factor,
    bands: list[Band],
    structure: Structure,
    group: Group = "layer",
    keep: torch.Tensor | None = None,
    grid: Grid | None = None,
    block: int = BLOCK,
    order: Order | None = None,
) -> tuple[torch.Tensor, torch.Tensor, Quantized | None]:
    """Prune the stacked rows ``weight`` [R, C]; returns (weight [R, C], keep [R, C], codes and scales with a grid).

    Frantar & Alistarh 2023 (arXiv 2301.00774, algorithm 1), in the feedback form of the same recursion: with the
    damped H = R R^T, R = V diag(pivot) upper triangular, and the change d = w0 - w_final, the value of column j
    when all columns to its left are final is w0_j + sum_{i<j} d_i V_ij, and removing it costs (w_j pivot_j)^2
    (= w_j^2 / [H^-1]_jj of the columns not yet settled). Quantizing without pruning is GPTQ (arXiv 2210.17323).

    * Unstructured: the lowest costs of each ``block`` of columns go, all rows competing (``group`` "row": within
      each row), by the weights as they are by then. How many go in a block is what a ranking of the whole band by
      the costs at the start gives it; the paper takes equally many of every block.
    * n:m: chosen at every m-th column from the weights as they are by then.
    * Blocks of r x c: chosen before the loop from the cost summed over each block.
    * ``keep`` given: that mask is held and only the values change.

    Weights that are zero already go first, then weights of inputs that were never active. ``grid`` rounds the kept
    values inside the loop; a group's scales are fitted when the loop reaches it, to the weights as they are by then.

    With an ``order`` (for masks that are given, or zeros nowhere) the columns are settled in it, and ``factor`` is of
    the Gram matrix in that order. Where it tears groups apart their scales are fitted to the weights at the start
    (GPTQ's "static groups"). Everything comes back in the order in which the columns lie.
    """
    loop = _Loop(weight, factor, bands, structure, group, keep, grid, block, order)
    loop.run(0, weight.shape[1], loop.levels)
    quantized = None
    if grid is not None:
        assert loop.codes is not None and loop.scales is not None
        quantized = Quantized(loop.in_layer_order(loop.codes), loop.scales.t().contiguous(), grid.bits, grid.group)
    return loop.in_layer_order(loop.work), loop.in_layer_order(loop.keep), quantized


class _Loop:
    """The column loop. Everything is held transposed, [C, R], so that a column of the layer is one run of memory."""

    def __init__(
        self,
        weight: torch.Tensor,
        factor: Factor,
        bands: list[Band],
        structure: Structure,
        group: Group,
        keep: torch.Tensor | None,
        grid: Grid | None,
        block: int,
        order: Order | None,
    ) -> None:
        cols = weight.shape[1]
        self.factor, self.bands, self.structure, self.group, self.grid = factor, bands, structure, group, grid
        self.columns = None if order is None else order.columns
        if order is not None:
            weight, keep = weight[:, order.columns], None if keep is None else keep[:, order.columns]
        self.delta = weight.t().clone(memory_format=torch.contiguous_format)  # w0; w0 - w_final once a column is final
        self.work = self.delta.clone()  # w0 + the feedback so far; w_final once a column is final
        zero = self.work == 0
        self.zero = zero if keep is None and bool(zero.any()) else None
        self.chosen = keep is not None or not isinstance(structure, Unstructured | NM)
        # Not yet chosen, the mask is the one that today's costs give: it says how many go in each block of columns.
        mask = self._by_cost_now(weight) if keep is None else keep
        self.keep = mask.t().clone(memory_format=torch.contiguous_format)
        self.codes = self.scales = None
        self.step = cols if grid is None else grid.size(cols)
        if grid is not None:
            self.codes = torch.empty_like(self.work, dtype=torch.int8)
            self.scales = self.work.new_empty((grid.groups(cols), weight.shape[0]), dtype=grid.scale_dtype)
            self.group_of = torch.arange(cols, device=weight.device) // self.step
            self.group_of = self.group_of if self.columns is None else self.group_of[self.columns]
        # Whether all scales are fitted at the start.
        self.fitted = grid is not None and (self.step >= cols or (order is not None and order.whole))
        if self.fitted:
            for of in range(grid.groups(cols)) if grid is not None else ():
                self._fit((self.group_of == of).nonzero().squeeze(1), self.delta)
        self.levels = self._levels(block)

    def _levels(self, block: int) -> list[int]:
        """Sizes of nested runs of columns, largest first; sets the sizes at which the mask is chosen."""
        unit = self.structure.m if isinstance(self.structure, NM) and not self.chosen else 1
        group = None if self.grid is None or self.fitted else self.step
        if group is not None and group % unit:
            raise InputError(
                f"{self.structure} does not divide the quantization group of {group}: use a multiple of {unit}"
            )

        def fitted(size: int) -> int:
            step = group if group is not None and size > group else unit
            return max(size // step, 1) * step

        chosen = fitted(block)
        outer, lazy = max(chosen, group or 1), max(_LAZY // chosen, 1) * chosen
        sizes = {max(_LAZY // outer, 1) * outer, chosen, fitted(_PANEL), unit, group or unit}
        if group is not None and lazy < group:
            sizes.add(lazy)
        self.choices: set[int] = set()
        if isinstance(self.structure, NM) and not self.chosen:
            # Also at the start of each quantization group, where the fit needs a first idea of the mask.
            self.choices = {unit, group or unit}
        elif not self.chosen:
            self.choices = {chosen}
        return sorted((size for size in sizes if size > 1 or size in self.choices or size == group), reverse=True)

    def run(self, start: int, stop: int, levels: list[int]) -> None:
        """Settle the columns ``start`` to ``stop``, which already know of every error to their left."""
        if not levels:
            self._columns(start, stop)
            return
        for low in range(start, stop, levels[0]):
            high = min(low + levels[0], stop)
            if levels[0] in self.choices:
                self._choose(low, high)
            if self.grid is not None and not self.fitted and levels[0] == self.step:
                self._fit(torch.arange(low, high, device=self.work.device), self._current(low, high))
            self.run(low, high, levels[1:])
            if high < stop:
                feedback = self.factor.upper[low:high, high:stop].t()
                self.work[high:stop].addmm_(feedback, self.delta[low:high])

    def _columns(self, start: int, stop: int) -> None:
        """The recursion itself. Few and in-place operations: their number bounds the speed on narrow layers."""
        feedback = self.factor.upper[start:stop, start:stop].t().contiguous().unbind(0)
        kept = self.keep[start:stop].to(self.work.dtype).unbind(0)
        work, delta = self.work[start:stop].unbind(0), self.delta[start:stop].unbind(0)
        settled = self.delta[start:stop].t()
        if self.grid is not None:
            assert self.codes is not None and self.scales is not None
            codes = self.codes[start:stop].unbind(0)
            scale = self.scales[self.group_of[start:stop]].to(self.work.dtype)
            inverse = torch.where(scale != 0, 1 / scale, 0.0)
        for j, row in enumerate(work):
            if j:
                row.addmv_(settled[:, :j], feedback[j][:j])
            row.mul_(kept[j])
            if self.grid is not None:
                row.mul_(inverse[j]).round_().clamp_(self.grid.low, self.grid.high)
                codes[j].copy_(row)
                row.mul_(scale[j])
            delta[j].sub_(row)

    def _current(self, start: int, stop: int) -> torch.Tensor:
        """The weights [columns, R] as they are by now, all errors to the left of ``start`` made up for.

        ``work`` lacks what these columns owe to each other: if none of them adds an error of its own, their changes
        d solve d_j = -(w_j - w0_j) - sum_i d_i V_ij over the columns i between ``start`` and j.
        """
        dense = self.delta[start:stop]
        if start == 0:
            return dense
        within = self.factor.upper[start:stop, start:stop].t()
        owed = self.work[start:stop] - dense
        return torch.linalg.solve_triangular(within, owed, upper=False, unitriangular=True).add_(dense)

    def _cost(self, start: int, stop: int) -> torch.Tensor:
        """Square root of the cost of removing each weight now, [columns, R]; minus infinity where already zero."""
        pivot = self.factor.pivot.masked_fill(self.factor.dead, 0.0)[start:stop, None]
        cost = (self._current(start, stop) * pivot).abs_()
        return cost if self.zero is None else cost.masked_fill_(self.zero[start:stop], -torch.inf)

    def _by_cost_now(self, weight: torch.Tensor) -> torch.Tensor:
        """The mask [R, C] of the structure by today's costs, before any column is settled."""
        cost = self._cost(0, weight.shape[1]).t().clamp_min(0)
        if self.chosen:
            cost = cost.square()  # costs add up over a block, their roots do not
        parts = [select(cost[b.rows], b.zeros, self.structure, self.group, weight[b.rows]) for b in self.bands]
        return torch.cat(parts)

    def _choose(self, start: int, stop: int) -> None:
        """Choose the mask of these columns, as many a block as before, by the weights as they are by now."""
        cost = self._cost(start, stop).t()
        if isinstance(self.structure, NM):
            drop = lowest_of_groups(cost.reshape(-1, self.structure.m), self.structure.m - self.structure.n)
            self.keep[start:stop] = drop.logical_not_().reshape(-1, stop - start).t()
            return
        for band in self.bands:
            pruned = ~self.keep[start:stop, band.rows]
            scores = cost[band.rows]
            drop = (
                lowest(scores, int(pruned.sum())) if self.group == "layer" else _lowest_in_rows(scores, pruned.sum(0))
            )
            self.keep[start:stop, band.rows] = drop.logical_not_().t()

    def _fit(self, places: torch.Tensor, values: torch.Tensor) -> None:
        """Scales of the quantization group at these places of the loop; ``values`` [C, R], or [places, R]."""
        assert self.grid is not None and self.scales is not None
        values = (values if len(values) == len(places) else values[places]).t().contiguous()
        whole = Grid(self.grid.bits, None, self.grid.scale_dtype, self.grid.search)
        # An error in column j costs pivot_j^2 once the columns to its right have made up for what they can.
        importance = self.factor.pivot[places].square()
        of = int(self.group_of[places[0]])
        self.scales[of] = whole.fit(values, self.keep[places].t(), importance).squeeze(1)

    def in_layer_order(self, found: torch.Tensor) -> torch.Tensor:
        """Something [C, R] of the loop as [R, C], its columns where they lie in the layer."""
        if self.columns is None:
            return found.t().contiguous()
        result = found.new_empty((found.shape[1], found.shape[0]))
        result[:, self.columns] = found.t()
        return result


def _lowest_in_rows(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """True at the ``counts`` [R] lowest entries of each row of ``scores`` [R, B]; ties go by index."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero().squeeze(1)
        chosen[rows] = lowest_per_row(scores[rows], count * len(rows))
    return chosen
