"""The recipe of a compression, and what follows from its fields."""

from __future__ import annotations

from winnow.compression.fields import RecipeFields
from winnow.compression.recovery import Recovery, fitting_of, parse_recovery
from winnow.scores import needs_data
from winnow.solve import Chain


class Recipe(RecipeFields):
    """A recipe, with the solvers and the recovery that its texts name."""

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
