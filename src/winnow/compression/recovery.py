"""What makes up for removed weights beyond solving each layer: blocks fitted as a whole, or the whole model trained."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import nn

from winnow.calibrate.walk_units import WalkUnit
from winnow.compression.fields import RecipeFields
from winnow.errors import InputError, meant
from winnow.fcpts.method import FCPTS
from winnow.fcpts.settings import FcptsSettings
from winnow.inputs import InputStats
from winnow.masks.prunable import Prunable
from winnow.masks.structure import Coupled
from winnow.quantize import Grid, round_to_nearest
from winnow.settings import read_settings
from winnow.solve import NAMES, Chain, Solution, parse_solver
from winnow.solve.reconstruct import Calls, Fit, Reconstruction
from winnow.solve.settings import ReconstructSettings
from winnow.train.distil.fit import Distil, Fitted
from winnow.train.distil.settings import DistilSettings

Masks = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]  # keep masks, and biases that change with them, by name


class Recovery:
    """Nothing beyond the solvers of single layers. To add another: a class here, and its line in ``RECOVERIES``."""

    by_block: ClassVar[bool] = False  # fits each block as a whole, right after its layers are solved
    trains: ClassVar[bool] = False  # fits the whole model in memory, before anything is packed
    allocates: ClassVar[bool] = False  # training decides how many weights each layer loses
    alone: ClassVar[bool] = False  # no layer solver comes before it
    settings: ClassVar[type[BaseModel] | None] = None  # with steps and batch, if there are any
    train: Callable[..., Fitted]  # where ``trains``: see Distillation
    fit_block: Callable[..., FittedBlock]  # where ``by_block``: see ReconstructBlocks
    # Fields of the recipe that change only what happens after training: one training serves all their values.
    after: ClassVar[tuple[str, ...]] = ("values", "group_size", "recalibrate", "damp", "sequential")

    @property
    def needs_data(self) -> bool:
        return self.by_block or self.trains

    def settings_of(self, recipe: RecipeFields) -> Any:
        """The recipe's settings, checked. Raises InputError: one is unknown or out of range."""
        assert self.settings is not None
        return read_settings(self.settings, recipe.settings, recipe.method)

    def follows_dense(self, recipe: RecipeFields) -> bool:
        """Whether blocks are fitted to the dense model's outputs, and so its hidden states are kept as well."""
        return False


@dataclass
class FittedBlock:
    """A block after its fit."""

    solutions: list[tuple[Prunable, Solution]]  # ``error``: squared output error over the target's power, held out
    extra: dict[str, torch.Tensor]  # biases, norms and statistics that changed, by name in the model, float32
    improved: bool  # on held-out calls over the masks alone; if not, the solutions are the masks' own values


class ReconstructBlocks(Recovery):
    """``reconstruct``: each block fitted to the outputs of the dense one."""

    by_block, settings = True, ReconstructSettings

    def follows_dense(self, recipe: RecipeFields) -> bool:
        return self.settings_of(recipe).target == "dense"

    def settings_of(self, recipe: RecipeFields) -> ReconstructSettings:
        """Raises InputError also for structures that remove whole units."""
        if isinstance(recipe.pattern, Coupled):
            raise InputError(
                f"--solver reconstruct fits biases that --structure {recipe.pattern} sets to zero: choose another solver, or "
                "--method distil."
            )
        return super().settings_of(recipe)

    def fit_block(
        self,
        recipe: RecipeFields,
        unit: WalkUnit,
        solutions: list[tuple[Prunable, Solution]],
        stats: Mapping[str, list[InputStats]],
        calls: Calls,
        grid: Grid | None,
        **options: Any,
    ) -> FittedBlock:
        """Fits one block from the solutions of its layers, which are in the model.

        Args:
            grid: the remaining weights are rounded to it after the fit.
            options: ``statistics`` (batch norms inside the block are estimated again) and ``progress``.
        """
        prefix = f"{unit.path}." if unit.path else ""
        fit: Fit = Reconstruction(
            unit.module, {p.name.removeprefix(prefix): (p, s.keep) for p, s in solutions}, calls, self.settings_of(recipe),
            seed=recipe.seed + zlib.crc32(unit.path.encode()), where=unit.path or "the model", **options,
        ).run()  # fmt: skip
        found = []
        for p, solution in solutions:
            weight = p.matrix(fit.tensors.pop(p.name.removeprefix(prefix))) + 0.0  # no negative zeros
            quantized = None
            if grid is not None and grid.holds(weight, solution.keep):
                seen = stats.get(p.name, [])
                importance = seen[0].sum_sq if len(seen) == 1 and seen[0].tokens else None
                quantized = round_to_nearest(weight, grid, solution.keep, importance)
                weight = quantized.dequantize()
            error: float | None = fit.after if len(calls) else None
            found.append((p, replace(solution, weight=weight, quantized=quantized, error=error)))
        extra = {f"{prefix}{name}": tensor for name, tensor in fit.tensors.items()}
        return FittedBlock(found, extra, fit.gained or not len(calls))


class Distillation(Recovery):
    """``distil``: the whole model fitted to the dense one's outputs under fixed masks."""

    trains, alone, settings = True, True, DistilSettings

    def train(
        self, recipe: RecipeFields, model: nn.Module, batches: Sequence[Any], masks: Callable[[], Masks], **common: Any
    ) -> Fitted:
        """Trains ``model`` in place.

        Args:
            masks: computes the keep masks of the recipe's score and allocation; leaves the model dense.
            common: the scope, the folder of checkpoints and the progress, as :meth:`Distil.fit` takes them.
        """
        keeps, biases = masks()
        return Distil(self.settings_of(recipe), time=recipe.time, seed=recipe.seed).fit(
            model, batches, keeps, method=recipe.method, allocation=recipe.allocation, structure=recipe.structure, before=biases, **common
        )  # fmt: skip


class LearnedAllocation(Recovery):
    """``allocation="learned"``: masks and weights trained together (FCPTS); its masks serve any solver."""

    trains, allocates, settings = True, True, FcptsSettings
    after = (*Recovery.after, "method", "score", "group", "solver")

    def train(
        self, recipe: RecipeFields, model: nn.Module, batches: Sequence[Any], masks: Callable[[], Masks], **common: Any
    ) -> Fitted:
        settings = self.settings_of(recipe)
        method = FCPTS(settings, structure=recipe.structure, time=recipe.time, table=recipe.table, seed=recipe.seed)
        return method.fit(model, batches, recipe.zeros, **common)


RECOVERIES: dict[str, Recovery] = {"reconstruct": ReconstructBlocks(), "distil": Distillation()}  # by name as a solver
LEARNED, NO_RECOVERY, LEARNED_ALLOCATION = "learned", Recovery(), LearnedAllocation()


@cache
def parse_recovery(solver: str) -> tuple[Chain, Recovery]:
    """The layer solvers and the recovery in a text such as ``"sparsegpt"``, ``"lsq+reconstruct"`` or ``"distil"``.

    Raises:
        InputError: a name is unknown, or stands where it can do nothing.
    """
    names = [name.strip() for name in solver.split("+")]
    for place, name in enumerate(names, 1):
        if name not in NAMES and name not in RECOVERIES:
            raise InputError(
                f"unknown solver {name!r}{meant(name, (*NAMES, *RECOVERIES))}: "
                f"choose from {', '.join([*NAMES, *RECOVERIES])}, joined with '+'"
            )
        if name in RECOVERIES and RECOVERIES[name].alone and len(names) > 1:
            raise InputError(f"{name} trains all remaining weights by itself: give it as the only solver.")
        if name in RECOVERIES and place < len(names):
            raise InputError(f"{name!r} runs after all other solvers: put it last in {solver!r}")
    recovery = RECOVERIES.get(names[-1])
    if recovery is None:
        return parse_solver(solver), NO_RECOVERY
    return parse_solver("+".join(names[:-1]) or "none"), recovery


def fitting_of(solver: str, allocation: str) -> Recovery:
    """Who reads the settings of a recipe: the training of a learned allocation, else the solver's own recovery."""
    return LEARNED_ALLOCATION if allocation == LEARNED else parse_recovery(solver)[1]
