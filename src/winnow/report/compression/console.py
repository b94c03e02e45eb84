"""What a compression ends with on a terminal."""

from __future__ import annotations

import math
from dataclasses import replace

from winnow.records.compression import Candidate, Report
from winnow.report.allocation import view as allocation
from winnow.report.compression import phrases
from winnow.report.compression.tables import candidates
from winnow.report.draw.summary import Summary
from winnow.report.speed.tables import line

ROWS = 12  # more candidates than this: the page has them all


def summary(report: Report) -> Summary:
    """Verdict, table of candidates, allocation, notes and the next step."""
    beside = report.baseline.name if report.baseline is not None else None
    kept = _nearest(report.ranked, report.picked, beside)
    more = f"{len(report.candidates) - len(kept)} more in the report" if len(kept) < len(report.candidates) else ""
    table = replace(candidates(report.model_copy(update={"candidates": kept})), more=more)
    found = report.allocation
    said = found.warnings if found is not None else []
    lines = [("The file", phrases.contents(report.sizes)), ("Vocabulary", phrases.vocabulary(report.model))]
    lines += [("Next step", report.next_step or ""), ("Undo", report.undo or "")]
    lines += [("Note", note) for note in report.notes if note not in said]
    lines.append(("Speed here", line(report.speed)))
    parts = allocation.lines(found) if found is not None else []
    return Summary(report.verdict.tone, report.verdict.sentence, [table, *parts, lines])


def _nearest(ranked: list[Candidate], picked: Candidate | None, beside: str | None) -> list[Candidate]:
    """At most ROWS candidates: dense, ticket, chosen and the baseline that the verdict names always, then those nearest the
    chosen one's bits per weight."""
    around = picked.bits_per_weight or 0.0 if picked is not None else 0.0

    def far(c: Candidate) -> float:
        if c is picked or c.unpacked or c.name == beside:
            return -1.0
        return abs(c.bits_per_weight - around) if c.bits_per_weight is not None else math.inf

    kept = {id(c) for c in sorted(ranked, key=far)[:ROWS]}
    return [c for c in ranked if id(c) in kept]
