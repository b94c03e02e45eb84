"""Candidates: where the weights would go from here, under another protocol, for a few steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.global_ranking import MAX_RATE, global_magnitude
from winnow.masks.mask import MaskSet
from winnow.seeding import generator
from winnow.train.attached import Attached
from winnow.train.task.run import Cost, Diverged, Run, trainable
from winnow.train.task.train_mode import train_mode

SQUARES = ("exp_avg_sq", "square_avg", "sum")  # Adam and its kin, RMSprop, Adagrad


@dataclass(frozen=True)
class Protocol:
    """How one candidate is trained: its own learning rate, weight decay and part of the data.

    ``lr`` is constant over its steps; ``share`` is the part of an epoch's mini-batches, drawn anew, it may see.
    """

    number: int
    lr: float
    weight_decay: float
    share: float = 1.0


@dataclass
class Candidate:
    """What a look-ahead leaves: its mask, its cost, and on request its weights' scores as matrices [rows, cols], or all that
    it trained (parameters and running statistics, by state-dict name)."""

    masks: MaskSet
    scores: dict[str, torch.Tensor] | None = None
    cost: Cost = field(default_factory=Cost)
    weights: dict[str, torch.Tensor] | None = None


def look_ahead(
    run: Run,
    protocol: Protocol,
    steps: int,
    zeros: int,
    *,
    sums: bool = False,
    weights: bool = False,
    max_rate: float = MAX_RATE,
    curvature: float = 0.0,
) -> Candidate:
    """Trains the run's model under a protocol, takes its mask with ``zeros`` zeros, and restores everything.

    The run is left as it was but for its cost (Jaiswal et al. 2023, algorithm 2, line 4); see :func:`departed`. The mask
    is that of the magnitudes, or with ``curvature`` of :func:`winnow.tickets.methods.isp.look_ahead.scores`.

    Args:
        sums, weights: whether its scores, and all that it trained, are returned.
        max_rate: share of its weights that a tensor may lose at most.

    Raises:
        InputError: the candidate's loss or weights became NaN or infinite, or its optimizer knows no curvature.
    """
    with departed(run, protocol, steps, curvature) as away:
        masks = MaskSet(global_magnitude(away.scores, run.keeps, zeros, max_rate))
        found = {n: m.abs() for n, m in away.scores.items()} if sums else None
        left = {n: t for n, t in _changing(run.model).items() if t.is_floating_point()} if weights else None
    return Candidate(masks, found, away.cost, left)


@dataclass(frozen=True)
class Away:
    """Where a look-ahead came to: its cost, and the prunable weights as matrices, or with a curvature their scores."""

    cost: Cost
    scores: Mapping[str, torch.Tensor]


@contextmanager
def departed(run: Run, protocol: Protocol, steps: int, curvature: float = 0.0) -> Iterator[Away]:
    """Inside, the run's model stands where ``steps`` steps under a protocol have led it; after it, where it was.

    The run's own model is trained in place, under its masks. Beside it there is one copy of what the training changes, and
    the candidate's optimizer state, of which only scores are left when the block begins. The optimizer is new (its moments empty), its
    randomness its own; the run's position, random numbers, batch norms and optimizer are untouched. The cost, which
    comes out and is charged to the run, counts the steps as look-ahead.

    Raises:
        InputError: the candidate's loss or weights became NaN or infinite, or its optimizer knows no curvature.
    """
    kept = _changing(run.model)
    cost = Cost(look_ahead=steps, weighted=steps * run.density)
    before = run.cost.seconds
    try:
        found = _train(run, protocol, steps, curvature)
        cost.seconds, run.cost.seconds = run.cost.seconds - before, before
        run.cost.add(cost)
        yield Away(cost, found)
    finally:
        copy_into(run.model, kept)
        run.model.eval()


def _train(run: Run, protocol: Protocol, steps: int, curvature: float) -> Mapping[str, torch.Tensor]:
    optimizer = run.training.optimizer(trainable(run.model), protocol.lr, protocol.weight_decay)
    # The run's hooks on gradients are in place and keep the moments of masked weights at zero; this one is for optimizers
    # that mix entries.
    handle = optimizer.register_step_post_hook(run.attached._stepped)
    stream = ("candidate", run.stream, run.step, protocol.number)
    train_mode(run.model)
    try:
        for step in range(steps):
            run.one(optimizer, step, stream, protocol.share)
        if not all(bool(m.isfinite().all()) for m in run.attached.matrices().values()):
            raise Diverged("its weights are not finite")
        return scores(run.attached, optimizer, curvature, spent=True)
    except Diverged as error:
        raise InputError(
            f"candidate {protocol.number + 1} diverged at a learning rate of {protocol.lr:g} ({error}): "
            "lower the largest of the multipliers."
        ) from error
    finally:
        handle.remove()
        run.model.zero_grad(set_to_none=True)


def protocols(
    count: int, lr: float, *, multipliers: Sequence[float], decays: Sequence[float], share: float, seed: int
) -> list[Protocol]:
    """``count`` protocols: learning rates cycle through ``multipliers`` x ``lr``, decays are drawn."""
    drawn = generator(seed, "protocols")
    found = []
    for number in range(count):
        decay = decays[int(torch.randint(len(decays), (1,), generator=drawn))]
        found.append(Protocol(number, lr * multipliers[number % len(multipliers)], decay, share))
    return found


def _changing(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of everything that training steps change: what is not frozen, and buffers (running statistics)."""
    found = {n: p for n, p in model.named_parameters() if p.requires_grad} | dict(model.named_buffers())
    return {n: t.detach().clone() for n, t in found.items()}


@torch.no_grad()
def copy_into(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors, by name, over the model's parameters and buffers; the others stay."""
    present = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        present[name].copy_(tensor)


def scores(
    attached: Attached, optimizer: torch.optim.Optimizer, power: float, *, spent: bool = False
) -> Mapping[str, torch.Tensor]:
    """|w| v^(power / 2) of every prunable weight, matrices [rows, cols] by name; v is the optimizer's mean square of gradients.

    Squared it ranks the same: w^2 v is twice the loss that Optimal Brain Damage expects from removing w (LeCun et al. 1989,
    equation 5), with the diagonal of the empirical Fisher information in the Hessian's place. A power of 1 is that, 1/2
    the curvature that Adam divides its steps by, 0 the magnitude, which needs no optimizer and gives the weights
    themselves, signs included.

    Args:
        spent: the optimizer takes no step after this: its own memory is written over.

    Raises:
        InputError: the optimizer keeps no squares of gradients, or none of a weight, as one that is frozen.
    """
    if not power:
        return attached.matrices()
    found = {}
    for name, weight in attached.weights.items():
        state = optimizer.state.get(weight, {})
        squares = next((state[key] for key in SQUARES if torch.is_tensor(state.get(key))), None)
        if squares is None or squares.shape != weight.shape:
            raise InputError(
                f"curvature needs the squared gradients of {name} and {type(optimizer).__name__} has none: set curvature to "
                "0, train with AdamW, Adam, RMSprop or Adagrad, and freeze no prunable weight."
            )
        score = (squares if spent else squares.clone()).pow_(power / 2).mul_(weight.detach().abs())
        found[name] = attached.scope.prunables[name].matrix(score)
    return found
