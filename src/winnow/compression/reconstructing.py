"""The solver ``reconstruct`` inside a run: masks and start values by the recipe, then the unit fitted as a whole."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from winnow.calibrate.walk_units import WalkUnit
from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.masks.structure import Coupled, parse_structure
from winnow.quantize import Grid, round_to_nearest
from winnow.settings import read_settings
from winnow.solve import Solution, before_units
from winnow.solve.reconstruct import Calls, Fit, Reconstruction
from winnow.solve.settings import ReconstructSettings

if TYPE_CHECKING:
    from winnow.compression.recipe import Recipe
    from winnow.masks.prunable import Prunable


def settings_of(recipe: Recipe) -> ReconstructSettings:
    """The checked settings of a recipe that reconstructs.

    Raises:
        InputError: a setting is unknown or out of range, or the structure takes whole units.
    """
    structure = parse_structure(recipe.structure)
    if isinstance(structure, Coupled):
        raise InputError(
            f"--solver reconstruct fits biases that --structure {structure.unit} sets to zero: choose another solver, or "
            "--method distil."
        )
    return read_settings(ReconstructSettings, recipe.settings, recipe.method)


def masking(recipe: Recipe) -> Recipe:
    """The recipe of what comes before the fit: it chooses the masks, and rounds nothing yet."""
    return recipe.model_copy(update=dict(solver=before_units(recipe.solver), values="keep"))


def fit_unit(
    unit: WalkUnit,
    solutions: list[tuple[Prunable, Solution]],
    stats: dict[str, list[InputStats]],
    calls: Calls,
    recipe: Recipe,
    grid: Grid | None,
    *,
    put: Callable[[Prunable, torch.Tensor], None],
    statistics: bool,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[Prunable, Solution]], dict[str, torch.Tensor], bool]:
    """Fits one unit from the solutions of its layers.

    Args:
        put: writes a matrix into the model, so that the fit starts from what the solver before it found.
        grid: the weights that stay are rounded to it after the fit.
        statistics: batch norms inside the unit are estimated anew.

    Returns:
        new solutions, whose ``error`` is the unit's squared output error over the power of its target on the calls held out,
        and what changed beside them (biases, norms, batch-norm statistics) by name in the model, float32;
        and whether the fit beat the mask alone there (if not, the mask's own values are what comes back).
    """
    start = len(unit.path) + 1 if unit.path else 0
    for p, solution in solutions:
        put(p, solution.weight)
    fit: Fit = Reconstruction(
        unit.module, {p.name[start:]: (p, s.keep) for p, s in solutions}, calls, settings_of(recipe), statistics=statistics,
        seed=recipe.seed + zlib.crc32(unit.path.encode()), where=unit.path or "the model", progress=progress,
    ).run()  # fmt: skip
    found = []
    for p, solution in solutions:
        weight = p.matrix(fit.tensors.pop(p.name[start:])) + 0.0  # no negative zeros
        quantized = None
        if grid is not None and grid.holds(weight, solution.keep):
            seen = stats.get(p.name, [])
            importance = seen[0].sum_sq if len(seen) == 1 and seen[0].tokens else None
            quantized = round_to_nearest(weight, grid, solution.keep, importance)
            weight = quantized.dequantize()
        error: float | None = fit.after if len(calls) else None
        found.append((p, replace(solution, weight=weight, quantized=quantized, error=error)))
    prefix = f"{unit.path}." if unit.path else ""
    return found, {f"{prefix}{name}": tensor for name, tensor in fit.tensors.items()}, fit.gained or not len(calls)
