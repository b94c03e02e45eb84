"""What ticket.html shows."""

from __future__ import annotations

from functools import partial

from markupsafe import Markup

from winnow import words
from winnow.records.ticket import TicketLine, TicketReport
from winnow.report.compression import phrases
from winnow.report.draw.page import Bullets, Command, Facts, Figure, Fold, Page, Section, Text, plain_rows
from winnow.report.draw.plot import renditions
from winnow.report.draw.table import Table
from winnow.report.ticket import chart, cost_chart, heat
from winnow.report.ticket.tables import classes, flips, full_imp, level, near, overlaps, results, rounds
from winnow.report.ticket.words import change, change_span, flops, measured, passes, steps, unit

UNFOLDED = 24  # rows of a table shown at once: of more, those of the verdict's sparsity
CLASSES = 12  # shown at once: those that lost most


def view(report: TicketReport) -> Page:
    """The page of a search."""
    m, task = report.model, report.task
    subtitle = [
        m.architecture or "" if m.architecture != m.name else "",
        f"{words.bulk(m.parameters)} parameters" if m.parameters else "",
        task.evaluation_data or "",
        f"{words.count(task.n)} test examples" if task.n else "",
    ]
    return Page(
        tool="tickets",
        title=report.title,
        subtitle=[words.clip_middle(part, 80) for part in subtitle],
        created=words.when(report.created),
        tone=report.verdict.tone,
        answer=report.verdict.answer or "",
        sentence=report.verdict.sentence,
        tiles=_tiles(report),
        notes=report.warnings,
        chapters=[_accuracy(report), _layers(report), _answers(report), _setup(report)],
        footer="A multiplication and an addition are two FLOPs; a training step is counted as three forward passes. "
        "Every figure on this page, unrounded, is in ticket-report.json.",
    )


def _tiles(report: TicketReport) -> list[tuple[str, str, list[str]]]:
    """The four figures of the verdict: quality, sparsity, steps, FLOPs."""
    r, task = report.picked, report.task
    found = []
    if r.figure is not None:
        details = [f"{words.amount(change(r.drop, task), unit(task))} against dense" if r.drop is not None else ""]
        details.append(f"95% interval {change_span(r.drop, task)}" if change_span(r.drop, task) else "")
        label = f"{words.capital(task.metric)} of {report.named(report.chosen)}"
        found.append((label, phrases.quality(r.figure.value, task), details))
    weights = f"{words.count(r.zeros)} of {words.count(report.model.prunable)} prunable weights"
    left = f"Remaining forward FLOPs: {words.percent(r.forward_share)}, assuming sparse compute"
    took = f"{steps(r.steps)} steps; T is {words.count(report.steps)}"
    less = f"{flops(r.sparse_flops)} assuming sparse compute"
    time = f"in {words.duration(r.seconds)}" if r.seconds else ""
    found.append(("Sparsity", words.percent(r.sparsity, 2), [weights, left]))
    found.append(("Training cost incl. look-ahead", passes(r.passes), [took, full_imp(r, report)]))
    found.append(("Training FLOPs", flops(r.dense_flops), [less, time]))
    return found


def _unfolding(table: Table, report: TicketReport) -> list[Table | Section]:
    """A long table shows the rows of the verdict's sparsity, and folds the others."""
    if len(table.rows) <= UNFOLDED:
        return [table]
    others = table.where(lambda row: not near(row.group[0], report))
    return [table.where(lambda row: near(row.group[0], report)), Fold("Other sparsities", others)]


def _accuracy(report: TicketReport) -> Section:
    seeds = {r.seeds for r in report.rows}
    several, measured = max(seeds, default=1) > 1, any(r.figure is not None for r in report.rows)
    how = f"Means over {max(seeds)} seeds. " if several and len(seeds) == 1 else ""
    if measured:
        wider = " and seed; an interval is the wider of the one over seeds (Student’s t, from three seeds on) and the one over examples"
        how += f"Differences are paired by example{wider if several else ''}. "
    known = [report.described[m] for m in report.methods if m in report.described]
    meanings = [f"{m.title}: {m.meaning}" for m in known if m.meaning]
    by_sparsity = renditions(partial(chart.by_sparsity, report), "levels", (12.5, 11.0))
    legend = chart.legend(report)
    return Section(
        "Accuracy and cost" if report.task.metric == "accuracy" else "Quality and cost",
        Figure(
            by_sparsity,
            "The last figure of each training, never the best of several. Whiskers are 95% intervals; an arrow means that a "
            "value lies beyond the scale.",
            legend,
        ),
        Section(
            "Against optimizer steps",
            Figure(
                renditions(partial(cost_chart.by_steps, report), "steps"),
                "All steps count: every round’s training, steps of discarded candidates, and scoring passes. T is one "
                "ordinary training run. Each panel has its own vertical scale and the same horizontal one.",
                [] if by_sparsity else legend,
            ),
        ),
        Section(
            "Against training FLOPs",
            Figure(
                renditions(partial(cost_chart.by_flops, report), "flops"),
                "Filled: every step at dense cost, which is what hardware without sparse kernels pays. Hollow: the products "
                "of prunable tensors scaled by the density of the step.",
            ),
        ),
        *_unfolding(results(report), report),
        Text("; ".join(meanings) + "." if meanings else ""),
        Text(
            f"{how}Full IMP is iterative magnitude pruning by 20% a round: K trainings to the mask and one after it. “Forward "
            "FLOPs” is what remains of a dense forward pass, tensor by tensor, assuming sparse compute."
        ),
    )


def _layers(report: TicketReport) -> Section:
    picked = f"{report.named(report.chosen)} at {level(report.sparsity)}"
    first = next(iter(report.lines(report.chosen, report.sparsity)), None)
    by_round = renditions(partial(heat.by_round, report, first), "rounds", (12.0, 10.5)) if first is not None else None
    by_method = renditions(partial(heat.by_method, report), "layers", (12.0, 10.5))
    what = "a block with a tensor" if first and len(first.tensors) > heat.ROWS else "a tensor"
    caption = f"The stronger the colour, the more is left; the other colour marks {what} that has less than 1% left."
    several: dict[tuple[str, float], TicketLine] = {}
    for t in report.tickets:
        if len(t.rounds) > 1:
            several.setdefault((t.method, t.sparsity), t)
    order = sorted(several, key=lambda k: (k != (report.chosen, report.sparsity), k[0] != report.chosen))
    found = [(f"Pruning rounds: {report.named(m)} at {words.percent(s)}", several[m, s]) for m, s in order]
    similarity: list[Table | Section | Text] = []
    if alike := overlaps(report):
        said = (
            "Masks of equal sparsity, same seed where there is one. Cosine of the 0/1 keep vectors, and weights kept by "
            "both over weights kept by either; “by chance” is what random masks with the same layer-wise sparsity reach."
        )
        similarity = [*_unfolding(alike, report), Text(said)]
    differ = any(r.disagreement is not None for r in found[0][1].rounds) if found else False
    return Section(
        "Sparsity per layer",
        Section(f"{picked}: kept of each tensor{_unit(by_round)}, by round", Figure(by_round, caption)),
        Section(
            f"All methods at {level(report.sparsity)}: kept of each tensor{_unit(by_method)}",
            Figure(by_method, "" if by_round else caption),
        ),
        Section(f"Mask similarity to {report.named(report.reference or '')}", *similarity),
        *(Section(title, rounds(line, report)) for title, line in found[:1]),
        Text(
            "“Candidates differ” is the mean over pairs of candidates of the weights on which their masks differ, as a share "
            "of those active before the round; where it is zero, the candidates added nothing."
            if differ
            else ""
        ),
        *(Fold(title, rounds(line, report)) for title, line in found[1:]),
    )


def _unit(picture: Markup | None) -> str:
    """What the figures in the cells of a heat map are; nothing where they have no room."""
    return ", in per cent" if picture is not None and 'class="cell"' in picture else ""


def _answers(report: TicketReport) -> Section | None:
    changed, lost = flips(report), classes(report)
    if not changed:
        return None
    lead = "An unchanged accuracy can hide answers that changed in both directions."
    return Section(
        "Changed answers",
        Text(f"Against the dense model, on the same {words.count(report.task.n)} examples. {lead}", "lead"),
        *_unfolding(changed, report),
        Section(
            f"Classes under {report.named(report.chosen)} at {level(report.sparsity)}, the largest loss first",
            lost.only(0, CLASSES),
            Fold(f"{len(lost.rows) - CLASSES} more classes", lost.only(CLASSES)),
        ),
    )


def _setup(report: TicketReport) -> Section:
    """What all of the figures rest on."""
    m, task, lines = report.model, report.task, report.lines(report.chosen, report.sparsity)
    rule = next((line.cost.isp for line in lines if line.cost.isp is not None), None)
    pruned = words.percent(report.forward_prunable / report.forward) if report.forward else ""
    # The last batch of an epoch is short, so that the mean need not be a whole number.
    about = "" if abs(report.batch - round(report.batch)) < 1e-9 else "about "
    rows = [
        ("One training, T", f"{words.count(report.steps)} steps of {about}{words.count(round(report.batch))} examples"),
        ("Forward of one example", f"{flops(report.forward)}, {pruned} of it in prunable tensors"),
        ("Prunable weights", words.count(m.prunable) + (f" of {words.count(m.parameters)} parameters" if m.parameters else "")),
        ("Dense", measured(report.dense, task) if report.dense is not None else ""),
        ("Pruning rounds", f"{rule.rounds}, in {words.count(rule.mask_steps)} main steps: {words.percent(rule.share)} of T (the rule is at most 25%)" if rule else ""),
        ("Look-ahead", f"{words.count(rule.look_ahead)} steps of discarded candidates" if rule and rule.look_ahead else ""),
    ]  # fmt: skip
    machine = {**report.machine, "ram": words.size(report.machine.get("ram"))}
    return Section(
        "Setup",
        Facts(rows),
        Bullets(report.notes),
        Command(report.command or ""),
        Fold("Settings", Facts(plain_rows(report.settings), "plain fine")),
        Fold("Machine", Facts(plain_rows(machine), "plain fine")),
    )
