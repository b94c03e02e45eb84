"""Coupled units (FFN neurons, attention heads, conv channels) under the budget: chosen over the whole model."""

from __future__ import annotations

import torch

from winnow.compression.counts import layer_seed
from winnow.compression.recipe import Recipe
from winnow.compression.workbench import Workbench
from winnow.errors import InputError
from winnow.masks.structure import Coupled
from winnow.scores import needs_data, score


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
    weights = matrices(host.model, scope)
    stats = bench.statistics
    if recipe.method == "magnitude" and recipe.score == "magnitude":
        ranked = score_units(units, {}, "flap", stats=stats, weights=weights)
    else:
        name = recipe.score if not needs_data(recipe.score) else "magnitude"
        seeds = {n: layer_seed(recipe, scope.prunables[n]) for n in weights}
        scores = {n: score(name, w, None, seed=seeds[n]) for n, w in weights.items()}
        ranked = score_units(units, scores, "sum")
    selection = select_units(units, ranked, recipe.zeros, scope)
    deltas = compensate(units, selection.chosen, weights, stats)
    names = {entry.name for i in selection.chosen for entry in units[i].biases} | {
        n for n, d in deltas.items() if d is not None
    }
    extra = {n: host.model.get_parameter(n).detach().clone() for n in sorted(names)}
    for name, delta in deltas.items():
        if delta is not None:  # None: a consumer without a bias, which stays uncompensated
            extra[name] += delta.to(extra[name].dtype)
    extra.update(zero_biases(units, selection.chosen, extra))
    return unit_masks(units, selection.chosen, scope), extra
