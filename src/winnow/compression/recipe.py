"""The recipe of a compression: everything that decides its result, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from winnow.errors import InputError
from winnow.run import plain_yaml

Values = Literal["keep", "bf16", "int8", "int4"]
Group = Literal["layer", "row"]


class Recipe(BaseModel):
    """How weights are chosen, what happens to those that stay, and how they are stored.

    The four nouns (score, allocation, structure, solver) are orthogonal; ``compression.methods`` has the named
    combinations. ``zeros`` is the integer the budget came to over all prunable weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    score: str = "magnitude"
    group: Group = "layer"
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
    def trains(self) -> bool:
        """Whether the whole model is fitted on data: with masks that are learned, or fixed ones."""
        return self.solver == "distil" or self.allocation == "learned"

    @property
    def needs_data(self) -> bool:
        """Whether any part of it reads calibration activations (batch-norm repair is a bonus, not a need)."""
        from winnow.scores import needs_data
        from winnow.solve import before_units, needs_scores

        if self.trains or before_units(self.solver) is not None:
            return True
        scored = needs_data(self.score) and (needs_scores(self.solver) or self.allocation == "global")
        return scored or self.needs_gram or self.allocation == "owl"

    @property
    def needs_gram(self) -> bool:
        from winnow.solve import needs_gram

        return self.solver != "distil" and needs_gram(self.solver)

    def key(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def save(recipe: Recipe, path: Path) -> None:
    path.write_text(yaml.safe_dump(recipe.key(), sort_keys=False))


def load(path: Path) -> Recipe:
    """Reads ``recipe.yaml``; InputError names the field that is wrong."""
    from pydantic import ValidationError

    try:
        value, _ = plain_yaml.read(path.read_text(encoding="utf-8"), str(path))
        return Recipe.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a recipe ({str(error).splitlines()[0]}).") from None
