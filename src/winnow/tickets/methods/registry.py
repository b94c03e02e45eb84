"""The ways to find a ticket, by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel

    from winnow.tickets.search import Finder


@dataclass(frozen=True)
class Entry:
    """Where a method lives: ``module`` under winnow.tickets.methods, a generator function in it, and its settings class.

    ``trajectory``: one sequence of trainings serves all sparsities, unless its settings have a ``budget``.
    ``candidates``: a run has parts that an executor can compute.
    """

    module: str
    function: str
    settings: str = "Settings"  # in winnow.tickets.settings
    trajectory: bool = False
    candidates: bool = False

    @property
    def finder(self) -> Finder:
        return getattr(import_module(f"winnow.tickets.methods.{self.module}"), self.function)

    @property
    def settings_class(self) -> type[BaseModel]:
        from winnow.tickets import settings

        return getattr(settings, self.settings)


METHODS: dict[str, Entry] = {
    "dense": Entry("dense", "dense"),
    "random": Entry("one_shot", "random", "PruningSettings"),
    "magnitude": Entry("one_shot", "one_shot", "PruningSettings"),
    "snip": Entry("one_shot", "snip", "SnipSettings"),
    "grasp": Entry("one_shot", "grasp", "ScoreSettings"),
    "synflow": Entry("one_shot", "synflow", "SynflowSettings"),
    "progressive": Entry("gradual", "progressive", "ProgressiveSettings"),
    "gradual": Entry("gradual", "gradual", "GradualSettings"),
    "earlybird": Entry("earlybird", "earlybird", "EarlyBirdSettings"),
    "imp": Entry("imp", "imp", "ImpSettings", trajectory=True),
    "imp-rewind": Entry("imp", "imp_rewind", "RewindSettings", trajectory=True),
    "lrr": Entry("imp", "lrr", "ImpSettings", trajectory=True),
    "lottery-pool": Entry("lottery_pool", "lottery_pool", "PoolSettings", trajectory=True),
    "isp": Entry("isp.isp", "isp", "IspSettings", candidates=True),
    "isp-plain": Entry("isp.isp", "isp_plain", "IspSettings"),
    "isp-matched": Entry("isp.isp", "isp_matched", "IspSettings"),
}  # fmt: skip
