"""The recipe of a compression: everything that decides its result, and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from winnow.compression.options import Values
from winnow.compression.recovery import Recovery, fitting_of, parse_recovery
from winnow.masks.structure import Structure, parse_structure
from winnow.scores import needs_data
from winnow.solve import Chain


class Recipe(BaseModel):
    """How weights are chosen, what happens to those that stay, and how they are stored.

    The four nouns (score, allocation, structure, solver) are orthogonal; ``compression.methods`` has the named
    combinations. ``zeros`` is the integer the budget came to over all prunable weights. Structure and solver are stored
    as text; ``pattern``, ``chain``, ``recovery`` and ``fitting`` are what the text means.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    score: str = "magnitude"
    group: Literal["layer", "row"] = "layer"
    allocation: str = "uniform"
    structure: str = "unstructured"
    solver: str = "none"
    values: Values = "keep"
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

    @property
    def chain(self) -> Chain:
        """The solvers of single layers."""
        return parse_recovery(self.solver)[0]

    @property
    def recovery(self) -> Recovery:
        """What comes after them."""
        return parse_recovery(self.solver)[1]

    @property
    def fitting(self) -> Recovery:
        """What ``settings`` and ``time`` are for: the training of a learned allocation, else the recovery."""
        return fitting_of(self.solver, self.allocation)

    @property
    def needs_data(self) -> bool:
        """Whether any part of it reads calibration activations (batch-norm repair is a bonus, not a need)."""
        scored = needs_data(self.score) and (self.chain.needs_scores or self.allocation == "global")
        return self.fitting.needs_data or scored or self.chain.needs_gram or self.allocation == "owl"

    def key(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
