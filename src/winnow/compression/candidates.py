"""What is compared: the dense model, plain quantization, and the pruned model in every value type asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from winnow.compression.recipe import Recipe, Values
from winnow.errors import InputError

Kind = Literal["dense", "quantized", "pruned", "pruned+quantized"]
ROUNDING = "sparsegpt"  # the solver that rounds inside its loop, also on a mask that is given
VALUES: tuple[Values, ...] = ("keep", "int8", "int4")  # that pruned models are compared in
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


def at_values(recipe: Recipe, values: Values, *, has_data: bool) -> Recipe:
    """The recipe in another value type.

    Where ``method`` "zeros" leaves all weights as they are, rounding them is the only loss there is: with calibration data
    they are rounded by SparseGPT's loop on the fixed mask (GPTQ). Batch norms keep the statistics that the model was
    trained with, in every value type: so little changes that a new estimate from a few examples moves the answers more.
    """
    update: dict[str, Any] = dict(values=values)
    if recipe.method == "zeros" and recipe.solver in ("none", ROUNDING):
        update["solver"] = ROUNDING if values in ("int8", "int4") and has_data else "none"
    return recipe.model_copy(update=update)


def rounded(recipe: Recipe) -> str | None:
    """How the values of a sparse model that is packed as it is are rounded, in a sentence; None where they are kept."""
    if recipe.values not in ("int8", "int4"):
        return None
    if recipe.solver == ROUNDING:
        return f"values {recipe.values}: rounded by GPTQ on calibration data, every zero where it was."
    return (
        f"values {recipe.values}: rounded to nearest, as there is no calibration data; with --data the loss is smaller."
    )


def baselines(recipes: Sequence[Recipe], level: str, *, has_data: bool) -> list[Candidate]:
    """What the primaries are measured against.

    Args:
        recipes: the primaries' recipes, one per sparsity.
        level: "none"; "rtn" (plain round-to-nearest only: seconds); "all" (GPTQ and pruned + int8 / int4 too).
        has_data: GPTQ and solved candidates need calibration data.
    """
    if level not in ("none", "rtn", "all"):
        raise InputError(f"--baselines {level!r} is not known: choose all, rtn or none.")
    if level == "none":
        return []
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
            for values in VALUES:
                if values != recipe.values and recipe.zeros:
                    found.append(primary(at_values(recipe, values, has_data=has_data)))
    return found


def _name(recipe: Recipe) -> str:
    structure = (
        ""
        if recipe.structure == "unstructured"
        else "-" + recipe.structure.replace(":", "of" if recipe.structure[0].isdigit() else "")
    )
    values = {"keep": "", "bf16": "-bf16", "int8": "-int8", "int4": f"-int4-g{recipe.group_size}"}[recipe.values]
    return f"s{100 * recipe.sparsity:.4g}{structure}{values}"
