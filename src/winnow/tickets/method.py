"""What the file of a ticket method exports: how it finds tickets, what can be set, what it costs and what it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from winnow.errors import InputError
from winnow.settings import read_settings
from winnow.tickets.search import Finder
from winnow.train.task.training import Training

S = TypeVar("S", bound="Settings")
SLACK = 0.25  # of a round: a target this little beyond the last one is reached in it


class Settings(BaseModel):
    """What can be set about a method, checked before any work. As it is: of methods with nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    STEPS: ClassVar[tuple[str, ...]] = ()  # settings that count optimizer steps

    def shortened(self: S, sparsity: float, steps: int, share: float) -> S:
        """The settings for a trial of ``steps`` steps, which is a ``share`` of the full training."""
        values = {name: getattr(self, name) for name in self.STEPS}
        return self.model_copy(update={n: max(1, round(v * share)) for n, v in values.items() if v})


class PruningSettings(Settings):
    """Of every method that removes weights by one ranking over all tensors."""

    # Share of its weights that a tensor may lose at most; 1 is the pure ranking of the papers, which may empty a tensor.
    max_rate: float = Field(default=0.99, gt=0, le=1)


def one_training(settings: Any, training: Training, sparsity: float) -> int:
    """T: what a method takes whose work is all within one training."""
    return training.steps


@dataclass(frozen=True, eq=False)
class Method:
    """A way to find tickets; :mod:`winnow.tickets.methods.registry` lists them by name.

    Attributes:
        finder: generator function; yields a ticket for each sparsity of its search, in order.
        title: its name in reports; ``brief`` where there is little room.
        meaning: what it does, in a few words that follow the title and a colon.
        settings_class: what can be set about it.
        encoder_settings: settings that text encoders take unless others are given.
        planned_steps: (settings, training, sparsity) -> optimizer steps for one sparsity, scoring and mixing passes included;
            exact, or where masks decide how many rounds there are, the most it can be. Before the data are read, the training
            has only ``steps`` and perhaps ``examples``, and what depends on others is left out. Raises InputError where the
            method does not fit into so many steps or examples.
        trajectory: one sequence of trainings serves all sparsities, unless its settings have a ``budget``.
        candidates: a run has parts that an executor can compute.
        open_ended: a sparsity of 0 may be asked for, and the tickets are of what comes of it.
        early_masks: reports check that the last mask fell within the first quarter of the training (ISP's rule).
    """

    finder: Finder
    title: str
    meaning: str
    settings_class: type[Settings] = PruningSettings
    brief: str = ""
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)
    planned_steps: Callable[[Any, Any, float], int] = one_training
    trajectory: bool = False
    candidates: bool = False
    open_ended: bool = False
    early_masks: bool = False

    def read_settings(self, given: dict[str, Any], name: str, kind: str | None = None) -> Settings:
        """The settings for a model of a ``kind`` (of a training, such as "encoder"). Raises InputError naming what is wrong."""
        own = dict(self.encoder_settings) if kind == "encoder" else {}
        return read_settings(self.settings_class, own | given, name)


def levels(targets: Sequence[float], rate: float) -> list[float]:
    """Sparsity after each round: every round removes ``rate`` of what is left, and every target is met exactly.

    Between two targets the levels are 1 - (1 - s_0)(1 - rate)^i; the last of them is the target itself, never more than
    ``rate`` and a quarter of a round's step beyond the one before. For one target S that is
    K = ceil(ln(1 - S) / ln(1 - rate) - 1/4) rounds. The paper (Jaiswal et al. 2023, section 3) has ceil without the quarter,
    which is this library's own: a last round that would remove less than a quarter of its share costs a whole training of
    IMP, or a whole set of candidates, for next to nothing, and is taken together with the one before.

    Raises:
        InputError: a rate or target outside (0, 1), or targets that do not rise.
    """
    if not 0 < rate < 1:
        raise InputError(f"a round cannot prune {rate:g} of what is left: give a rate between 0 and 1.")
    found: list[float] = []
    at = 0.0
    for target in targets:
        if not at < target < 1:
            raise InputError(f"sparsity {target:g} does not follow {at:g}: give rising shares of zeros below 1.")
        rounds = max(1, math.ceil(math.log((1 - target) / (1 - at)) / math.log(1 - rate) - SLACK))
        found += [1 - (1 - at) * (1 - rate) ** i for i in range(1, rounds)] + [target]
        at = target
    return found
