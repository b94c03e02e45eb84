"""A trial in minutes: whether a full search for a ticket is worth its time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from winnow.budget import parse_sparsity
from winnow.errors import InputError
from winnow.measure.intervals import proportion_interval
from winnow.terminal.progress import Expected, ProgressOption, expect, watch
from winnow.tickets.cost import imp_rounds
from winnow.tickets.method import Settings
from winnow.tickets.methods.registry import METHODS, known
from winnow.tickets.search import Search, Ticket
from winnow.tickets.trial.size import plan, step_seconds, subset
from winnow.tickets.trial.verdict import MAX_DROP, Full, Verdict, judge
from winnow.train.task.training import Training
from winnow.words import duration


def poc(
    training: Training,
    sparsity: float | str,
    *,
    minutes: float = 3.0,
    methods: Sequence[str] = ("ticket", "magnitude", "dense"),
    seeds: int = 1,
    max_drop: float = MAX_DROP,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressOption = None,
) -> Verdict:
    """Trains a few short tickets on a few examples and says whether the full run is worth it.

    The first steps are timed; then steps and examples are shrunk alike until all methods and seeds fit the minutes. All
    are measured on the training's own evaluation data. The first method is the one judged; the dense training belongs to
    every trial and is added where it is missing.

    Args:
        training: of the full run, with ``evaluate``; it is not changed.
        minutes: that the trial may take, about; at least what 20 steps of each method take.
        methods: names in :data:`winnow.tickets.METHODS`; "ticket" is the one that measured best.
        seeds: trainings of each method.
        max_drop: points of the metric (per cent of a perplexity) that a ticket may lose.
        settings: of the method judged, for the full run; the trial's are shrunk from them.
        progress: bars or lines by itself, True or False, or a function: see :func:`winnow.terminal.progress.watch`.

    Raises:
        InputError: no evaluation data, an unknown method, or minutes too few for any trial.
    """
    start = time.perf_counter()
    if training.evaluate is None:
        raise InputError("a trial is judged by its quality: give evaluation data.")
    if not minutes > 0 or seeds < 1:
        raise InputError(f"{minutes:g} minutes and {seeds} seeds: both must be greater than 0.")
    rate = parse_sparsity(sparsity)
    if not 0 < rate < 1:
        raise InputError(f"sparsity {rate:g}: give one between 0 and 1.")
    chosen, kinds = _settings(methods, training, dict(settings or {}))
    proportion_interval(1, 2)  # imports what intervals need: seconds that no later evaluation takes
    step = step_seconds(training)
    before_start = time.perf_counter()
    before = training.evaluate(training.model)
    measuring = time.perf_counter() - before_start
    spent = time.perf_counter() - start
    found = plan(
        training, rate, kinds, seeds=seeds, step=step, evaluation=measuring, seconds=max(60 * minutes - spent, 0.0),
        spent=spent,
    )  # fmt: skip
    short = training.replaced(steps=found.steps, examples=subset(training.examples, found.examples, training.seed))
    tickets: list[Ticket] = []
    done = 0
    with watch(progress) as stages:
        expect(stages, [Expected("*", "training", 60 * minutes / (seeds * len(kinds)))] * (seeds * len(kinds)))
        for seed in range(seeds):
            began = time.perf_counter()
            for method in kinds:
                one = short.replaced(seed=training.seed + seed)
                rates = [0.0] if method == "dense" else [rate]
                tickets += METHODS[method].finder(Search(method, one, rates, found.settings[method], progress=stages))
            done += 1
            now = time.perf_counter()
            if now - start + now - began > 60 * minutes:
                break
    evaluations = {m: [t.evaluation for t in tickets if t.method == m and t.evaluation is not None] for m in kinds}
    decision, short_reason, reasons, ability, drop, gain = judge(evaluations, before, chosen, rate, max_drop)
    dense = [t.cost for t in tickets if t.method == "dense"]
    step = sum(c.seconds for c in dense) / max(sum(c.steps for c in dense), 1)
    # Extrapolated from the seconds of a step; masks and candidates' copies are small beside them.
    steps, imp = METHODS[chosen].planned_steps(kinds[chosen], training, rate), (imp_rounds(rate) + 1) * training.steps
    full = Full(steps, steps * step + measuring, imp, imp * step + measuring)
    if done < seeds:
        reasons.append(f"{done} of {seeds} seeds were run: the time was up.")
    seconds = time.perf_counter() - start
    reasons += _lengths(training, found.steps, short.examples.count, full)
    head = {"go": "Go", "no-go": "No-go", "undecided": "Undecided"}[decision]
    trial = f"in a trial of {found.steps:,} steps on {short.examples.count:,} examples ({duration(seconds)})"
    return Verdict(
        decision, f"{head}: {trial} {short_reason}; the full run takes about {duration(full.seconds)}.", reasons,
        ability, drop, gain, full, found.steps, short.examples.count, seconds, tickets, short,
    )  # fmt: skip


def _settings(methods: Sequence[str], training: Training, given: dict[str, Any]) -> tuple[str, dict[str, Settings]]:
    """The method judged, and the full run's settings of every method of the trial, the dense training among them."""
    names = list(dict.fromkeys(known(m) for m in methods))
    judged = next((m for m in names if m != "dense"), None)
    if judged is None:
        raise InputError("a trial judges a ticket against the dense training: name a method beside dense.")
    every = ["dense", *(m for m in names if m != "dense")]
    return judged, {m: METHODS[m].read_settings(given if m == judged else {}, m, training.kind) for m in every}


def _lengths(training: Training, steps: int, examples: int, full: Full) -> list[str]:
    found = [
        f"The full run takes {full.steps:,} steps ({full.steps / training.steps:.3g} T), about {duration(full.seconds)} here; "
        f"full IMP {full.imp_steps:,} steps ({full.imp_steps / training.steps:.3g} T), about {duration(full.imp_seconds)}."
    ]
    if steps < training.steps:
        found.append(
            f"T is {training.steps:,} steps on {training.examples.count:,} examples, the trial had {steps:,} on {examples:,}: "
            "both models gain from the rest, the sparse one usually more."
        )
    return found
