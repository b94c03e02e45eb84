"""Iterative magnitude pruning: train, prune, start again; with weight rewinding, and with learning-rate rewinding."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from winnow.errors import FormatError, InputError
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, write_tensors
from winnow.masks.global_ranking import global_magnitude
from winnow.masks.mask import MaskSet
from winnow.tickets.method import Method, PruningSettings, levels
from winnow.tickets.search import Round, Search, Ticket, densities
from winnow.train.resume import read_under
from winnow.train.task.run import Cost, Position, Run
from winnow.train.task.training import Training

State = dict[str, torch.Tensor]


class ImpSettings(PruningSettings):
    """Iterative magnitude pruning, restarted from the pretrained weights or (LRR) going on from the trained ones."""

    rate: float = Field(0.2, gt=0, lt=1)  # of what is left, a round
    budget: float | None = Field(None, gt=0)  # steps of the K + 1 trainings in all, as a multiple of T; None: T each
    # Share of the budget that the last training takes, the ticket's own; the others share the rest. None: all alike.
    last: float | None = Field(0.8, gt=0, lt=1)

    def shortened(self, sparsity: float, steps: int, share: float) -> ImpSettings:
        """Within a budget, as many rounds as there is room for."""
        if self.budget is None:
            return self
        most = most_rounds(self, steps)
        fits = len(levels([sparsity], self.rate)) <= most
        return self if fits else self.model_copy(update={"rate": 1 - (1 - sparsity) ** (1 / most)})


class RewindSettings(ImpSettings):
    """IMP that returns to an early step of the first training, not to the pretrained weights."""

    rewind: float = Field(0.05, ge=0, lt=1)  # share of T


def imp(search: Search) -> Iterator[Ticket]:
    """Every round trains T steps from theta_0 under its mask and prunes by the trained magnitudes (Frankle and Carbin 2019).

    One trajectory serves all sparsities: the training under a target's mask is that target's ticket, and the one that the
    next mask comes from. K rounds of pruning are K + 1 trainings, the first of them dense. All draw the same data in the
    same order. With ``budget`` B the K + 1 trainings to a target share B T steps, each with its whole learning-rate decay:
    the last one, the ticket's own, takes a share ``last`` of them and the others, which only find its mask, the rest in
    equal parts. Every target has a trajectory of its own then, so that each ticket costs what was said. (How so few steps
    are shared is this library's own; no paper has it. Equal parts leave the ticket with less the smaller the rate is.)

    One ranking over all tensors, as later work on deep networks has it; the first paper prunes each layer by itself, and
    its output layer at half the rate, where here the output head stays dense.
    """
    yield from _tickets(search, Restart())


def imp_rewind(search: Search) -> Iterator[Ticket]:
    """IMP that returns to the weights after ``rewind`` T steps of the first, dense training (Frankle et al. 2020).

    Learning rate and data go on from that step too, so that later trainings take (1 - rewind) T steps; the optimizer's
    moments begin anew. With a ``budget`` the step is the same share of the first training's steps.
    """
    yield from _tickets(search, Restart(rewind=search.settings.rewind))


def lrr(search: Search) -> Iterator[Ticket]:
    """Learning-rate rewinding: weights go on from where they are, the schedule begins anew each round (Renda et al. 2020).

    The optimizer's moments begin anew, and each round draws the data in an order of its own.
    """
    yield from _tickets(search, Restart(onwards=True))


@dataclass(frozen=True)
class Restart:
    """Where the trainings after the first begin: at step ``rewind`` T of it, or (``onwards``) where the last one ended."""

    rewind: float = 0.0
    onwards: bool = False


@dataclass
class Trained:
    """One finished training of a trajectory, ``number`` 0 being the dense one; ``cost`` and ``history`` up to its end."""

    number: int
    zeros: int
    run: Run
    cost: Cost
    history: list[Round]


@dataclass
class Way:
    """The counts of zeros of a trajectory's trainings, from 0 up, and which of them are targets."""

    zeros: list[int]
    targets: list[int]

    @classmethod
    def to(cls, search: Search, sparsities: Sequence[float], rate: float) -> Way:
        found = levels(sparsities, rate)
        return cls([0, *(search.zeros_at(s) for s in found)], [1 + found.index(s) for s in sparsities])


def ways(search: Search, what: str, rewind: float = 0.0) -> Iterator[tuple[str, Way, list[int]]]:
    """The name of each trajectory of a search, its way and the lengths of its trainings. With a budget every target has one."""
    settings, sparsities = search.settings, list(search.sparsities)
    for number, group in enumerate([sparsities] if settings.budget is None else [[s] for s in sparsities]):
        way = Way.to(search, group, settings.rate)
        name = what if settings.budget is None else f"target-{number}-{what}"
        yield name, way, lengths(settings, search.training.steps, len(way.zeros), rewind)


def _tickets(search: Search, restart: Restart) -> Iterator[Ticket]:
    for name, way, steps in ways(search, "round", restart.rewind):
        for trained in trajectory(search, way.zeros, way.targets, steps=steps, restart=restart, name=name):
            yield search.ticket(trained.run, trained.zeros, cost=trained.cost, history=trained.history)


def lengths(settings: ImpSettings, total: int, trainings: int, rewind: float = 0.0) -> list[int]:
    """Steps of the schedule of each of so many trainings: T (``total``), or what a budget leaves, rounded down.

    Trainings after the first begin at step ``rewind`` times the first one's length of theirs.

    Raises:
        InputError: a budget of less than a step each.
    """
    budget, share = settings.budget, settings.last
    if budget is None:
        return [total] * trainings
    spent = int(budget * total + 1e-9)
    if trainings == 1:
        found = [spent]
    elif share is None:
        found = [int(budget * total / (1 + (trainings - 1) * (1 - rewind)) + 1e-9)] * trainings
    else:
        between, last = trainings - 2, max(round(share * spent), 1)
        others = max(int((spent - last) / (1 + between * (1 - rewind)) + 1e-9), 1)
        early = round(rewind * others)
        own = min(last, spent - others - between * (others - early))
        found = [others] * (trainings - 1) + [early + own if own > 0 else 0]
    if min(found) < 1:
        raise InputError(
            f"{budget:g} times {total} steps are too few for {trainings} trainings: give a larger budget or a larger rate."
        )
    return found


def most_rounds(settings: ImpSettings, steps: int) -> int:
    """The most rounds of pruning, one at least, that leave every training of a budget a step, T being ``steps``."""
    assert settings.budget is not None
    spent = int(settings.budget * steps + 1e-9)
    if settings.last is not None:
        return max(1, spent - 1)
    return max(1, math.floor((spent - 1) / (1 - getattr(settings, "rewind", 0.0)) + 1e-9))


def trajectory(
    search: Search, zeros: Sequence[int], targets: Collection[int], *, steps: Sequence[int], restart: Restart, name: str
) -> Iterator[Trained]:
    """Trains once for each count of ``zeros`` (rising, the first 0) and yields those whose numbers are ``targets``.

    ``steps`` are the lengths of their schedules (:func:`lengths`).

    With a store, each finished training leaves its cost and the mask that the next one takes. Its weights are removed as
    soon as nothing needs them: neither a ticket nor, with ``onwards``, the next training.
    """
    kept = _Kept(search, name)
    done = kept.done(len(zeros))
    first = round(restart.rewind * steps[0])
    keeps: dict[str, torch.Tensor] | None = None
    state: State | None = None  # where the next training begins; None is theta_0
    cost, rounds = Cost(), list[Round]()
    for number, count in enumerate(zeros):
        finished = number < done
        carries = restart.onwards and number == done - 1 and number + 1 < len(zeros)
        if finished and number not in targets and not carries:
            cost, rounds, keeps = kept.read(number)
            continue
        if not finished and number and first and state is None:
            state = read_under("model.", TensorFile(kept.early))
        run = search.run(
            f"{name}-{number}", f"training {number + 1} of {len(zeros)}, {count / search.scope.numel:.0%} zeros",
            start=Position(None if finished else state, keeps), steps=steps[number], first_step=first if number else 0,
            stream=("round", number) if restart.onwards and number else "main",
        )  # fmt: skip
        if finished:
            if run.step != steps[number]:
                raise FormatError(f"{run.file} has no weights of {name}-{number}: delete the store and run again.")
            cost, rounds, keeps = kept.read(number)
        else:
            if number == 0 and first and run.step <= first:
                run.advance_to(first)
                state = kept.keep_early(run)
            run.advance_to(steps[number])
            run.finish()
            cost.add(run.cost)
            if number + 1 < len(zeros):
                after, matrices = zeros[number + 1], run.attached.matrices()
                keeps = global_magnitude(matrices, run.keeps, after, search.settings.max_rate)
                rounds.append(Round(number + 1, steps[number], after, cost.steps, densities=densities(keeps)))
            kept.write(number, cost, rounds, keeps)
            kept.remove_weights(n for n in range(number + (not restart.onwards)) if n not in targets)
        if restart.onwards:
            state = run.position().state  # type: ignore[assignment]
        if number in targets:
            yield Trained(number, count, run, replace(cost), rounds[:number])
        del run  # its optimizer's state goes before the next one's comes
    if search.store is not None:
        kept.early.unlink(missing_ok=True)


class _Kept:
    """What a trajectory keeps in the search's store: a record and a mask for each finished training, the early weights."""

    def __init__(self, search: Search, name: str) -> None:
        self.store, self.prefix = search.store, f"{search.key}-{name}"

    @property
    def early(self) -> Path:
        return self._folder(0) / "early.safetensors"

    def done(self, trainings: int) -> int:
        """How many trainings, from the first, have ended."""
        if self.store is None:
            return 0
        ended = (n for n in range(trainings) if self.store.read(f"{self.prefix}-{n}-ended") is None)
        return next(ended, trainings)

    def write(self, number: int, cost: Cost, rounds: list[Round], keeps: dict[str, torch.Tensor] | None) -> None:
        """All up to the end of a training; ``keeps`` are the masks of the next. The record is written after its file."""
        if self.store is None:
            return
        files = []
        if keeps is not None:
            files = [self._folder(number) / "next.safetensors"]
            MaskSet(keeps).save(files[0])
        record = {"cost": vars(cost), "rounds": [asdict(r) for r in rounds]}
        self.store.write(f"{self.prefix}-{number}-ended", record, files=files)

    def read(self, number: int) -> tuple[Cost, list[Round], dict[str, torch.Tensor]]:
        assert self.store is not None
        found = self.store.read(f"{self.prefix}-{number}-ended")
        assert found is not None
        masks = MaskSet.load(self._folder(number) / "next.safetensors")
        rounds = [Round(**r) for r in found["rounds"]]
        return Cost(**found["cost"]), rounds, {n: m.unpack() for n, m in masks.items()}

    def keep_early(self, run: Run) -> State:
        state = dict(run.position().state or {})
        if self.store is not None:
            tensors = {f"model.{n}": t.cpu() for n, t in state.items()}
            write_tensors(self.early, tensors, {"format_version": FORMAT_VERSION})
        return state

    def remove_weights(self, numbers: Iterable[int]) -> None:
        for number in numbers if self.store is not None else ():
            (self._folder(number) / "run.safetensors").unlink(missing_ok=True)

    def _folder(self, number: int) -> Path:
        assert self.store is not None
        return self.store.folder(f"{self.prefix}-{number}")


def planned_steps(settings: Any, training: Training, sparsity: float) -> int:
    """Of the K + 1 trainings to a sparsity."""
    rounds, rewind = len(levels([sparsity], settings.rate)), getattr(settings, "rewind", 0.0)
    each = lengths(settings, training.steps, rounds + 1, rewind)
    return sum(each) - rounds * round(rewind * each[0])


IMP = Method(
    imp, "IMP", "iterative magnitude pruning: trained, pruned, begun again from the pretrained weights", ImpSettings,
    planned_steps=planned_steps, trajectory=True,
)  # fmt: skip
IMP_REWIND = Method(
    imp_rewind, "IMP, rewinding", "IMP that returns to an early step of its first training", RewindSettings,
    brief="IMP rewind", planned_steps=planned_steps, trajectory=True,
)  # fmt: skip
LRR = Method(
    lrr, "LRR", "learning-rate rewinding: IMP that keeps the trained weights and restarts the schedule", ImpSettings,
    planned_steps=planned_steps, trajectory=True,
)  # fmt: skip
