"""What one ISP run is going to do, computed before it starts: rounds, steps before each, candidates and their length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from winnow.errors import InputError
from winnow.tickets.method import PruningSettings, levels

# rate, look_ahead, candidates: Jaiswal et al. 2023, table 1
PRESETS = {"clip": (0.15, 50, 5), "bert": (0.1, 30, 4)}
THROWN = 0.5  # largest share of T spent on candidates of the preset: a whole search then costs 1.5 T at most
FEW = 2  # candidates at least: one alone is no soup

Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]


class IspSettings(PruningSettings):
    """Instant Soup Pruning (Jaiswal et al. 2023, table 1).

    ``preset`` takes the paper's figures for CLIP (rate 0.15, 50 look-ahead steps, 5 candidates) or BERT (0.1, 30, 4) and
    makes them fit a short training (:func:`plan_isp`); what is given beside it is taken as it is.
    The rest of its table belongs to the training: CLIP at a learning rate of 1e-5, weight decay 0.1, 22 epochs; BERT at
    2e-5, no decay, 10 epochs.
    """

    preset: Literal["clip", "bert"] = "clip"
    rate: float | None = Field(None, gt=0, lt=1)  # of what is left, a round
    seed_steps: int | None = Field(None, ge=1)  # t, a tenth of an epoch if it fits: round i trains t (i + 1) steps
    budget: float = Field(0.25, gt=0, lt=1)  # largest share of T spent before the last mask
    candidates: int | None = Field(None, ge=1)  # n, of a round
    look_ahead: int | None = Field(None, ge=1)  # C, steps of one candidate
    aggregate: Literal["vote", "mean_abs", "forecast", "union", "intersect", "literal"] = "vote"  # see denoise
    reach: float = Field(4.0, gt=0)  # of forecast: how many look-aheads ahead the magnitudes are taken
    # Power of the curvature in a weight's score |theta| v^(curvature / 2), v the optimizer's mean square of gradients, for
    # candidates and main training alike: 0 the paper's magnitudes, 1 the Fisher information.
    curvature: float = Field(0.0, ge=0, le=1)
    average: bool = False  # whether training goes on from the candidates' mean, not from where they set out
    multipliers: tuple[Positive, ...] = Field((0.5, 1.0, 2.0, 4.0), min_length=1)  # of the learning rate by then
    decays: tuple[Decay, ...] = Field((0.0, 0.01, 0.1), min_length=1)
    share: float = Field(0.5, gt=0, le=1)  # of an epoch's mini-batches that a candidate may see

    @model_validator(mode="after")
    def _one_score(self) -> IspSettings:
        if self.aggregate == "forecast" and self.curvature:
            raise ValueError("aggregate forecast ranks by magnitudes alone: leave curvature at 0, or take mean_abs")
        return self

    def shortened(self, sparsity: float, steps: int, share: float) -> IspSettings:
        """As many rounds as fit, each after as many steps as fit: ``seed_steps`` was given for the full length."""
        changes: dict[str, Any] = {"seed_steps": None}
        if self.look_ahead is not None:
            changes["look_ahead"] = max(2, round(self.look_ahead * share))
        most = _rounds(self.budget * steps)
        if self.rate is not None and len(levels([sparsity], self.rate)) > most:
            changes["rate"] = 1 - (1 - sparsity) ** (1 / most)
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class IspPlan:
    """``levels``: sparsity after each of the K rounds. ``seed_steps``: t. ``look_ahead``: C of each of ``candidates``.

    ``most``: rounds at most; above K for a union alone, which prunes less than its target.
    """

    levels: list[float]
    rate: float
    seed_steps: int
    candidates: int
    look_ahead: int
    most: int
    fewer: str = ""  # rounds than the preset's, in words
    shorter: str = ""  # candidates than the preset's

    @property
    def thrown(self) -> int:
        """K n C: steps of the candidates of K rounds."""
        return len(self.levels) * self.candidates * self.look_ahead


def plan_isp(settings: IspSettings, sparsity: float, steps: int, epoch: int, *, extended: bool = False) -> IspPlan:
    """The plan of one run to ``sparsity``. What the settings leave open is the preset's, made to fit ``steps``.

    The paper's figures are of long trainings. In a short one the preset's rate is raised until K rounds fit
    into ``settings.budget`` of T, and its candidates become shorter, then fewer, until they take half of T. What the settings
    name is taken as it is.

    Args:
        steps: T.
        epoch: mini-batches in an epoch.
        extended: the training gets the candidates' steps as well (the compute-matched control): t and the share before
            the last mask are then of T + K n C.

    Raises:
        InputError: the rounds do not fit.
    """
    rate, full, count = PRESETS[settings.preset]
    rate, count, length = settings.rate or rate, settings.candidates or count, settings.look_ahead or full
    fewer = shorter = ""
    found = levels([sparsity], rate)
    if settings.rate is None and len(found) > (most := _rounds(settings.budget * steps)):
        named, rate = rate, 1 - (1 - sparsity) ** (1 / most)
        fewer = (
            f"{len(found)} rounds that each prune {named:.0%} of what is left would take more than {settings.budget:.0%} of "
            f"the {steps} steps: {_counted(most, 'round')} of {rate:.0%} instead."
        )
        found = [1 - (1 - rate) ** i for i in range(1, most)] + [sparsity]
    if settings.look_ahead is None:
        if settings.candidates is None and len(found) * count > THROWN * steps:
            count = max(FEW, math.floor(THROWN * steps / len(found)))
        length = min(full, max(1, math.floor(THROWN * steps / (len(found) * count))))
        if length < full:
            shorter = _shorter(length, full, len(found), count, steps, extended)
    total = steps + len(found) * count * length if extended else steps
    seed = seed_steps(total, epoch, len(found), settings, rate)
    most = len(found)
    if settings.aggregate == "union":
        most = union_rounds(most, seed, count * length, steps, settings.budget)
    return IspPlan(found, rate, seed, count, length, most, fewer, shorter)


def _shorter(length: int, full: int, rounds: int, count: int, steps: int, extended: bool) -> str:
    """Why look-ahead has ``length`` steps and not the preset's; the control has no candidates, but as many steps."""
    limit, many = f"{THROWN:.0%} of the {steps} steps", f"{_counted(rounds, 'round')} of {count} candidates"
    if extended:
        return (
            f"{_counted(rounds * count * length, 'more step')} than {steps}, as many as candidates would take: {many}, "
            f"each trained {_counted(length, 'step')} ahead, not {full}, to stay within {limit}."
        )
    return f"Each candidate is trained {_counted(length, 'step')} ahead, not {full}: {many} are to stay within {limit}."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def union_rounds(rounds: int, seed: int, thrown: int, steps: int, budget: float) -> int:
    """Rounds that a union may take to what ``rounds`` were planned for: twice as many, while there are steps for them.

    Args:
        rounds: K; as many are taken whatever they cost, since other aggregates take them too.
        seed: t.
        thrown: n C, steps of the candidates of a round; of all rounds together they are half of T at most.
        steps: T.
        budget: largest share of T before the last mask.
    """

    def fits(count: int) -> bool:
        return seed * count * (count + 1) / 2 <= budget * steps + 1e-9 and count * thrown <= THROWN * steps

    return next((count - 1 for count in range(rounds + 1, 2 * rounds + 1) if not fits(count)), 2 * rounds)


def seed_steps(total: int, epoch: int, rounds: int, settings: IspSettings, rate: float) -> int:
    """t, such that the M = t K (K + 1) / 2 steps before the last mask are at most ``settings.budget`` of ``total``.

    A mask that comes late leaves the final training a learning rate of nearly nothing.

    Args:
        total: T, steps of the schedule.
        epoch: mini-batches in an epoch; t is a tenth of it where that fits and no other was given.
        rounds: K.
        rate: of a round, for the message.

    Raises:
        InputError: not even one step a round fits, or not the one that was given.
    """
    triangle = rounds * (rounds + 1) // 2
    most = math.floor(settings.budget * total + 1e-9)
    fits = most // triangle
    if fits < 1:
        need = "1 round needs 1 step" if rounds == 1 else f"{rounds} rounds need {triangle} steps"
        # Where not even one round fits no rate helps.
        other = f", or a rate above {rate:g}" if most >= 1 else ""
        raise InputError(
            f"{need} and may take {settings.budget:.0%} of {total}: "
            f"give {math.ceil(triangle / settings.budget)} steps or more{other}."
        )
    seed = settings.seed_steps
    if seed is None:
        seed = max(1, min(round(epoch / 10), fits))
    elif seed > fits:
        raise InputError(
            f"seed_steps {seed} makes {seed * triangle} steps before the last mask, more than {settings.budget:.0%} of {total}: "
            f"give {fits} or less, or {math.ceil(seed * triangle / settings.budget)} steps."
        )
    assert seed * triangle <= most
    return seed


def _rounds(steps: float) -> int:
    """The most rounds K with K (K + 1) / 2 <= steps, and at least one."""
    return max(1, math.floor((math.sqrt(1 + 8 * max(steps, 0)) - 1) / 2 + 1e-9))
