"""How small a trial must be to fit the minutes: steps, examples, and settings that shrink with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from winnow.errors import InputError
from winnow.seeding import generator
from winnow.tickets.method import Settings
from winnow.tickets.methods.registry import METHODS
from winnow.train.examples import Examples, Part
from winnow.train.task.run import Run
from winnow.train.task.training import Training

LEAST = 20  # steps of a trial: fewer say nothing
RESERVE = 0.85  # of the minutes are planned with; the rest is for masks, scoring and what else takes time
MARGIN = 1.25  # on the minutes that a refusal names: the next start times its few steps anew, and not the same
WARM, TIMED = 1, 4  # steps before and while steps are timed
BATCHES = 8  # mini-batches of examples at least


@dataclass(frozen=True)
class Plan:
    """A trial: ``steps`` T' in place of T, on ``examples`` of them, ``seconds`` it will take."""

    steps: int
    examples: int
    seconds: float
    settings: dict[str, Settings]  # by method, shortened


class TooShort(InputError):
    """The minutes are too few for any trial; ``minutes`` are enough."""

    def __init__(self, finding: str, minutes: float) -> None:
        super().__init__(f"{finding}: give {minutes:g} minutes or more, or fewer methods and seeds.")
        self.finding, self.minutes = finding, minutes


def step_seconds(training: Training) -> float:
    """Seconds of one optimizer step here, the first one left out. Nothing of the training changes."""
    run = Run(training, steps=max(training.steps, WARM + TIMED), stream="timing")
    run.advance_to(WARM)
    before = run.cost.seconds
    run.advance_to(WARM + TIMED)
    return (run.cost.seconds - before) / TIMED


def plan(
    training: Training,
    sparsity: float,
    methods: Mapping[str, Settings],
    *,
    seeds: int,
    step: float,
    evaluation: float,
    seconds: float,
    spent: float = 0.0,
) -> Plan:
    """The longest trial of all methods and seeds that fits ``seconds``, never longer than the training itself.

    The examples shrink with the steps, so that a trial makes as many epochs as the training: what it sees of overfitting
    is what the training will see.

    Args:
        methods: settings by method name.
        step, evaluation: seconds of one of each.
        seconds: that the trial may take.
        spent: seconds before it, for the message.

    Raises:
        TooShort: not even a trial of 20 steps fits.
    """

    examples, count = training.examples, training.examples.count

    def examples_at(steps: int) -> int:
        return min(count, max(round(count * steps / training.steps), BATCHES * examples.size))

    def settings_at(steps: int) -> dict[str, Settings]:
        return {m: s.shortened(sparsity, steps, steps / training.steps) for m, s in methods.items()}

    def needed(steps: int) -> float:
        # Some method's steps go with the number of examples, whichever they are.
        few = Part(examples, examples.numbers[: _draws(examples, examples_at(steps))])
        short = training.replaced(steps=steps, examples=few)
        total = sum(METHODS[m].planned_steps(s, short, sparsity) for m, s in settings_at(steps).items())
        return seeds * (total * step + len(methods) * evaluation)

    least = min(LEAST, training.steps)
    if needed(least) > RESERVE * seconds:
        enough = math.ceil((spent + MARGIN * needed(least) / RESERVE) / 6) / 10
        raise TooShort(f"a trial of {least} steps, timing included, may take up to {enough:g} minutes here", enough)
    low, high = least, training.steps
    while low < high:  # ``needed`` rises with the steps, save for rounding
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= RESERVE * seconds else (low, middle - 1)
    return Plan(low, examples_at(low), needed(low), settings_at(low))


def subset(examples: Examples, count: int, seed: int) -> Examples:
    """So many examples drawn without replacement, with the same size of mini-batches; all where that is no fewer.

    Of batches that are drawn whole, as many as it takes on average.
    """
    if count >= examples.count:
        return examples
    numbers = examples.numbers
    drawn = torch.randperm(len(numbers), generator=generator(seed, "subset"))
    return examples.subset(numbers[drawn[: _draws(examples, count)]])


def _draws(examples: Examples, count: int) -> int:
    """How many of ``examples.numbers`` make so many examples."""
    return max(1, -(-count * len(examples.numbers) // examples.count))
