"""The kinds of stages of a recipe. A new one is its file here, named after it, and its line in :data:`KINDS`."""

from __future__ import annotations

from importlib import import_module

from winnow.pipeline.stage import Stage

# Name in a recipe (and file) -> class. Stages that make a model follow this order in a recipe.
_CLASSES = {
    "train": "Train",
    "ticket": "Ticket",
    "compress": "Compress",
    "eval": "Evaluate",
}
KINDS: dict[str, type[Stage]] = {
    kind: getattr(import_module(f"{__name__}.{kind}"), name) for kind, name in _CLASSES.items()
}
ORDER = [kind for kind, stage in KINDS.items() if stage.makes]
