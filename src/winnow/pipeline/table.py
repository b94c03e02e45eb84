"""What ``winnow run`` prints: the stages of a recipe, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from winnow.measure.compare import compare
from winnow.pipeline.execution import PlannedStage
from winnow.pipeline.stage import figures_of
from winnow.pipeline.stages import KINDS
from winnow.pipeline.verb import RunResult
from winnow.terminal.screen import Text
from winnow.tickets.trial.verdict import Verdict
from winnow.words import amount, change, count, duration, number, size


def planned_table(stages: Sequence[PlannedStage]) -> RenderableType:
    """The stages of a dry run."""
    table = _table(("", "stage", "", "steps", ""))
    for s in stages:
        table.add_row(str(s.number), s.kind, Text(s.what), _steps(s), "finished" if s.finished else "to do")
    return Group(Text("Stages (nothing is written)", style="bold"), table)


def ran_table(ran: RunResult) -> RenderableType:
    """The stages of a finished run, and where their result is."""
    table = _table(("", "stage", "", "time", "zeros", "file", "quality", "change", ""))
    for s in ran.stages:
        f = s.figures
        zeros = "" if "sparsity" not in f else f"{100 * f['sparsity']:.4g}%"
        table.add_row(
            str(s.number), s.kind, Text(s.what), duration(s.seconds), zeros, size(f["file_bytes"]) if "file_bytes" in f else "",
            Text(_quality(f)), _change(f), "was finished" if s.reused else "",
        )  # fmt: skip
    notes = [Text(note, style="dim") for note in ran.notes]
    result = ran.folder.resolve()
    pages = [Text(f"{title}: {result / name}") for title, name in ran.pages]
    return Group(table, *notes, Text(""), Text(f"Result: {result}"), *pages)


def trial_table(verdict: Verdict) -> RenderableType:
    """What a trial found: the verdict, its reasons, and a row for each training."""
    table = _table(("method", "zeros", "steps", "time", "quality", "change"))
    for t in trial(verdict)["tickets"]:
        table.add_row(
            Text(t["method"]), f"{100 * t['sparsity']:.4g}%", count(t["steps"]), duration(t["seconds"]), Text(_quality(t)), _change(t)
        )  # fmt: skip
    tone = {"go": "green", "no-go": "red", "undecided": "yellow"}[verdict.decision]
    reasons = [Text(reason) for reason in verdict.reasons]
    return Group(Text(verdict.sentence, style=f"bold {tone}"), Text(""), *reasons, Text(""), table)


def trial(verdict: Verdict) -> dict[str, Any]:
    """The same as plain values; what a training lost is against the dense one."""
    dense = next((t.evaluation for t in verdict.tickets if t.method == "dense"), None)
    tickets = []
    for t in verdict.tickets:
        row = {"method": t.method, "zeros": t.zeros, "sparsity": t.sparsity, "steps": t.cost.steps, "seconds": t.cost.seconds}  # fmt: skip
        if t.evaluation is not None:
            row |= figures_of(t.evaluation)
            if dense is not None and t.method != "dense":
                row["drop"] = asdict(compare(dense, t.evaluation, higher_is_better=t.evaluation.metric != "perplexity"))
        tickets.append(row)
    parts = {name: getattr(verdict, name) for name in ("skill", "drop", "gain", "full")}
    return {
        "decision": verdict.decision, "exit_code": verdict.exit_code, "sentence": verdict.sentence, "reasons": verdict.reasons,
        **{name: None if part is None else asdict(part) for name, part in parts.items()},
        "steps": verdict.steps, "examples": verdict.examples, "seconds": verdict.seconds, "tickets": tickets,
    }  # fmt: skip


def _steps(stage: PlannedStage) -> str:
    if stage.steps is not None:
        return count(stage.steps)
    return "by the length of the text" if KINDS[stage.kind].trains else ""


def _quality(figures: dict[str, Any]) -> str:
    if figures.get("value") is None:
        return ""
    return f"{figures['metric']} {amount(number(figures['value']), figures.get('unit') or '')} ({number(figures['low'])} to {number(figures['high'])})"


def _change(figures: dict[str, Any]) -> str:
    drop = figures.get("drop")
    return "" if drop is None else change(drop["drop"], drop["low"], drop["high"], drop["relative"])


def _table(headings: Sequence[str]) -> Any:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        right = heading in ("time", "zeros", "file", "steps")
        table.add_column(heading, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table
