"""The report of a recipe's ticket, with the dense training of the recipe to compare it with."""

from __future__ import annotations

from pathlib import Path

from winnow.measure.evaluation import Evaluation
from winnow.records.ticket import TicketReport
from winnow.report.ticket.page import read
from winnow.report.ticket.verdict import judge, warnings
from winnow.tickets import audit
from winnow.tickets.reporting import METRICS


def ticket_page(
    folder: Path, ticket: Path, dense: Path | None, *, model: str, data: str | None, command: str | None
) -> TicketReport:
    """The report that a ticket stage left in ``folder``, speaking of the recipe's model and data.

    It is completed here and not when the stage ends: a stage that starts from the recipe's model does not depend on the
    dense training, which may be another one the next time.

    Args:
        ticket, dense: stored evaluations of the ticket and of the train stage; without one of them nothing is compared.
    """
    report = read(folder)
    report.model.name, report.title, report.command = model, f"Ticket of {model}", command
    report.task.evaluation_data = data
    if dense is not None and dense.exists() and ticket.exists():
        _compare(report, Evaluation.load(ticket), Evaluation.load(dense))
    return report


def _compare(report: TicketReport, ticket: Evaluation, dense: Evaluation) -> None:
    line, row = report.tickets[0], report.rows[0]  # a recipe's stage is one ticket
    scale = METRICS[dense.metric][3] if dense.metric in METRICS else 1.0
    report.dense = audit.figure(dense, scale)
    line.drop = row.drop = audit.drop(dense, ticket, report.task.higher_is_better)
    line.changes, line.classes = audit.changes(dense, ticket), audit.classes(dense, ticket)
    report.verdict, report.sparsity = judge(report)
    report.warnings = warnings(report)
