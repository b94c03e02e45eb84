"""The fields of a recipe of compression: everything that decides its result, and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from winnow.compression.options import Values
from winnow.masks.structure import Structure, parse_structure


class RecipeFields(BaseModel):
    """How weights are chosen, what happens to those that stay, and how they are stored.

    The four nouns (score, allocation, structure, solver) are orthogonal; ``compression.methods`` has the named
    combinations. ``zeros`` is the integer the budget came to over all prunable weights. Structure and solver are stored
    as text; ``pattern`` here and the properties of :class:`winnow.compression.recipe.Recipe` are what the text means.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    score: str = "magnitude"
    group: Literal["layer", "row"] = "layer"
    allocation: str = "uniform"
    structure: str = "unstructured"
    solver: str = "none"
    values: Values = "keep"
    rest: Values = "keep"  # of matrices outside the scope: embeddings, output layers, first convolutions
    group_size: int = Field(128, ge=8)
    sparsity: float = Field(ge=0, lt=1)
    zeros: int = Field(ge=0)
    damp: float = Field(0.01, gt=0)
    sequential: Literal["layer", "block"] = "block"  # whose pruned predecessors feed a layer's statistics
    recalibrate: bool = True  # batch-norm statistics, where there are any
    table: dict[str, float] | None = None  # rate by name or pattern: of allocation="table", or where "learned" starts
    settings: dict[str, Any] = Field(default_factory=dict)  # of the method: see train/distil/settings.py
    time: float | None = Field(None, gt=0)  # seconds that training takes, in place of a number of steps
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    samples: int = Field(128, ge=1)
    length: int | None = None  # tokens per calibration sequence
    batch_size: int = Field(8, ge=1)
    seed: int = 0

    @property
    def pattern(self) -> Structure:
        return parse_structure(self.structure)

    def key(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
