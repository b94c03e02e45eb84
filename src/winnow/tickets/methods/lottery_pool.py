"""Lottery Pool: the tickets that iterative pruning made on its way, mixed into the one at the target sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from pydantic import Field
from torch import nn

from winnow.formats.tensorfile import TensorFile
from winnow.masks.global_ranking import global_magnitude
from winnow.tickets.method import Method, levels
from winnow.tickets.methods import imp
from winnow.tickets.methods.imp import ImpSettings, Restart, State, trajectory
from winnow.tickets.search import Round, Search, Ticket, densities
from winnow.train.examples import Examples, divided
from winnow.train.norms import tracking_norms
from winnow.train.resume import read_under
from winnow.train.saliency.saliency import spend
from winnow.train.task.run import Run
from winnow.train.task.train_mode import recalibrate_mixture, training_batches
from winnow.train.task.training import Training

EVALUATIONS = 3  # forward passes that cost what one training step costs


class PoolSettings(ImpSettings):
    """Lottery Pool: interpolate the tickets that IMP made on the way (Yin et al. 2022)."""

    grid: tuple[float, ...] = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)  # shares of the newcomer
    last: float | None = Field(None, gt=0, lt=1)  # the earlier trainings are part of the ticket here: all alike
    recalibrate: int = Field(8, ge=1)  # training mini-batches that batch norms of every mixture are recalibrated on
    holdout: float = Field(0.1, gt=0, lt=1)  # of the training examples: not trained on, they decide who is taken in
    fine_tune: float = Field(0.0, ge=0)  # share of T trained after the soup


def lottery_pool(search: Search) -> Iterator[Ticket]:
    """IMP's ticket at S, mixed greedily with the tickets below S (Yin et al. 2022, arXiv 2208.10842, algorithm 1).

    Starting with the neighbour nearest in sparsity and ending with the dense training, (1 - a) theta + a theta_j is tried
    for every a of ``grid``, pruned to S again by global magnitude; the best is kept if its loss on held-out examples is
    lower than before. The examples are a share ``holdout`` of the training's own, taken out before IMP begins, so that
    what is reported decides nothing. Trainings above S are not in the pool of S: they were not paid for yet.
    Batch norms' statistics of every mixture are taken anew from ``recalibrate`` training mini-batches once it is pruned:
    those of two models say nothing of what lies between. ``fine_tune`` T steps of training may follow.

    Beside the authors' code (luuyin/Lottery-pools): there too statistics are recomputed for every pruned mixture and the
    ticket that is mixed into keeps its own. They go over all training data for it; look at the two nearest tickets, the
    next sparser one among them; and judge by accuracy on validation data (the ticket itself by the test data's), which is
    coarser than a loss where few examples are held back.

    Forward passes count as a third of a step each.

    Raises:
        InputError: fewer than two examples to divide.
    """
    settings: PoolSettings = search.settings
    rest, held = divided(search.training.examples, settings.holdout, search.training.seed)
    inner = replace(search, training=search.training.replaced(examples=rest))
    for name, way, steps in imp.ways(search, "pool"):
        weights: list[Callable[[], State]] = []
        for trained in trajectory(inner, way.zeros, range(len(way.zeros)), steps=steps, restart=Restart(), name=name):
            weights.append(_weights(trained.run))
            if trained.number not in way.targets:
                continue
            target = way.targets.index(trained.number)
            run = inner.run(
                f"{name}-soup-{target}", f"after the soup, {trained.zeros / search.scope.numel:.0%} zeros",
                steps=max(1, round(settings.fine_tune * search.training.steps)), stream="soup",
            )  # fmt: skip
            if "taken" not in run.notes:
                _mix(run, weights, trained.zeros, held, settings)
                run.save()
            run.advance_to(round(settings.fine_tune * search.training.steps))
            cost = replace(trained.cost)
            cost.add(run.cost)
            number, step = len(trained.history) + 1, steps[trained.number]
            last = Round(number, step, trained.zeros, cost.steps, densities=densities(run.keeps))
            ticket = search.ticket(run, trained.zeros, cost=cost, history=[*trained.history, last])
            before, after = run.notes["losses"]
            ticket.notes.append(
                f"{run.notes['taken']} of {trained.number} earlier tickets were mixed in: loss {before:.4g} became {after:.4g} "
                f"on {held.count} training examples that were held back."
            )
            yield ticket


def mixed(first: State, second: State, share: float) -> State:
    """(1 - share) first + share second, tensor by tensor; what is not floating point is the first's."""
    return {n: torch.lerp(t, second[n], share) if t.is_floating_point() else t for n, t in first.items()}


def _mix(run: Run, weights: list[Callable[[], State]], zeros: int, held: Examples, settings: PoolSettings) -> None:
    """Leaves the greedy mix of the last weights and the others in ``run``, masks and all, and says so in its notes."""
    every, grid = run.keeps, settings.grid

    calibration = training_batches(run.training, settings.recalibrate) if tracking_norms(run.model) else []

    def tried(state: State, recalibrated: bool = True) -> tuple[float, State]:
        matrices = {n: p.matrix(state[n]) for n, p in run.scope.prunables.items()}
        keeps = global_magnitude(matrices, every, zeros, settings.max_rate)
        pruned = {n: p.restore(matrices[n] * keeps[n]) for n, p in run.scope.prunables.items()}
        run.model.load_state_dict(state | pruned)
        if recalibrated and calibration:
            recalibrate_mixture(run.model, run.training.loss, calibration)
        return _loss(run, held), {n: t.detach().clone() for n, t in run.model.state_dict().items()}

    start, best = tried(weights[-1](), recalibrated=False)  # its training's own statistics are right
    lowest, taken = start, 0
    for other in reversed(weights[:-1]):
        newcomer = other()
        loss, found = min((tried(mixed(best, newcomer, share)) for share in grid), key=lambda pair: pair[0])
        if loss < lowest:
            lowest, best, taken = loss, found, taken + 1
    run.model.load_state_dict(best)
    run.prune(global_magnitude(run.attached.matrices(), every, zeros, settings.max_rate))
    spend(run, mixing_steps(len(weights) - 1, settings, run.model, run.training.examples, held))
    run.notes |= {"taken": taken, "losses": [start, lowest]}


def mixing_steps(others: int, settings: PoolSettings, model: nn.Module | None, rest: Examples, held: Examples) -> int:
    """What weighing the mixtures with so many earlier tickets takes, in steps; without a model, without batch norms."""
    mixtures = others * len(settings.grid)
    passes = (1 + mixtures) * held.parts
    if model is not None and tracking_norms(model):
        passes += mixtures * min(settings.recalibrate, rest.parts)
    return math.ceil(passes / EVALUATIONS)


def _weights(run: Run) -> Callable[[], State]:
    """Reads the weights of a finished run: from its checkpoint, or from memory where there is none."""
    if run.file is not None:
        file = run.file
        return lambda: read_under("/model/", TensorFile(file))
    state = dict(run.position().state or {})
    return lambda: state


@torch.no_grad()
def _loss(run: Run, held: Examples) -> float:
    """The training's loss on the held-out examples in eval mode, the mean over examples; NaN counts as infinite."""
    total, count = 0.0, 0
    for index, batch in held.all():
        rows = held.rows(index)  # the index counts batches, not examples, where they are drawn whole
        total += float(run.training.loss(run.model, batch)) * rows
        count += rows
    return math.inf if math.isnan(total) else total / count


def planned_steps(settings: PoolSettings, training: Training, sparsity: float) -> int:
    """Of IMP's trainings, the mixing of what they made, and the fine-tuning; without examples, all but the mixing."""
    found = imp.planned_steps(settings, training, sparsity) + round(settings.fine_tune * training.steps)
    if getattr(training, "examples", None) is None:
        return found
    rest, held = divided(training.examples, settings.holdout, training.seed)
    rounds = len(levels([sparsity], settings.rate))
    return found + mixing_steps(rounds, settings, getattr(training, "model", None), rest, held)


LOTTERY_POOL = Method(
    lottery_pool, "Lottery Pool", "IMP’s tickets, interpolated", PoolSettings,
    brief="Pool", planned_steps=planned_steps, trajectory=True,
)  # fmt: skip
