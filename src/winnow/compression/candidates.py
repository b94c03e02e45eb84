"""What is compared: the dense model, plain quantization, and the pruned model in every value type asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from winnow.errors import InputError
from winnow.run.recipe import Recipe

Kind = Literal["dense", "quantized", "pruned", "pruned+quantized"]
PLAIN = ("int8", "int4-g128", "int4-g32")  # value types of plain quantization, by how they are stored


@dataclass(frozen=True)
class Candidate:
    """One model to make and to measure. The dense one has no recipe."""

    name: str
    kind: Kind
    recipe: Recipe | None = None

    @property
    def label(self) -> str:
        """How a person reads it."""
        if self.recipe is None:
            return "dense"
        values = {"keep": "", "bf16": "bf16", "int8": "int8", "int4": f"int4 g{self.recipe.group_size}"}[
            self.recipe.values
        ]
        if self.kind == "quantized":
            return f"{values} {'GPTQ' if self.recipe.solver == 'sparsegpt' else 'RTN'}"
        pattern = "" if self.recipe.structure == "unstructured" else f" {self.recipe.structure}"
        return " + ".join(filter(None, (f"{100 * self.recipe.sparsity:.4g}\u00a0%{pattern} zeros", values)))


def primary(recipe: Recipe) -> Candidate:
    """The candidate the user asked for."""
    kind: Kind = "pruned" if recipe.values in ("keep", "bf16") else "pruned+quantized"
    if recipe.zeros == 0 and recipe.values in ("int8", "int4"):
        kind = "quantized"
    return Candidate(_name(recipe), kind, recipe)


def baselines(
    recipes: Sequence[Recipe], level: str, *, has_data: bool, recalibrate: bool | None = None
) -> list[Candidate]:
    """What the primaries are measured against.

    Args:
        recipes: the primaries' recipes, one per sparsity.
        level: "none"; "rtn" (plain round-to-nearest only: seconds); "all" (GPTQ and pruned + int8 / int4 too).
        has_data: GPTQ and solved candidates need calibration data.
        recalibrate: whether batch norms are estimated anew; None: as for the primaries.
    """
    if level not in ("none", "rtn", "all"):
        raise InputError(f"--baselines {level!r} is not known: choose all, rtn or none.")
    if level == "none":
        return []
    if recalibrate is not None:
        recipes = [r.model_copy(update=dict(recalibrate=recalibrate)) for r in recipes]
    base = recipes[0]
    found = []
    for solver, suffix in (("none", "rtn"), ("sparsegpt", "gptq")):
        if suffix == "gptq" and (level != "all" or not has_data):
            continue
        for plain in PLAIN:
            values, _, group = plain.partition("-g")
            update = dict(
                method=suffix, score="magnitude", allocation="uniform", structure="unstructured", solver=solver, values=values,
                group_size=int(group or base.group_size), sparsity=0.0, zeros=0, table=None, settings={}, time=None,
            )  # fmt: skip
            found.append(Candidate(f"{plain}-{suffix}", "quantized", base.model_copy(update=update)))
    if level == "all":
        for recipe in recipes:
            for values in ("keep", "int8", "int4"):
                if values != recipe.values and recipe.zeros:
                    other = recipe.model_copy(update=dict(values=values))
                    found.append(primary(other))
    return found


def _name(recipe: Recipe) -> str:
    structure = (
        ""
        if recipe.structure == "unstructured"
        else "-" + recipe.structure.replace(":", "of" if recipe.structure[0].isdigit() else "")
    )
    values = {"keep": "", "bf16": "-bf16", "int8": "-int8", "int4": f"-int4-g{recipe.group_size}"}[recipe.values]
    return f"s{100 * recipe.sparsity:.4g}{structure}{values}"
