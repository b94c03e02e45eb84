"""One training whose masks shrink on the way: along a cubic, or by equal steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict

from pydantic import Field

from winnow.errors import InputError
from winnow.masks.global_ranking import global_magnitude
from winnow.tickets.method import Method, PruningSettings
from winnow.tickets.search import Round, Search, Ticket, densities
from winnow.train.methods.gradual import Gradual

Plan = list[tuple[int, int]]  # (step after which is pruned, zeros then), in order


class ProgressiveSettings(PruningSettings):
    """Progressive pruning: a fixed interval of training, ten points of the weights, no rewind."""

    STEPS = ("interval",)

    step_points: float = Field(10.0, gt=0, lt=100)  # points of sparsity a round
    interval: int | None = Field(None, ge=1)  # steps between two rounds; None: the rounds share half of T


class GradualSettings(PruningSettings):
    """Zhu and Gupta's cubic schedule over a part of the training."""

    STEPS = ("every",)

    begin: float = Field(0.0, ge=0, lt=1)  # share of T before the first pruning
    end: float = Field(0.5, gt=0, le=1)  # share of T at the last one
    every: int = Field(10, ge=1)  # steps between two


def gradual(search: Search) -> Iterator[Ticket]:
    """T steps of training while the zeros rise as :class:`winnow.train.Gradual` says (Zhu and Gupta 2017)."""
    settings, total, numel = search.settings, search.training.steps, search.scope.numel

    def plan(zeros: int) -> Plan:
        begin = round(settings.begin * total)
        end = round(settings.end * total)
        if not begin < end:
            raise InputError(
                f"begin {settings.begin:g} and end {settings.end:g} leave no steps of {total} between them: move them apart."
            )
        schedule = Gradual(zeros / numel, begin=begin, end=end, every=settings.every)
        steps = [*range(begin + settings.every, end, settings.every), end]
        return [(t, schedule.zeros_at(t, numel)) for t in steps]

    yield from _shrinking(search, plan)


def progressive(search: Search) -> Iterator[Ticket]:
    """Equal intervals of training; after each, another ``step_points`` points of all weights go, and nothing is rewound.

    The last round takes what is left to the target, and the rest of the T steps follows (Jaiswal et al. 2023, section 4,
    "progressive"). Without an interval the K rounds lie evenly in the first half of T.
    """
    settings, total, numel = search.settings, search.training.steps, search.scope.numel

    def plan(zeros: int) -> Plan:
        points = settings.step_points / 100
        rounds = max(1, math.ceil(zeros / numel / points - 1e-9))
        last = settings.interval * rounds if settings.interval else max(total // 2, rounds)
        if last > total:
            raise InputError(
                f"{rounds} rounds take {last} of {total} steps: give a shorter interval, more steps or larger step_points."
            )
        counts = [round(points * r * numel) for r in range(1, rounds)] + [zeros]
        return [(round(last * r / rounds), count) for r, count in enumerate(counts, 1)]

    yield from _shrinking(search, plan)


def _shrinking(search: Search, plan: Callable[[int], Plan]) -> Iterator[Ticket]:
    plans = [plan(zeros) for zeros in search.zeros]  # all checked before any work
    for number, (zeros, points) in enumerate(zip(search.zeros, plans)):
        run = search.run(f"run-{number}", f"train to {search.sparsities[number]:.0%} zeros")
        rounds = run.notes.setdefault("rounds", [])
        for step, count in points:
            # A checkpoint of this very step may be from before the pruning or after it: pruning twice changes nothing.
            if step < run.step or (rounds and rounds[-1]["step"] >= step):
                continue
            run.advance_to(step)
            run.prune(global_magnitude(run.attached.matrices(), run.keeps, count, search.settings.max_rate))
            rounds.append(asdict(Round(len(rounds) + 1, step, count, run.cost.steps, densities=densities(run.keeps))))
        run.advance_to(run.total)
        yield search.ticket(run, zeros, history=[Round(**r) for r in rounds])


PROGRESSIVE = Method(progressive, "progressive", "pruned at fixed intervals", ProgressiveSettings)
GRADUAL = Method(gradual, "gradual", "pruned on a cubic schedule", GradualSettings)
