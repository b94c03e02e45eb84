"""Masks chosen once, before any training: random, by magnitude, and by saliency scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic import Field

from winnow.masks.global_ranking import global_magnitude, prune_globally
from winnow.seeding import generator
from winnow.tickets.method import Method, PruningSettings
from winnow.tickets.search import Round, Search, Ticket, densities
from winnow.train.saliency import saliency
from winnow.train.saliency.synflow import synflow_masks
from winnow.train.task.run import Run
from winnow.train.task.training import Training

Masks = dict[str, torch.Tensor]


class SnipSettings(PruningSettings):
    """SNIP (Lee et al. 2019)."""

    batches: int = Field(1, ge=1)  # mini-batches whose gradients are averaged; one is published


class GraspSettings(PruningSettings):
    """GraSP (Wang et al. 2020): masks scored on as many examples of every class."""

    # Examples, in mini-batches; where that is fewer than 10 of every class, 10 of every class.
    batches: int = Field(8, ge=1)
    temperature: float = Field(200.0, gt=0)  # the logits are divided by it; 1 for a regression


class SynflowSettings(PruningSettings):
    """SynFlow (Tanaka et al. 2020): data-free, an exponential schedule over many scorings."""

    iterations: int = Field(100, ge=1)  # scorings, each before a part of the pruning


def one_shot(search: Search, masks: Callable[[Run, int], Masks]) -> Iterator[Ticket]:
    """One ticket a sparsity: pruned before the first step by ``masks(run, zeros)``, then T steps of training."""
    for number, zeros in enumerate(search.zeros):
        run = search.run(f"run-{number}", f"train at {search.sparsities[number]:.0%} zeros")
        if "scored" not in run.notes:  # scores of weights that are masked already would be others
            run.prune(masks(run, zeros))
            run.notes["scored"] = run.cost.extra
            run.save()
        run.advance_to(run.total)
        history = [Round(1, 0, zeros, int(run.notes["scored"]), densities=densities(run.keeps))]
        yield search.ticket(run, zeros, history=history)


def magnitude(search: Search) -> Iterator[Ticket]:
    """One global ranking of |theta_0|, then T steps of training."""
    most = search.settings.max_rate
    yield from one_shot(search, lambda run, zeros: global_magnitude(run.attached.matrices(), run.keeps, zeros, most))


def random(search: Search) -> Iterator[Ticket]:
    """A random global mask, then T steps of training."""

    def masks(run: Run, zeros: int) -> Masks:
        drawn = generator(search.training.seed, "random")
        scores = {n: torch.rand(k.shape, generator=drawn).to(k.device) for n, k in run.keeps.items()}
        return prune_globally(scores, run.keeps, zeros, search.settings.max_rate)

    yield from one_shot(search, masks)


def snip(search: Search) -> Iterator[Ticket]:
    """The mask of :func:`winnow.train.saliency.saliency.snip` at theta_0, then T steps of training."""
    count, most = search.settings.batches, search.settings.max_rate
    yield from one_shot(search, lambda run, zeros: prune_globally(saliency.snip(run, count), run.keeps, zeros, most))


def grasp(search: Search) -> Iterator[Ticket]:
    """The mask of :func:`winnow.train.saliency.saliency.grasp` at theta_0, then T steps of training."""
    settings = search.settings

    def masks(run: Run, zeros: int) -> Masks:
        scores = saliency.grasp(run, settings.batches, settings.temperature)
        return prune_globally(scores, run.keeps, zeros, settings.max_rate)

    yield from one_shot(search, masks)


def synflow(search: Search) -> Iterator[Ticket]:
    """The mask of :func:`winnow.train.saliency.synflow.synflow_masks` at theta_0, then T steps of training."""
    count, most = search.settings.iterations, search.settings.max_rate
    yield from one_shot(search, lambda run, zeros: synflow_masks(run, zeros, count, most))


def _grasp_steps(settings: Any, training: Training, sparsity: float) -> int:
    examples = getattr(training, "examples", None)
    if examples is None:
        return training.steps + 3 * settings.batches
    chosen = saliency.every_class(examples, training.seed, settings.batches)
    return training.steps + saliency.grasp_steps(examples, chosen)


RANDOM = Method(random, "random", "a random mask, then training")
MAGNITUDE = Method(
    magnitude, "one-shot magnitude", "the smallest pretrained weights pruned at once, then training", brief="magnitude"
)
SNIP = Method(
    snip, "SNIP", "pruned once by how much the loss depends on each weight, then trained", SnipSettings,
    planned_steps=lambda settings, training, _: training.steps + settings.batches,
)  # fmt: skip
GRASP = Method(
    grasp, "GraSP", "pruned once so that the gradients keep their flow, then trained", GraspSettings,
    planned_steps=_grasp_steps,
)  # fmt: skip
SYNFLOW = Method(
    synflow, "SynFlow", "pruned without data by the flow through each weight, then trained", SynflowSettings,
    planned_steps=lambda settings, training, _: training.steps + settings.iterations,
)  # fmt: skip
