"""What report.html shows."""

from __future__ import annotations

import math
from functools import partial

from winnow import words
from winnow.naming import title_of
from winnow.records.compression import Candidate, Report, SkippedTensor
from winnow.records.speed import Bench
from winnow.report.allocation import view as allocation
from winnow.report.compression import frontier, layer_map, phrases, tables
from winnow.report.draw.figures import sample, swatch
from winnow.report.draw.page import (
    Bullets,
    Command,
    Example,
    Facts,
    Figure,
    Fold,
    Page,
    Section,
    Text,
    breakdown,
    plain_rows,
)
from winnow.report.draw.plot import renditions
from winnow.report.speed import view as speed
from winnow.report.speed.chart import milli
from winnow.report.speed.tables import outcome, unsure

CLASSES_FIRST, CHANGED_FIRST = 5, 4  # how many the first screen shows
EXCERPT = 260  # characters of an example; the whole text is in report.json


def view(report: Report, bench: Bench | None = None) -> Page:
    """The page of a compression; ``bench``: what ``winnow bench`` found."""
    model, tiles = report.model, _tiles(report)
    parameters = f"{words.bulk(model.parameters)} parameters" if model.parameters else ""
    own = model.architecture or ""  # which may be the end of the name, or all of it
    subtitle = (model.name, "" if own == title_of(model.name) else own, model.kind or "", parameters)
    footer = (
        "Sizes are decimal: 1 MB is 1,000,000 bytes. Bits per weight count masks and scales over the prunable weights. "
    )
    return Page(
        tool="report",
        title=report.title,
        subtitle=[words.clip_middle(part, 80) for part in subtitle],
        created=words.when(report.created),
        tone=report.verdict.tone,
        answer=report.verdict.answer or "",
        sentence=report.verdict.sentence,
        tiles=tiles,
        summary=Facts(_target(report), "summary"),
        notes=notes(report),
        front=Section("", _quality(report), _ways(report), _changed(report), css="columns"),
        chapters=[
            _frontier(report),
            Section("Speed", *speed.chapter(bench, report.speed)),
            allocation.chapter(report.allocation),
            _layers(report),
            _size(report),
            _time(report),
            _skipped(report),
            Section("Evaluation", Facts(_measured(report)), Bullets(report.remarks)),
            _reproduce(report),
        ],
        footer=(footer if tiles else "") + "Every figure on this page, unrounded, is in report.json.",
    )


def notes(report: Report) -> list[str]:
    """All that a reader must keep in mind, on the first screen: the run's notes and the allocation's warnings, each once."""
    warnings = report.allocation.warnings if report.allocation is not None else []
    return list(dict.fromkeys([*report.notes, *warnings]))


def _tiles(report: Report) -> list[tuple[str, str, list[str]]]:
    """The few figures of the first screen: size, quality, time, memory."""
    task, sizes, picked, dense = report.task, report.sizes, report.picked, report.yardstick
    before = sizes.dense_file or (dense.file_bytes if dense else None)
    after = sizes.file or (picked.file_bytes if picked else None)
    tiles = []
    if after:
        path = f"{words.size(before)} → {words.size(after)}" if before else ""
        bits = words.short(picked.bits_per_weight) if picked is not None else ""
        details = [path, f"{bits} bits per prunable weight" if bits else ""]
        tiles.append(("File size", words.ratio(before, after) or words.size(after), details))
    if picked is not None and picked.quality is not None:
        value, moved = phrases.quality(picked.quality, task), phrases.change(picked, task)
        was = dense.quality if dense is not None and dense is not picked else None
        path = f"{phrases.quality(was, task)} → {value}" if was is not None else value if moved else ""
        left = phrases.recovered(picked, report)
        interval = phrases.change_span(picked, task) if moved else phrases.span(picked.low, picked.high, task)
        more = [f"95% interval {interval}" if interval else ""]
        if report.ticket is not None and moved:
            more.append(f"against {'the ticket' if report.dense is None else 'dense'}")
        under = [path, f"{left} recovered" if left else "", "; ".join(filter(None, more))]
        tiles.append((words.capital(task.metric), moved or value, under))
    total = report.cost.seconds_total
    if total is None and report.timing:
        total = sum(s.seconds for s in report.timing)
    tokens = report.cost.calibration_tokens or task.calibration_tokens
    if words.duration(total):
        detail = f"{words.count(tokens)} calibration tokens" if tokens else ""
        tiles.append(("Compression time", words.duration(total), [detail]))
    speed = report.speed
    if speed is not None and speed.dense is not None and speed.fast is not None and speed.ratio is not None:
        path = f"{milli(speed.dense.median)} → {milli(speed.fast.median)}"
        reason = unsure(speed)
        under = [path, f"{speed.what}{': ' if reason else ''}{reason}"]
        if reason:  # what the table states of other inputs
            under += [f"{c.what}: {outcome(speed, c)}" for c in speed.cases[1:] if not unsure(speed, c)]
        tiles.insert(min(2, len(tiles)), ("Speed here", words.capital(outcome(speed)), under))
    elif report.memory.peak_bytes:  # with a fifth tile the row breaks; the figure is in its own chapter too
        limit = words.size(report.memory.limit_bytes or None)
        allowed = f"of {limit} allowed" if limit else ""
        tiles.append(("Peak memory", words.size(report.memory.peak_bytes), [allowed]))
    return tiles


def _target(report: Report) -> list[tuple[str, str]]:
    """Budget and outcome, to the weight."""
    asked, picked = report.requested, report.picked
    zeros = words.count(asked.zeros_reached)
    if asked.zeros_reached is not None:
        gap = asked.difference
        if gap is None and asked.zeros_requested is not None:
            gap = asked.zeros_reached - asked.zeros_requested
        if gap == 0:
            zeros += ", exactly the target"
        elif asked.zeros_requested is not None and gap is not None:
            sign = "+" if gap > 0 else words.MINUS
            zeros += f" of {words.count(asked.zeros_requested)} requested ({sign}{words.count(abs(gap))})"
    return [
        ("Target", asked.budget or ""),
        ("Chosen", picked.name if picked else report.chosen or ""),
        ("Method", picked.method or "" if picked else ""),
        ("Structure", asked.structure or ""),
        ("Zeros", zeros),
        ("Vocabulary", phrases.vocabulary(report.model)),
    ]


def _quality(report: Report) -> Section:
    classes = tables.classes(report)
    worst = [c.name for c in report.classes if math.isfinite(tables.lost(c)) and tables.lost(c) > 0]
    first = classes.where(lambda row: row.name in worst).only(0, CLASSES_FIRST)
    rest = len(classes.rows) > len(first.rows)
    return Section(
        "Quality change",
        Facts(_change(report)),
        Section("Classes that lost most", first),
        Fold(f"All {len(classes.rows)} classes", classes if rest else None),
        css="quality",
    )


def _change(report: Report) -> list[tuple[str, str]]:
    """What changed beyond the headline figure."""
    task, picked, dense = report.task, report.picked, report.dense
    if picked is None or picked.unpacked:
        return []
    rows: list[tuple[str, str]] = []
    if picked.quality is not None:
        measured = ((", dense", dense), (", ticket before packing", report.ticket))
        for name, c in (("", picked), *measured):
            if c is not None and c.quality is not None:
                ends = phrases.span(c.low, c.high, task)
                ends = f"95% interval {ends}" if ends and c is picked else ends
                rows.append((task.metric + name, phrases.with_interval(phrases.quality(c.quality, task), ends)))
        if dense is None and report.ticket is not None:
            rows.append((f"{task.metric}, dense", "not measured"))
    given = phrases.from_what(report)
    rows.append(("Recovered", phrases.recovered(picked, report)))
    rows.append((f"Agreement with {given}", words.percent(picked.agreement)))
    if picked.kl is not None:
        tokens = task.metric == "perplexity"
        tail = (
            f" per token; 99th percentile {words.number(picked.kl_p99)}" if tokens and picked.kl_p99 is not None else ""
        )
        rows.append((f"KL divergence from {given}", f"{words.number(max(picked.kl, 0.0))} nats{tail}"))
    return [(words.capital(k), v) for k, v in rows]


def _ways(report: Report) -> Section:
    next_step, undo = (Text(text or "", "prose") for text in (report.next_step, report.undo))
    consists = Section("The file", Text(phrases.contents(report.sizes), "prose"))
    return Section("", Section("Next step", next_step), Section("Undo", undo), consists, css="ways")


def _changed(report: Report) -> Section:
    before = words.capital(phrases.against(report))
    found = []
    for e in report.changed:
        truth, dense, pruned = (words.clip(text or "", EXCERPT) for text in (e.truth, e.dense, e.pruned))
        answers = [("True", truth), (before, dense), ("Now", pruned)]
        found.append(Example(words.clip(e.input, EXCERPT), e.image, answers))
    more = Section("", *found[CHANGED_FIRST:], css="examples")
    first = Section("", *found[:CHANGED_FIRST], css="examples")
    return Section("Changed answers", first, Fold(f"{len(more.blocks)} more", more), css="across")


def _frontier(report: Report) -> Section:
    given, tailed = phrases.against(report), any(c.kl_p99 is not None for c in report.candidates)
    tail = " and the 99th percentile below the KL divergence" if tailed and report.task.metric == "perplexity" else ""
    caption = (
        f"Each mark is a model measured on the same data; whiskers are 95% intervals of its change against {given}, paired by "
        "example, lines join the best of each family. A number such as #7 is a row of the table, where bits per weight stand below the "
        f"file size{tail}."
    )
    legend = [(sample(k), name) for k, name in frontier.KINDS.items() if any(c.kind == k for c in report.candidates)]
    if report.picked is not None:
        legend.append((swatch(lambda canvas: canvas.dot(7, 7, 6, "ring")), "chosen"))
    return Section(
        "Quality against size",
        Text(_rival(report), "lead"),
        Figure(renditions(partial(frontier.draw, report), "frontier", (12.5, 11.5)), caption, legend),
        tables.candidates(report),
    )


def _rival(report: Report) -> str:
    """One sentence on the plain quantization that the verdict names: by which rule it was taken, and the paired difference."""
    b, task = report.baseline, report.task
    if b is None or report.picked is None or report.picked.quality is None:
        return ""
    if b.name is None:
        return f"{words.capital(b.missing)}." if b.missing else ""
    rule = "the best plain quantization of no more bytes" if b.dominates else "the plain quantization closest in bytes"
    of = " (of the ticket)" if report.ticket is not None else ""
    text = f"The chosen model is set beside {rule}{of}, {b.name}"
    pair = Candidate(name="", kind="pruned", drop=b.drop, drop_low=b.drop_low, drop_high=b.drop_high)
    if moved := phrases.change(pair, task):
        text += f": from it to the chosen model {task.metric} changes by {moved}, 95% interval {phrases.change_span(pair, task)}"
        text += " (paired by example)"
    return f"{text}."


def _layers(report: Report) -> Section:
    table = tables.layers(report)
    caption = "The stronger the colour, the higher the value. " if len(table.rows) > 1 else ""
    if any(column.title == "Error" for column in table.columns):
        caption += "The error is the share of a layer's output energy that pruning changed, on the calibration data."
    return Section(
        "Layer by layer",
        Figure(renditions(partial(layer_map.draw, report), "layers"), caption),
        Fold(f"All {len(table.rows)} layers", table if table.columns else None),
    )


def _size(report: Report) -> Section:
    m, beside = report.memory, tables.beside(report.sizes)
    rows = [("Peak memory", words.size(m.peak_bytes)), ("Memory limit", words.size(m.limit_bytes))]
    if m.peak_bytes and m.limit_bytes:
        kept = "kept" if m.peak_bytes <= m.limit_bytes else f"exceeded by {words.size(m.peak_bytes - m.limit_bytes)}"
        rows.append(("The limit was", kept))
    other = f"The folder's other files (configuration, tokenizer, manifest) take {beside} when it is written."
    return Section(
        "Size and memory", *tables.sizes(report), Text(other if report.sizes.file and beside else ""), Facts(rows)
    )


def _time(report: Report) -> Section:
    stages = [(s.stage, words.duration(s.seconds), s.seconds) for s in report.timing]
    rows = [
        ("Total", words.duration(report.cost.seconds_total)),
        ("Calibration tokens", words.count(report.cost.calibration_tokens)),
        ("Energy", report.cost.energy or ""),
    ]
    return Section("Compression time", *breakdown("Stage", "Time", "", stages), Facts(rows))


def _skipped(report: Report) -> Section:
    groups: dict[str, list[SkippedTensor]] = {}
    for s in report.skipped:
        groups.setdefault(s.reason, []).append(s)

    def size(members: list[SkippedTensor]) -> str:
        return f"{words.count(len(members))} tensors, {words.count(sum(s.numel for s in members))} parameters"

    folds = [
        Fold(f"{reason}: {size(members)}", Facts([(s.name, words.count(s.numel)) for s in members], "names"))
        for reason, members in sorted(groups.items(), key=lambda group: -sum(s.numel for s in group[1]))
    ]
    lead = f"{size(report.skipped)} are unchanged." if report.skipped else ""
    if narrow := [s for s in report.skipped if s.values]:
        kinds = " and ".join(sorted({s.values for s in narrow if s.values}))
        lead = f"{size(report.skipped)} are not pruned; of these, {size(narrow)} are stored in {kinds}."
    return Section("Not pruned", Text(lead, "lead"), *folds)


def _measured(report: Report) -> list[tuple[str, str]]:
    """On which data, how much of it, and whether it was kept apart."""
    t, m = report.task, report.model
    unit = "tokens predicted" if t.segment_length else "examples"
    share = f" ({words.percent(m.prunable_share)} of the model)" if m.prunable and m.prunable_share is not None else ""
    return [
        ("Task", t.name or ""),
        ("Metric", f"{t.metric}, {'higher' if t.higher_is_better else 'lower'} is better" if report.candidates else ""),
        ("Evaluation data", t.evaluation_data or ""),
        ("Test size", f"{words.count(t.n)} {unit}" if t.n else ""),
        ("Segment length", f"{words.count(t.segment_length)} tokens, without overlap" if t.segment_length else ""),
        ("Calibration data", t.calibration_data or ""),
        ("Calibration tokens", words.count(t.calibration_tokens)),
        ("Test and calibration data", {True: "disjoint", False: "overlap", None: ""}[t.disjoint]),
        ("Prunable weights", words.count(m.prunable) + share),
    ]


def _reproduce(report: Report) -> Section:
    """The command, machine, versions, seeds and hashes, as far as they were recorded."""
    hashes = dict(report.hashes)
    if report.model.hash and report.model.hash not in hashes.values():
        hashes = {"model": report.model.hash, **hashes}
    groups = (("Machine", report.machine), ("Versions", report.versions), ("Seeds", report.seeds), ("Hashes", hashes))
    facts = [Section(name, Facts(plain_rows(group), "plain fine")) for name, group in groups]
    return Section("Reproduce", Command(report.command or ""), Section("", *facts, css="groups"))
