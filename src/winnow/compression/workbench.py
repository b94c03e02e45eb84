"""The dense model with its data, and what is computed from them once for all candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from winnow.compression.counts import allocation_needs_data, dense_statistics, per_tensor, plain_scores
from winnow.compression.hosts import Host
from winnow.compression.recipe import Recipe
from winnow.compression.sizes import dense_layout
from winnow.errors import InputError
from winnow.formats.shards import Layout
from winnow.masks.prunable import Scope
from winnow.masks.structure import Coupled

Progress = Callable[[int, int, str], None]


class Workbench:
    """A model to prune again and again, what is prunable in it, and calibration batches."""

    def __init__(
        self, host: Host, scope: Scope, batches: Sequence[Any], progress: Callable[[str], Progress] | None = None
    ) -> None:
        self.host, self.scope, self.batches, self._progress = host, scope, batches, progress

    def progress(self, stage: str) -> Progress | None:
        return self._progress(stage) if self._progress else None

    def counts(self, recipe: Recipe) -> dict[str, int]:
        """How many weights each tensor loses; walks the dense model first where the allocation reads activations."""
        if recipe.zeros == 0:
            return dict.fromkeys(self.scope.prunables, 0)
        stats = self.statistics if allocation_needs_data(recipe) and self.batches else None
        return per_tensor(recipe, self.host, self.scope, stats)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Input norms of the dense model, which is put back first."""
        self.host.restore(self.scope)
        progress = self.progress("statistics of the dense model")
        return dense_statistics(self.host, self.scope, self.batches, progress)

    @cached_property
    def layout(self) -> Layout:
        """The tensors that stay dense, without their values."""
        return dense_layout(self.host, self.scope)


def coupled_masks(bench: Workbench, recipe: Recipe) -> tuple[dict[str, torch.Tensor] | None, dict[str, torch.Tensor]]:
    """Keep masks of the chosen units, and the biases that change with them; None for other structures.

    Units are found by probing one calibration batch, ranked over the whole model by the sum of their weights' scores
    (with calibration data by FLAP's fluctuation), and taken whole until the budget is met to one unit. Biases of
    removed rows become zero; what a removed input contributed on average moves into the consumer's bias.

    Raises:
        InputError: there is no batch to probe with, the model is streamed, or it has no such units.
    """
    if not isinstance(recipe.pattern, Coupled):
        return None, {}
    from winnow.coupled.find import find_coupled_units
    from winnow.coupled.select import compensate, matrices, score_units, select_units
    from winnow.coupled.unit import unit_masks, zero_biases

    host, scope, unit = bench.host, bench.scope, recipe.pattern.unit
    if not bench.batches:
        raise InputError(f"--structure {unit} finds its units by running the model: give --data.")
    if host.streamed:
        raise InputError(f"--structure {unit} needs the whole model in memory: leave out --ram.")
    units = find_coupled_units(host.model, scope, bench.batches[0], unit)
    if not units:
        raise InputError(f"no {unit} that can be removed was found in this model: choose another --structure.")
    weights, stats = matrices(host.model, scope), bench.statistics
    if recipe.method == "magnitude" and recipe.score == "magnitude":
        ranked = score_units(units, {}, "flap", stats=stats, weights=weights)
    else:
        scores = {n: plain_scores(recipe, scope.prunables[n], w) for n, w in weights.items()}
        ranked = score_units(units, scores, "sum")
    selection = select_units(units, ranked, recipe.zeros, scope)
    compensated = compensate(units, selection.chosen, weights, stats)
    deltas = {n: d for n, d in compensated.items() if d is not None}  # a consumer without a bias has none
    names = {entry.name for i in selection.chosen for entry in units[i].biases} | deltas.keys()
    extra = {n: host.model.get_parameter(n).detach().clone() for n in sorted(names)}
    for name, delta in deltas.items():
        extra[name] += delta.to(extra[name].dtype)
    extra.update(zero_biases(units, selection.chosen, extra))
    return unit_masks(units, selection.chosen, scope), extra
