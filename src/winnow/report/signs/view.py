"""What signs.html shows, and what the command ends with on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from winnow import words
from winnow.records.signs import SignReport, SignRun
from winnow.report.draw.page import Bullets, Command, Facts, Figure, Fold, Page, Section, Text, plain_rows
from winnow.report.draw.plot import renditions
from winnow.report.draw.summary import Line, Summary
from winnow.report.draw.table import Table
from winnow.report.signs import chart
from winnow.report.signs.chart import Get
from winnow.report.signs.tables import contrasts, layers, level, results, trainings
from winnow.report.ticket.chart import sample

SERIES: tuple[tuple[str, str, Get, bool], ...] = (
    ("flips", "Flipped against initialisation", lambda p: p.flip_share, True),
    ("transitions", "Flipped since the record before", lambda p: p.change_share if p.step else None, True),
    ("alignment", "Signs as in {reference}", lambda p: p.alignment, True),
    ("beta", "Health of beta, before a reset", lambda p: p.health, False),
)


def view(report: SignReport) -> Page:
    """The page of a record."""
    m = report.model
    subtitle = [
        "" if m is None else m.name,
        f"{words.count(m.prunable)} prunable weights" if m is not None and m.prunable else "",
        f"{words.count(report.steps)} steps" if report.steps else "",
        f"{words.count(len(report.seeds))} seeds" if len(report.seeds) > 1 else "",
    ]
    return Page(
        tool="signs",
        title=report.title,
        subtitle=subtitle,
        created=words.when(report.created),
        tone=report.verdict.tone,
        answer=report.verdict.answer or "",
        sentence=report.verdict.sentence,
        chapters=[_ablation(report), *_over_training(report), _by_layer(report), _setup(report)],
        footer="Counts are over kept weights that are not exactly zero. Every figure on this page, unrounded, is in signs.json.",
    )


def summary(report: SignReport) -> Summary:
    """Verdict, arms and paired differences."""
    parts: list[str | Table | list[Line]] = []
    for at in map(level, report.levels):
        parts += [at, _group(results(report), at), _group(contrasts(report), at)]
    parts.append([("Note", note) for note in report.notes])
    return Summary(report.verdict.tone, report.verdict.sentence, parts)


def _group(table: Table, heading: str) -> Table:
    return table.where(lambda row: row.group[0] == heading)


def _ablation(report: SignReport) -> Section | None:
    if not report.arms:
        return None
    n, task = len(report.seeds), report.task
    paired = "Student’s t over the paired seeds" if n > 2 else "left out: three seeds or more are needed"
    legend = [
        (sample(chart.LOOKS[a.name]), report.title_of(a.name)) for a in report.arms if a.sparsity == report.levels[0]
    ]
    return Section(
        "Signs against magnitudes",
        Text(
            "A dense network is pruned while it trains; then its mask is trained anew for as long, from weights that keep only the "
            "learned signs, only the learned magnitudes, or neither.",
            "lead",
        ),
        Figure(
            renditions(partial(chart.arms, report), "arms"),
            "The last figure of each training, never the best of several. Ticks are seeds, the mark is their mean, the line its 95% interval.",
            legend,
        ),
        results(report),
        Section("Paired differences", contrasts(report)),
        Text(_given_signs(report)),
        Text(
            f"A positive difference is in favour of the first. Intervals are 95%, {paired}, all on the same {words.count(task.n)} test examples. Training loss is the mean over the last "
            "epoch; a difference below zero means that the first is lower. Arms of one seed share mask, batches, the drawn magnitudes and the "
            "drawn signs. The random start is normal with variance 2 over the mean kept fan-in; whatever is not pruned starts as the "
            "model did."
        ),
    )  # fmt: skip


def _given_signs(report: SignReport) -> str:
    """How many of the learned signs were there before any training."""
    told = [
        f"{words.percent(r.points[0].alignment)} at {level(r.sparsity)}"
        for r in report.runs
        if r.name == "initial" and r.points[0].alignment is not None
    ]
    if not told:
        return ""
    return (
        f"Of the weights in the learned mask, those that the network began with had the learned sign already in {' and '.join(told)}; "
        "a random start has about half of them."
    )


def _over_training(report: SignReport) -> list[Section]:
    groups: dict[float | None, list[SignRun]] = {}
    for run in report.runs:
        groups.setdefault(run.sparsity, []).append(run)
    order = sorted(groups, key=lambda s: -(s or 0.0))  # the verdict's first
    found = []
    for sparsity in order:
        title = "Signs over training" + (f" at {level(sparsity)}" if sparsity is not None else "")
        figures = _figures(report, groups[sparsity], f"{sparsity or 0:g}".replace(".", "-"))
        if sparsity == order[0]:
            table = trainings(report) if len(report.runs) > 1 else None
            text = Text(
                "A transition is a weight with another sign than at the record before; the last interval may be a shorter one. Beta is the mean of (m² − w²) / beta over the kept "
                "weights: 1 after a reset, near 0 where signs can hardly change."
            )
            found.append(Section(title, *figures, table, text))
        else:
            found.append(Section("", Fold(title, *figures)))
    return found


def _figures(report: SignReport, runs: Sequence[SignRun], key: str) -> list[Figure]:
    made = (
        (
            f"{name}-{key}",
            partial(
                chart.over_steps,
                report,
                runs,
                heading.format(reference=report.reference or "the reference"),
                get,
                share,
            ),
        )
        for name, heading, get, share in SERIES
    )
    return [Figure(renditions(paint, name)) for name, paint in made]


def _by_layer(report: SignReport) -> Section | None:
    top = max((r.sparsity or 0.0 for r in report.runs), default=0.0)
    runs = [r for r in report.runs if (r.sparsity or 0.0) == top]
    run = next((r for r in runs if r.name == "sign-in"), runs[0])
    named = ", ".join(filter(None, (report.title_of(run.name), level(run.sparsity))))
    picture = renditions(partial(chart.by_layer, run), "layers", (12.0, 10.5))
    caption = "Tensors in model order, the input above. The figure on the right is the share at the end."
    first, last = (run.layers[i].last.flip_share for i in (0, -1))
    trend = ""
    if len(run.layers) > 1 and first is not None and last is not None:
        trend = f"{words.percent(first)} of the first tensor and {words.percent(last)} of the last have flipped."
    table = layers(report, [run, *(r for r in runs if r is not run)])
    heading = f"Flips by tensor: {named}" if len(report.runs) > 1 else "Flips by tensor"
    return Section(
        heading,
        Figure(picture, caption),
        Text(trend),
        Fold("All tensors in figures", table, unfolded=len(table.rows) <= 12),
    )


def _setup(report: SignReport) -> Section | None:
    found = Section(
        "Setup",
        Facts([("Seeds", ", ".join(map(str, report.seeds))), ("Training", f"{words.count(report.steps)} steps each" if report.arms else "")]),
        Bullets(report.notes),
        Command(report.command or ""),
        Fold("Settings", Facts(plain_rows(report.settings), "plain fine")),
        Fold("Machine", Facts(plain_rows(report.machine | {"ram": words.size(report.machine.get("ram"))}), "plain fine")),
    )  # fmt: skip
    return found or None
