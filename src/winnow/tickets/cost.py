"""What a ticket cost: steps, passes, training FLOPs and seconds, beside what iterative pruning would have taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from winnow.errors import InputError
from winnow.measure.flops import TRAINING, Flops, forward_flops
from winnow.seeding import seed_of
from winnow.tickets.methods.imp import lengths
from winnow.tickets.methods.isp.plan import plan_isp
from winnow.tickets.methods.levels import levels
from winnow.tickets.methods.lottery_pool import mixing_steps
from winnow.tickets.search import Ticket
from winnow.tickets.settings import ImpSettings, PoolSettings
from winnow.train.saliency.saliency import grasp_steps
from winnow.train.saliency.scored_examples import every_class
from winnow.train.task.held_out import divided
from winnow.train.task.training import Training

SAMPLES = 4  # mini-batches that FLOPs are counted on where their lengths differ
BUDGET = 0.25  # of the training: later masks leave too small a learning rate for what follows (ISP's rule)


@dataclass(frozen=True)
class IspRule:
    """The two sums of Instant Soup Pruning (Jaiswal et al. 2023): M main steps before the last mask, and K n_den C.

    ``kept``: M is at most a quarter of the training.
    """

    rounds: int  # K
    mask_steps: int  # M
    look_ahead: int  # K n_den C
    total: int  # T + K n_den C
    share: float  # M over the steps of the main training's schedule

    @property
    def kept(self) -> bool:
        return self.share <= BUDGET + 1e-9


@dataclass(frozen=True)
class Price:
    """What one ticket took.

    Attributes:
        main, look_ahead, extra: optimizer steps that trained a model, that candidates threw away, and that scores took.
        passes: ``steps`` as a multiple of T.
        imp_rounds, imp_steps: K and (K + 1) T of full iterative magnitude pruning to the same sparsity, 20 % a round.
        dense_flops: of all these steps, every step at dense cost.
        sparse_flops: with the products of prunable tensors scaled by the density of each step.
        forward: FLOPs of one example through the dense model; ``ticket_forward`` if the ticket's zeros cost nothing.
        batch: examples in a step, on average.
    """

    method: str
    sparsity: float
    main: int
    look_ahead: int
    extra: int
    seconds: float
    passes: float
    imp_rounds: int
    imp_steps: int
    dense_flops: float
    sparse_flops: float
    forward: float
    ticket_forward: float
    batch: float
    rule: IspRule | None = None

    @property
    def steps(self) -> int:
        return self.main + self.look_ahead + self.extra


def training_flops(training: Training) -> tuple[Flops, float]:
    """Forward FLOPs of one example of a training, its loss included, and the examples of an average step.

    One example tells where all have one shape; otherwise the first mini-batches of an epoch do, their padding counted.
    """
    examples = training.examples
    order = examples.order(torch.Generator().manual_seed(seed_of(training.seed, "flops")))
    if examples.joined is not None and examples.lengths is None:
        batches = [examples.take(order[0][:1])]
    else:
        batches = [examples.take(index) for index in order[:SAMPLES]]
    found = forward_flops(training.model, batches, training.scope(), forward=training.loss)
    return found, examples.count / examples.parts


def price(tickets: Sequence[Ticket], training: Training, *, counted: tuple[Flops, float] | None = None) -> list[Price]:
    """The price of every ticket of one training, in order.

    Scoring passes count as steps. The density of a step is that of all prunable weights (``Cost.weighted``), so the
    sparse figure takes the zeros as spread evenly over the products; ``ticket_forward`` takes each tensor by itself.

    Args:
        counted: what :func:`training_flops` found, where it is at hand.

    Raises:
        InputError: no ticket.
    """
    if not tickets:
        raise InputError("there is no ticket to price: find one first.")
    flops, batch = counted or training_flops(training)
    return [_price(ticket, training, flops, batch) for ticket in tickets]


def _price(ticket: Ticket, training: Training, flops: Flops, batch: float) -> Price:
    cost, total = ticket.cost, training.steps
    rounds = imp_rounds(ticket.sparsity)
    densities = {name: mask.nonzeros / mask.numel for name, mask in ticket.masks.items()}
    return Price(
        ticket.method, ticket.sparsity, cost.main, cost.look_ahead, cost.extra, cost.seconds,
        passes=cost.steps / total, imp_rounds=rounds, imp_steps=(rounds + 1) * total if rounds else total,
        dense_flops=cost.steps * batch * flops.training(),
        sparse_flops=batch * TRAINING * (cost.steps * flops.rest + cost.weighted * flops.prunable),
        forward=flops.total, ticket_forward=flops.sparse(densities), batch=batch,
        rule=_rule(ticket) if ticket.method.startswith("isp") and ticket.history else None,
    )  # fmt: skip


def imp_rounds(sparsity: float, rate: float | None = None) -> int:
    """K: rounds of iterative magnitude pruning to a sparsity; each is one training of T steps, and one follows."""
    return (
        len(levels([sparsity], ImpSettings.model_fields["rate"].default if rate is None else rate))
        if sparsity > 0
        else 0
    )


def _rule(ticket: Ticket) -> IspRule:
    last, cost = ticket.history[-1].step, ticket.cost
    return IspRule(len(ticket.history), last, cost.look_ahead, cost.steps, last / max(cost.main, 1))


def planned_steps(method: str, settings: Any, training: Training, sparsity: float) -> int:
    """Optimizer steps that a method is going to take for one sparsity, scoring and mixing passes included.

    Exact, but for those whose rounds depend on what the masks turn out to be (ISP with ``aggregate="union"`` or
    "intersect"): there the most it can be.

    Args:
        training: its ``steps`` are read, for GraSP and Lottery Pool its ``examples`` and for the latter its ``model``;
            where it has none, it is left out what its classes, the mixing and the batch norms take.

    Raises:
        InputError: the method has no room in so many steps, or Lottery Pool in so few examples.
    """
    total = training.steps
    if sparsity > 0 and isinstance(settings, ImpSettings):
        return _trajectory_steps(settings, training, sparsity)
    if sparsity > 0 and method.startswith("isp") and method != "isp-plain":
        plan = plan_isp(settings, sparsity, total, epoch=1)  # the least t leaves a union the most rounds
        return total + (plan.thrown_at_most if method == "isp" else plan.thrown)
    return total + _scoring_steps(method, settings, training)


def _scoring_steps(method: str, settings: Any, training: Training) -> int:
    if method == "snip":
        return settings.batches
    if method == "grasp":
        examples = getattr(training, "examples", None)
        return (
            3 * settings.batches
            if examples is None
            else grasp_steps(examples, every_class(examples, training.seed, settings.batches))
        )
    return settings.iterations if method == "synflow" else 0


def _trajectory_steps(settings: ImpSettings, training: Training, sparsity: float) -> int:
    """Of IMP and its kin: K + 1 trainings, and what Lottery Pool does with them."""
    rounds, rewind = imp_rounds(sparsity, settings.rate), getattr(settings, "rewind", 0.0)
    search: Any = SimpleNamespace(settings=settings, training=training)  # all of a search that is asked for
    each = lengths(search, rounds + 1, rewind)
    found = sum(each) - rounds * round(rewind * each[0])
    if not isinstance(settings, PoolSettings):
        return found
    found += round(settings.fine_tune * training.steps)
    if getattr(training, "examples", None) is None:
        return found
    rest, held = divided(training.examples, settings.holdout, training.seed)
    return found + mixing_steps(rounds, settings, getattr(training, "model", None), rest, held)
