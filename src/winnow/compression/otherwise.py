"""Notes on tensors that were not treated as the recipe says, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from winnow.words import listed

if TYPE_CHECKING:
    from winnow.compression.outcome import LayerOutcome
    from winnow.compression.recipe import Recipe

NAMED = 8  # tensors in a note; all of them are in the report's list of layers


def notes_of(recipe: Recipe, layers: Sequence[LayerOutcome]) -> list[str]:
    """A note for each kind of tensor that was not treated as the recipe says."""
    found = []
    if unseen := [x for x in layers if x.unseen]:  # the method stood without the inputs that it reads
        were, their, them = ("were", "theirs", "them") if len(unseen) > 1 else ("was", "its own", "it")
        instead = "pruned by magnitude" if any(x.zeros for x in unseen) else "rounded to nearest"
        names = [
            x.name
            if x.unseen == x.parts
            else f"{x.name} ({x.unseen} of {x.parts} {'experts' if x.kind == 'experts' else 'parts'})"
            for x in unseen
        ]
        found.append(
            f"{len(unseen)} of {len(layers)} tensors {were} {instead} and not by {recipe.method}, because calibration saw no "
            f"inputs of {their} (no data reached {them}, or the forward does not multiply with the parameter itself): "
            f"{listed(names, NAMED)}."
        )
    if kept := unrounded(recipe.values, layers):  # no float16 scale holds their weights
        found.append(
            f"{len(kept)} of {len(layers)} tensors keep their type and are not {recipe.values}: some of their weights are too "
            f"small or too large for a float16 scale (it would cost them more than 0.1% of their size): "
            f"{listed([f'{x.name} ({x.values})' for x in kept], NAMED)}."
        )
    fitted = {x.unit: x.fitted for x in layers if x.fitted is not None}
    if left := [unit or "the model as a whole" for unit, gained in fitted.items() if not gained]:  # it did not pay
        found.append(
            f"{len(left)} of {len(fitted)} reconstructed units kept the weights that their masks leave (first: {left[0]}): no "
            "fit was better on the calibration examples held out; more --samples may help."
        )
    return found


def watched_note(layers: Sequence[LayerOutcome], watched: Collection[str]) -> list[str]:
    """Which tensors' inputs are no layer's arguments, and were seen in the products that the forward makes."""
    names = [x.name for x in layers if x.name in watched and not x.unseen]
    return [
        f"input statistics of {len(names)} tensors were taken from the products that the forward makes with them: "
        f"{listed(names, NAMED)}."
    ] * bool(names)


def unrounded(values: str, layers: Sequence[LayerOutcome]) -> list[LayerOutcome]:
    """Tensors that kept their type where the recipe asks for integers."""
    return [x for x in layers if values in ("int8", "int4") and x.values not in (values, None)]
