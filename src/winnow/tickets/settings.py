"""What can be set about each way to find a ticket: checked before any work."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Of methods with nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PruningSettings(Settings):
    """Of every method that removes weights by one ranking over all tensors."""

    # Share of its weights that a tensor may lose at most; 1 is the pure ranking of the papers, which may empty a tensor.
    max_rate: float = Field(default=0.99, gt=0, le=1)


class SnipSettings(PruningSettings):
    """SNIP (Lee et al. 2019)."""

    batches: int = Field(1, ge=1)  # mini-batches whose gradients are averaged; one is published


class ScoreSettings(PruningSettings):
    """GraSP (Wang et al. 2020): masks scored on as many examples of every class."""

    # Examples, in mini-batches; where that is fewer than 10 of every class, 10 of every class.
    batches: int = Field(8, ge=1)
    temperature: float = Field(200.0, gt=0)  # the logits are divided by it; 1 for a regression


class SynflowSettings(PruningSettings):
    """SynFlow (Tanaka et al. 2020): data-free, an exponential schedule over many scorings."""

    iterations: int = Field(100, ge=1)


class ProgressiveSettings(PruningSettings):
    """Progressive pruning: a fixed interval of training, ten points of the weights, no rewind."""

    step_points: float = Field(10.0, gt=0, lt=100)  # points of sparsity a round
    interval: int | None = Field(None, ge=1)  # steps between two rounds; None: the rounds share half of T


class GradualSettings(PruningSettings):
    """Zhu and Gupta's cubic schedule over a part of the training."""

    begin: float = Field(0.0, ge=0, lt=1)  # shares of T
    end: float = Field(0.5, gt=0, le=1)
    every: int = Field(10, ge=1)  # steps


class EarlyBirdSettings(PruningSettings):
    """EarlyBird: the magnitude mask of a dense training once it stands still."""

    every: int = Field(10, ge=1)  # steps between two masks
    queue: int = Field(5, ge=2)  # masks looked at: the newest must agree with the others
    # Each at a distance below this, 1 being that of two random masks with as many zeros. The 0.1 that is published is a share
    # of all entries, of which random masks of 50 % differ in half: 0.2 here.
    tolerance: float = Field(0.2, gt=0)
    patience: float = Field(0.25, gt=0, le=1)  # share of T after which the mask is taken as it is


class ImpSettings(PruningSettings):
    """Iterative magnitude pruning, restarted from the pretrained weights or (LRR) going on from the trained ones."""

    rate: float = Field(0.2, gt=0, lt=1)  # of what is left, a round
    budget: float | None = Field(None, gt=0)  # steps of the K + 1 trainings in all, as a multiple of T; None: T each
    # Share of the budget that the last training takes, the ticket's own; the others share the rest. None: all alike.
    last: float | None = Field(0.8, gt=0, lt=1)


class RewindSettings(ImpSettings):
    """IMP that returns to an early step of the first training, not to the pretrained weights."""

    rewind: float = Field(0.05, ge=0, lt=1)  # share of T


class PoolSettings(ImpSettings):
    """Lottery Pool: interpolate the tickets that IMP made on the way (Yin et al. 2022)."""

    grid: tuple[float, ...] = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)  # shares of the newcomer
    last: float | None = Field(None, gt=0, lt=1)  # the earlier trainings are part of the ticket here: all alike
    recalibrate: int = Field(8, ge=1)  # training mini-batches that batch norms of every mixture are recalibrated on
    holdout: float = Field(0.1, gt=0, lt=1)  # of the training examples: not trained on, they decide who is taken in
    fine_tune: float = Field(0.0, ge=0)  # share of T trained after the soup


Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class IspSettings(PruningSettings):
    """Instant Soup Pruning (Jaiswal et al. 2023, table 1).

    ``preset`` takes the paper's figures for CLIP (rate 0.15, 50 look-ahead steps, 5 candidates) or BERT (0.1, 30, 4) and
    makes them fit a short training (:func:`winnow.tickets.methods.isp.plan.plan_isp`); what is given beside it is taken as it is.
    The paper's learning rates, decay and epochs belong to the training: see :data:`PAPER`.
    """

    preset: Literal["clip", "bert"] = "clip"
    rate: float | None = Field(None, gt=0, lt=1)  # of what is left, a round
    seed_steps: int | None = Field(None, ge=1)  # t, a tenth of an epoch if it fits: round i trains t (i + 1) steps
    budget: float = Field(0.25, gt=0, lt=1)  # largest share of T spent before the last mask
    candidates: int | None = Field(None, ge=1)
    look_ahead: int | None = Field(None, ge=1)  # C, steps of one candidate
    aggregate: Literal["vote", "mean_abs", "forecast", "union", "intersect", "literal"] = "vote"
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


# The trainings of the paper's table 1, for winnow.train.task.training.Training and the number of epochs.
PAPER = {
    "clip": {"lr": 1e-5, "weight_decay": 0.1, "epochs": 22},
    "bert": {"lr": 2e-5, "weight_decay": 0.0, "epochs": 10},
}


class ImsSettings(PruningSettings):
    """Instant Model Soup (Jaiswal et al. 2023, algorithm 3), which names no figures but about 100 steps."""

    sparsities: tuple[Sparsity, ...] = Field(default=(0.1, 0.2, 0.3, 0.5), min_length=1)  # one candidate each
    look_ahead: int = Field(default=100, ge=1)  # steps of one candidate
    multipliers: tuple[Positive, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)  # of the learning rate
    decays: tuple[Decay, ...] = Field(default=(0.0, 0.01, 0.1), min_length=1)
    share: float = Field(default=0.5, gt=0, le=1)  # of an epoch's mini-batches that a candidate may see
    grid: tuple[Share, ...] = tuple(i / 10 for i in range(11))  # of the newcomer; 0 is always tried
    ims_scope: Literal["all", "kept"] = "all"  # kept: weights that a candidate's mask removes stay the soup's
    recalibrate: int = Field(default=8, ge=1)  # mini-batches that batch norms are recalibrated on
