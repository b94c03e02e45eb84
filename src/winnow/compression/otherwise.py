"""Tensors that were not treated as the recipe says, and why, in words: for the notes and the tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from winnow.compression.outcome import LayerOutcome

NAMED = 8  # tensors in a note; all of them are in the report's list of layers


def in_place_of(method: str, layers: Sequence[LayerOutcome]) -> list[str]:
    """The note that counts and names the tensors for which ``method`` stood without the inputs that it reads."""
    gone = [x for x in layers if x.unseen]
    if not gone:
        return []
    many = len(gone) > 1
    instead = "pruned by magnitude" if any(x.zeros for x in gone) else "rounded to nearest"
    names = ", ".join(
        x.name if x.unseen == x.parts else f"{x.name} ({x.unseen} of {x.parts} {_parts(x)})" for x in gone[:NAMED]
    )
    rest = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
    return [
        f"{len(gone)} of {len(layers)} tensors {'were' if many else 'was'} {instead} and not by {method}, because calibration saw "
        f"no inputs of {'theirs' if many else 'its own'} (no data reached {'them' if many else 'it'}, or the forward does not "
        f"multiply with the parameter itself): {names}{rest}."
    ]


def by_watching(watched: Collection[str], layers: Sequence[LayerOutcome]) -> list[str]:
    """The note that names the tensors whose inputs are no layer's arguments, and were seen all the same."""
    names = [x.name for x in layers if x.name in watched and not x.unseen]
    if not names:
        return []
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [
        f"input statistics of {len(names)} tensors were taken from the products that the forward makes with them: "
        f"{', '.join(names[:NAMED])}{rest}."
    ]


def unrounded(values: str, layers: Sequence[LayerOutcome]) -> list[LayerOutcome]:
    """Tensors that kept their type where the recipe asks for integers."""
    return [x for x in layers if values in ("int8", "int4") and x.values not in (values, None)]


def in_own_type(values: str, layers: Sequence[LayerOutcome]) -> list[str]:
    """The note that counts and names the tensors whose weights no float16 scale holds."""
    kept = unrounded(values, layers)
    if not kept:
        return []
    names = ", ".join(f"{x.name} ({x.values})" for x in kept[:NAMED])
    rest = f" and {len(kept) - NAMED} more" if len(kept) > NAMED else ""
    return [
        f"{len(kept)} of {len(layers)} tensors keep their type and are not {values}: some of their weights are too small or too "
        f"large for a float16 scale (it would cost them more than 0.1 % of their size): {names}{rest}."
    ]


def _parts(x: LayerOutcome) -> str:
    return "experts" if x.kind == "experts" else "parts"
