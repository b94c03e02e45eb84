"""The report of a search for tickets, built from the tickets themselves."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from winnow import words
from winnow.errors import InputError
from winnow.measure.evaluation import Evaluation, Reference
from winnow.records.compression import ModelInfo, TaskInfo, Verdict
from winnow.records.ticket import Cost, MethodLine, RoundLine, Row, TicketLine, TicketReport
from winnow.report.ticket.verdict import judge, warnings
from winnow.tickets import audit
from winnow.tickets.cost import price, training_flops
from winnow.tickets.methods.registry import METHODS
from winnow.tickets.search import Ticket
from winnow.train.task.training import Training

YARDSTICKS = ("imp", "imp-rewind", "lrr", "lottery-pool", "magnitude")  # what others are compared with, the best first
METRICS = {
    "accuracy": ("accuracy", "%", True, 100.0),
    "agreement": ("agreement with the dense model", "%", True, 100.0),
    "spearman": ("Spearman correlation", "", True, 100.0),
    "perplexity": ("perplexity", "", False, 1.0),
}
Dense = Evaluation | Reference


def build(
    tickets: Sequence[Ticket],
    dense: Dense | Sequence[Dense] | None,
    training: Training,
    *,
    seeds: Sequence[int] | None = None,
    chosen: str | None = None,
    reference: str | None = None,
    title: str = "",
    model: str = "",
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TicketReport:
    """Everything a search has to say, from its tickets.

    Args:
        tickets: of one training (one model, scope and T), any methods and sparsities; several of one method and
            sparsity are its seeds.
        dense: what the densely trained model did on the same examples; one for each seed where there are several. None
            takes the tickets of method "dense", if there are any.
        seeds: of each ticket; by default the tickets of a method and sparsity are numbered as they come. Differences
            between methods are paired by seed.
        chosen: the method that the verdict is about; by default the first one.
        reference: the method others are compared with, masks and figures; by default IMP or the nearest to it there is.
        title, model, data, settings: shown as they are; the model's class where no name is given.

    Raises:
        InputError: no ticket, tickets of different models, evaluations of different examples, or an unknown method.
    """
    model = model or type(training.model).__name__
    if not tickets:
        raise InputError("there is no ticket to report: find one first.")
    flops, batch = training_flops(training)
    scope = training.scope()
    for ticket in tickets:
        if set(ticket.masks) != set(scope.prunables):
            raise InputError(
                f"the ticket of {ticket.method} has masks of another model: report each training by itself."
            )
    numbers = _seeds(tickets, seeds)
    methods = list(dict.fromkeys(t.method for t in tickets))
    chosen = _known(chosen, methods, next((m for m in methods if m != "dense"), methods[0]))
    rest = [m for m in methods if m != chosen]
    reference = _known(reference, methods, next((m for m in YARDSTICKS if m in rest), None))
    denses = _denses(dense, tickets, numbers)
    task = task_of([t.evaluation for t in tickets], data)
    first = next(iter(denses.values()), None)
    costs = [price(t, training.steps, (flops, batch)) for t in tickets]
    lines = [_line(t, n, cost, task, denses.get(n, first)) for t, n, cost in zip(tickets, numbers, costs)]
    groups: dict[tuple[int, str], list[tuple[Ticket, TicketLine]]] = {}  # by zeros and method: one for each seed
    for ticket, line in zip(tickets, lines):
        groups.setdefault((ticket.zeros, ticket.method), []).append((ticket, line))
    rows = []
    for zeros, method in sorted(groups, key=lambda g: (g[0], methods.index(g[1]))):
        own = groups[zeros, method]
        theirs = {} if method == reference else {b.seed: t for t, b in groups.get((zeros, reference or ""), [])}
        for ticket, line in own:
            line.tensors = audit.tensors(ticket.masks, flops.tensors)
            if theirs:
                other = theirs.get(line.seed, next(iter(theirs.values())))
                line.overlap = audit.overlap(ticket.masks, other.masks, other.method)
        rows.append(_row(own, theirs, task))
    found = {m: METHODS[m] for m in methods if m in METHODS}
    described = {m: MethodLine(title=f.title, brief=f.brief, meaning=f.meaning) for m, f in found.items()}
    trained = None
    if methods == ["sparse-training"] and len(tickets) == 1:
        trained = audit.training(tickets[0], settings or {})
        described = {"sparse-training": MethodLine(title=trained.method, meaning=described["sparse-training"].meaning)}
    figures = [audit.figure(e, scale_of(e)) for e in denses.values()]
    report = TicketReport(
        title=title or f"Tickets of {model}", verdict=Verdict(sentence="", tone="mixed"),
        model=ModelInfo(
            name=model, architecture=type(training.model).__name__, prunable=scope.numel,
            parameters=sum(p.numel() for p in training.model.parameters()),
        ),
        task=task, chosen=chosen, sparsity=0.0, reference=reference, steps=training.steps, batch=batch,
        forward=flops.total, forward_prunable=flops.prunable, dense=audit.pooled(figures, ends_of(task)),
        tickets=lines, rows=rows, settings=dict(settings or {}), training=trained, described=described,
    )  # fmt: skip
    report.verdict, report.sparsity = judge(report)
    report.warnings = warnings(report)
    remarks = [f"{report.named(t.method)} at {words.percent(t.sparsity)}: {note}" for t in tickets for note in t.notes]
    report.notes = list(dict.fromkeys([*training.notes, *remarks]))
    return report


def _seeds(tickets: Sequence[Ticket], given: Sequence[int] | None) -> list[int]:
    if given is not None:
        if len(given) != len(tickets):
            raise InputError(f"{len(given)} seeds for {len(tickets)} tickets: give one for each ticket.")
        return list(given)
    counts: dict[tuple[str, int], Iterator[int]] = defaultdict(itertools.count)
    return [next(counts[t.method, t.zeros]) for t in tickets]


def _known(name: str | None, methods: Sequence[str], default: Any) -> Any:
    if name is not None and name not in methods:
        raise InputError(f"no ticket is of method {name!r}: name one of {', '.join(methods)}.")
    return name if name is not None else default


def _denses(
    given: Dense | Sequence[Dense] | None, tickets: Sequence[Ticket], numbers: Sequence[int]
) -> dict[int, Evaluation]:
    """Evaluations of the dense model by seed; one alone serves all."""
    if given is None:
        return {n: t.evaluation for n, t in zip(numbers, tickets) if t.method == "dense" and t.evaluation is not None}
    several = list(given) if isinstance(given, Sequence) else [given]
    plain = [d.evaluation if isinstance(d, Reference) else d for d in several]
    order = list(dict.fromkeys(sorted(numbers)))
    if len(plain) > len(order):
        raise InputError(f"{len(plain)} dense evaluations for {len(order)} seeds: give one, or one for each seed.")
    return dict(zip(order, plain))


def task_of(evaluations: Sequence[Evaluation | None], data: str | None) -> TaskInfo:
    known = [e for e in evaluations if e is not None]
    if len({(e.metric, e.n) for e in known}) > 1:
        raise InputError("the tickets were evaluated on different data: evaluate all on one task.")
    if not known:
        return TaskInfo(evaluation_data=data)
    metric, unit, higher, _ = METRICS.get(known[0].metric, (known[0].metric, "", True, 1.0))
    return TaskInfo(metric=metric, unit=unit, higher_is_better=higher, evaluation_data=data, n=known[0].n)


def scale_of(evaluation: Evaluation) -> float:
    """From the stored figure to the one that is shown."""
    return METRICS[evaluation.metric][3] if evaluation.metric in METRICS else 1.0


def ends_of(task: TaskInfo) -> tuple[float, float]:
    return (0.0, 100.0) if task.unit == "%" else (float("-inf"), float("inf"))


def _line(ticket: Ticket, seed: int, cost: Cost, task: TaskInfo, dense: Evaluation | None) -> TicketLine:
    evaluation = ticket.evaluation
    scale = 1.0 if evaluation is None else scale_of(evaluation)
    line = TicketLine(
        method=ticket.method, seed=seed, sparsity=ticket.sparsity, zeros=ticket.zeros, notes=list(ticket.notes),
        cost=cost,
        rounds=[
            RoundLine(
                number=r.number, step=r.step, steps=r.steps, zeros=r.zeros, sparsity=r.zeros / ticket.masks.numel,
                disagreement=r.disagreement, unanimous=r.unanimous, densities=r.densities,
                quality=None if r.accuracy is None else scale * r.accuracy,
            )
            for r in ticket.history
        ],
    )  # fmt: skip
    if evaluation is not None:
        line.figure = audit.figure(evaluation, scale)
        if dense is not None and dense is not evaluation:
            line.drop = audit.drop(dense, evaluation, task.higher_is_better)
            line.changes = audit.changes(dense, evaluation)
            line.classes = audit.classes(dense, evaluation)
    return line


def _row(own: Sequence[tuple[Ticket, TicketLine]], theirs: Mapping[int, Ticket], task: TaskInfo) -> Row:
    """One method at one sparsity; ``theirs`` are the tickets of the reference there by seed."""
    gaps = []
    for ticket, line in own:
        other = theirs.get(line.seed)
        if other is not None and ticket.evaluation and other.evaluation:
            gaps.append(audit.drop(other.evaluation, ticket.evaluation, task.higher_is_better))
    lines = [line for _, line in own]
    means = ("steps", "passes", "dense_flops", "sparse_flops", "forward_share", "seconds")
    return Row(
        method=lines[0].method, sparsity=lines[0].sparsity, zeros=lines[0].zeros, seeds=len(own),
        figure=audit.pooled([line.figure for line in lines if line.figure is not None], ends_of(task)),
        drop=audit.pooled([line.drop for line in lines if line.drop is not None]),
        against=audit.pooled(gaps), imp_steps=lines[0].cost.imp_steps,
        **{name: sum(getattr(line.cost, name) for line in lines) / len(own) for name in means},
    )  # fmt: skip
