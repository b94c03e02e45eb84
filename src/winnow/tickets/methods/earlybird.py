"""EarlyBird: the magnitude mask of a training that has only just begun, taken as soon as it has converged."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from winnow.masks.global_ranking import global_magnitude
from winnow.masks.mask import MaskSet
from winnow.tickets.method import Method, PruningSettings
from winnow.tickets.search import Round, Search, Ticket, densities
from winnow.train.task.run import Run


class EarlyBirdSettings(PruningSettings):
    """EarlyBird: the magnitude mask of a dense training once it has converged."""

    STEPS = ("every",)

    every: int = Field(10, ge=1)  # steps between two masks
    queue: int = Field(5, ge=2)  # masks looked at: the newest must agree with the others
    # Each at a distance below this, 1 being that of two random masks with as many zeros. The 0.1 that is published is a share
    # of all entries, of which random masks of 50% differ in half: 0.2 here.
    tolerance: float = Field(0.2, gt=0)
    patience: float = Field(0.25, gt=0, le=1)  # share of T after which the mask is taken as it is


def earlybird(search: Search) -> Iterator[Ticket]:
    """Dense steps until the mask has converged, then the rest of the same T steps under it (You et al. 2020).

    Every ``every`` steps the global magnitude mask at the target sparsity is compared with the ``queue`` - 1 masks before
    it; once the :func:`distance` to each is below ``tolerance``, the newest is taken (arXiv 1909.11957, algorithm 1, with
    weights in the place of channels), and after a share ``patience`` of T in any case. Weights, optimizer and schedule
    go on as they stand: nothing is reset, and T steps are all that is spent.

    Beside the authors' code (GATECH-EIC/Early-Bird-Tickets, main.py): there too five masks are looked at and the newest is
    compared with the other four. Their masks are of channels by batch norms' factors, drawn once an epoch of a training
    with a penalty on these factors, and a distance is the share of all entries that differ, 0.1 at 30 to 70%. Among
    weights of 90% zeros that share is 0.18 between masks that have nothing to do with each other, hence the distance
    here. Their scripts train the network that is cut out anew, from its weights or from new ones; here one training goes on.
    """
    for number, zeros in enumerate(search.zeros):
        name = f"run-{number}"
        run = search.run(name, f"train and draw at {search.sparsities[number]:.0%} zeros")
        folder = None if search.store is None else search.store.folder(f"{search.key}-{name}")
        if "drawn" not in run.notes:
            _draw(run, zeros, search.settings, folder)
        for old in () if folder is None else folder.glob("mask-*.safetensors"):
            old.unlink(missing_ok=True)
        run.advance_to(run.total)
        step, apart = run.notes["drawn"], run.notes["distance"]
        why = "when it had converged" if run.notes["converged"] else "when patience ran out"
        ticket = search.ticket(run, zeros, history=[Round(1, step, zeros, step, densities=densities(run.keeps))])
        ticket.notes.append(
            f"the mask was drawn after {step} of {run.total} steps, {why}"
            + ("." if apart is None else f": {apart:.0%} as far from the masks before it as random masks are.")
        )
        yield ticket


def _draw(run: Run, zeros: int, settings: EarlyBirdSettings, folder: Path | None) -> None:
    every, queue = settings.every, settings.queue
    limit = max(1, round(settings.patience * run.total))
    recent: deque[MaskSet] = deque(maxlen=queue - 1)
    checks = [*range(every, limit, every), limit]
    past = [step for step in checks if step < run.step]
    if folder is not None:
        recent.extend(MaskSet.load(_file(folder, step)) for step in past[1 - queue :])
    for step in checks[len(past) :]:
        run.advance_to(step)
        mask = MaskSet(global_magnitude(run.attached.matrices(), run.keeps, zeros, settings.max_rate))
        found = largest_distance(mask, recent)
        converged = len(recent) == queue - 1 and found is not None and found < settings.tolerance
        if converged or step == limit:
            run.notes |= {"drawn": step, "distance": found, "converged": converged}
            run.prune(mask)
            run.save()
            return
        recent.append(mask)
        if folder is not None:
            mask.save(_file(folder, step))
            place = checks.index(step)
            # A restart makes this mask again and needs the ``queue`` - 1 before it, no earlier ones.
            if place % queue == 0:
                run.save()
                for old in checks[: max(place - queue, 0)]:
                    _file(folder, old).unlink(missing_ok=True)


def largest_distance(mask: MaskSet, others: Iterable[MaskSet]) -> float | None:
    """The largest :func:`distance` of ``mask`` from one of ``others``; None without others."""
    return max((distance(mask, other) for other in others), default=None)


def distance(mask: MaskSet, other: MaskSet) -> float:
    """0 for equal masks, 1 for two that are drawn at random with a share S of zeros: those differ in 2 S (1 - S).

    The Hamming distance over what it is expected to be between random masks with as many zeros as these two; masks that
    have no kept weight in common come out at 1 / S.
    """
    first, second = mask.zeros / mask.numel, other.zeros / other.numel
    expected = first * (1 - second) + second * (1 - first)
    return mask.hamming(other).overall / mask.numel / expected if expected else 0.0


def _file(folder: Path, step: int) -> Path:
    return folder / f"mask-{step}.safetensors"


EARLYBIRD = Method(earlybird, "EarlyBird", "the magnitude mask once it has converged", EarlyBirdSettings)
