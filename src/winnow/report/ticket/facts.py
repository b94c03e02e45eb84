"""The last table of the page of a search: what its figures rest on."""

from __future__ import annotations

from winnow import words
from winnow.records.ticket import Figure, TicketReport
from winnow.report.compression import phrases
from winnow.report.ticket.words import flops, span


def facts(report: TicketReport) -> list[tuple[str, str]]:
    """What all of the figures rest on."""
    m, lines = report.model, report.lines(report.chosen, report.sparsity)
    rule = next((line.cost.isp for line in lines if line.cost.isp is not None), None)
    pruned = words.percent(report.forward_prunable / report.forward) if report.forward else ""
    rows = [
        ("One training, T", f"{words.count(report.steps)} steps of {_batch(report.batch)} examples"),
        ("Forward of one example", f"{flops(report.forward)}, {pruned} of it in prunable tensors"),
        ("Prunable weights", f"{words.count(m.prunable)} of {words.count(m.parameters)} parameters" if m.parameters else words.count(m.prunable)),
        ("Dense", _figure(report.dense, report)),
        ("Rounds to the last mask", f"{rule.rounds}, in {words.count(rule.mask_steps)} main steps: {words.percent(rule.share)} of T (at most 25 % is the rule)" if rule else ""),
        ("Look-ahead", f"{words.count(rule.look_ahead)} steps of candidates, thrown away" if rule and rule.look_ahead else ""),
    ]  # fmt: skip
    return [(k, v) for k, v in rows if v]


def _batch(examples: float) -> str:
    """The last batch of an epoch is short, so that the mean need not be a whole number."""
    whole = round(examples)
    return words.count(whole) if abs(examples - whole) < 1e-9 else f"about {words.count(whole)}"


def _figure(figure: Figure | None, report: TicketReport) -> str:
    if figure is None:
        return ""
    ends = span(figure, report.task)
    return phrases.quality(figure.value, report.task) + (f" ({ends})" if ends else "")
