"""What is compared: the dense model, plain quantization, and the pruned model in every requested data type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from winnow.compression.options import Values
from winnow.compression.recipe import Recipe
from winnow.masks.structure import NM, Unstructured

Kind = Literal["dense", "quantized", "pruned", "pruned+quantized"]
ROUNDING = "sparsegpt"  # the solver that rounds inside its loop, also on a fixed mask
VALUES: tuple[Values, ...] = ("keep", "int8", "int4")  # that pruned models are compared in
PLAIN: tuple[tuple[Values, int | None], ...] = (("int8", None), ("int4", 128), ("int4", 32))  # and their group sizes


@dataclass(frozen=True)
class Candidate:
    """One model to make and to measure. The dense one has no recipe."""

    name: str
    kind: Kind
    recipe: Recipe | None = None
    everything: bool = False  # a baseline that quantizes all matrices, where the requested recipe leaves some alone

    @property
    def label(self) -> str:
        """How a person reads it."""
        if self.recipe is None:
            return "dense"
        values = _values(self.recipe, " ")
        if self.kind == "quantized":
            plain = f"{values} {'GPTQ' if self.recipe.solver == 'sparsegpt' else 'RTN'}"
            return f"{plain}, embeddings too" if self.everything else plain
        pattern = "" if isinstance(self.recipe.pattern, Unstructured) else f" {self.recipe.structure}"
        return " + ".join(filter(None, (f"{100 * self.recipe.sparsity:.4g}%{pattern} sparsity", values)))


def primary(recipe: Recipe) -> Candidate:
    """The candidate that was requested."""
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


def baselines(recipes: Sequence[Recipe], level: str, *, has_data: bool, embeddings: bool = False) -> list[Candidate]:
    """What the primaries are measured against.

    All are made with the primaries' ``rest``: what is not pruned is stored alike in every row. ``embeddings``: these are a
    large part of the dense file, so that one more row shows what stock tools give, int8 by rounding of *all* matrices
    (ONNX Runtime's ``quantize_dynamic`` takes the weights of MatMul and of Gather, that is of linear layers, output layer and
    embeddings) - unless ``rest`` is int8 already, when plain int8 is just that.

    Args:
        recipes: the primaries' recipes, one per sparsity.
        level: "none"; "rtn" (plain round-to-nearest only: seconds); "all" (GPTQ and pruned + int8 / int4 too).
        has_data: GPTQ and solved candidates need calibration data.
    """
    if level == "none":
        return []
    base = recipes[0]
    found = []
    for solver, suffix in (("none", "rtn"), ("sparsegpt", "gptq")):
        if suffix == "gptq" and (level != "all" or not has_data):
            continue
        for values, group in PLAIN:
            update = dict(
                method=suffix, score="magnitude", allocation="uniform", structure="unstructured", solver=solver, values=values,
                group_size=group or base.group_size, sparsity=0.0, zeros=0, table=None, settings={}, time=None,
            )  # fmt: skip
            plain = f"{values}-g{group}" if group else values
            found.append(Candidate(f"{plain}-{suffix}", "quantized", base.model_copy(update=update)))
    if embeddings and base.rest != "int8" and found:
        everything = found[0].recipe
        assert everything is not None
        everything = everything.model_copy(update=dict(rest="int8"))
        found.insert(1, Candidate("int8-all-rtn", "quantized", everything, everything=True))
    if level == "all":
        pruned = [(r, values) for r in recipes if r.zeros for values in VALUES if values != r.values]
        found += [primary(at_values(r, values, has_data=has_data)) for r, values in pruned]
    return found


def _name(recipe: Recipe) -> str:
    pattern = recipe.structure.replace(":", "of" if isinstance(recipe.pattern, NM) else "")
    shown = "" if isinstance(recipe.pattern, Unstructured) else pattern
    return "-".join(filter(None, (f"s{100 * recipe.sparsity:.4g}", shown, _values(recipe, "-"))))


def _values(recipe: Recipe, separator: str) -> str:
    """The data type with its group size; nothing where values keep theirs."""
    group = f"{separator}g{recipe.group_size}" if recipe.values == "int4" else ""
    return "" if recipe.values == "keep" else recipe.values + group
