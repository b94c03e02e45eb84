"""What the page shows, as finished words and pictures: the template only arranges them."""

from __future__ import annotations

import math
from typing import Any

from winnow import words
from winnow.records.compression import Candidate, ClassQuality, Report, Speed
from winnow.records.speed import Bench
from winnow.report import template
from winnow.report.allocation import tables as allocation_tables
from winnow.report.compression import frontier, layer_map, phrases, tables
from winnow.report.draw.figures import sample
from winnow.report.speed import tables as speed_tables
from winnow.report.speed.chart import milli, times
from winnow.report.speed.view import chapter

TONES = {"good": "Worth it", "mixed": "It depends", "bad": "Not worth it"}
CLASSES_FIRST, CHANGED_FIRST = 5, 4  # how many the first screen shows
EXCERPT = 260  # characters of an example; the whole text is in report.json


def view(report: Report, bench: Bench | None = None) -> dict[str, Any]:
    """Everything the template prints. Values are plain text (escaped by the template) or ready-made markup."""
    classes = _classes(report)
    return {
        "report": report,
        "notes": notes(report),
        "tone": TONES[report.verdict.tone],
        "created": words.when(report.created),
        "subtitle": _subtitle(report),
        "tiles": _tiles(report),
        "asked": _asked(report),
        "worse": _worse(report),
        "against": words.capital(phrases.against(report)),
        "given": "Before packing" if report.ticket is not None else "Dense",
        "classes": classes,
        "classes_first": [c for c in classes if c["lost"]][:CLASSES_FIRST],
        "changed": _changed(report),
        "changed_first": CHANGED_FIRST,
        "frontier": template.renditions(
            frontier.draw(report, "frontier-wide", 900, 460, 12.5),
            frontier.draw(report, "frontier-narrow", 358, 400, 11.5),
        ),
        "legend": [
            (sample(k), name) for k, name in frontier.KINDS.items() if any(c.kind == k for c in report.candidates)
        ],
        "rival": _rival(report),
        "candidates": tables.candidates(report),
        "layer_map": template.renditions(
            layer_map.draw(report, "layers-wide", 900, 12.0), layer_map.draw(report, "layers-narrow", 358, 11.0)
        ),
        "layers": tables.layers(report),
        "allocation": allocation_tables.view(report.allocation),
        "speed": chapter(bench, report),
        "sizes": tables.sizes(report),
        "memory": tables.memory(report),
        "timing": tables.timing(report),
        "cost": tables.cost(report),
        "skipped": tables.skipped(report),
        "measured": tables.measured(report),
        "facts_groups": tables.facts(report),
    }


def notes(report: Report) -> list[str]:
    """All that a reader must keep in mind, on the first screen: the run's notes and the allocation's warnings, each once."""
    warnings = report.allocation.warnings if report.allocation is not None else []
    return list(dict.fromkeys([*report.notes, *warnings]))


def _subtitle(report: Report) -> list[str]:
    model = report.model
    parameters = f"{words.bulk(model.parameters)} parameters" if model.parameters else ""
    return [words.clip_middle(t, 80) for t in (model.name, model.architecture, model.kind, parameters) if t]


def _tiles(report: Report) -> list[dict[str, str]]:
    """The few figures of the first screen: size, quality, time, memory."""
    task, sizes, picked, dense = report.task, report.sizes, report.picked, report.yardstick
    before = sizes.dense_file or (dense.file_bytes if dense else None)
    after = sizes.file or (picked.file_bytes if picked else None)
    tiles = []
    if after:
        tiles.append(
            {
                "label": "Whole file",
                "value": words.ratio(before, after) or words.size(after),
                "detail": f"{words.size(before)} → {words.size(after)}" if before else "",
                "more": _bits(picked),
            }
        )
    if picked is not None and picked.quality is not None:
        value, moved = phrases.quality(picked.quality, task), phrases.change(picked, task)
        was = dense.quality if dense is not None and dense is not picked else None
        path = f"{phrases.quality(was, task)} → {value}" if was is not None else value if moved else ""
        interval = phrases.change_span(picked, task) if moved else phrases.span(picked.low, picked.high, task)
        more = f"95 % interval {interval}" if interval else ""
        if report.ticket is not None and moved:
            more += f"{'; ' if more else ''}against {'the ticket' if report.dense is None else 'dense'}"
        tiles.append({"label": words.capital(task.metric), "value": moved or value, "detail": path, "more": more})
    total = report.cost.seconds_total
    if total is None and report.timing:
        total = sum(s.seconds for s in report.timing)
    tokens = report.cost.calibration_tokens or task.calibration_tokens
    if words.duration(total):
        detail = f"{words.count(tokens)} calibration tokens" if tokens else ""
        tiles.append({"label": "Time to compress", "value": words.duration(total), "detail": detail, "more": ""})
    speed = _speed_tile(report.speed)
    if speed is not None:
        tiles.insert(min(2, len(tiles)), speed)
    elif report.memory.peak_bytes:  # with a fifth tile the row breaks; the figure is in its own chapter too
        limit = report.memory.limit_bytes
        detail = f"of {words.size(limit)} allowed" if limit else ""
        tiles.append(
            {"label": "Peak memory", "value": words.size(report.memory.peak_bytes), "detail": detail, "more": ""}
        )
    return tiles


def _speed_tile(speed: Speed | None) -> dict[str, str] | None:
    if speed is None or speed.dense is None or speed.fast is None or speed.ratio is None:
        return None
    said = speed_tables.outcome(speed)
    return {
        "label": "Speed here",
        "value": times(speed.ratio) + " as fast" if "as fast" in said else words.capital(said),
        "detail": f"{milli(speed.dense.median)} → {milli(speed.fast.median)}",
        "more": speed.what,
    }


def _bits(candidate: Candidate | None) -> str:
    if candidate is None or candidate.bits_per_weight is None:
        return ""
    return f"{words.short(candidate.bits_per_weight)} bits per prunable weight"


def _asked(report: Report) -> list[tuple[str, str]]:
    """Budget and outcome, to the weight."""
    asked, picked = report.requested, report.picked
    rows = [("Asked for", asked.budget or ""), ("Chosen", picked.name if picked else report.chosen or "")]
    if picked is not None and picked.method:
        rows.append(("Method", picked.method))
    rows.append(("Structure", asked.structure or ""))
    if asked.zeros_reached is not None:
        text = words.count(asked.zeros_reached)
        gap = asked.difference
        if gap is None and asked.zeros_requested is not None:
            gap = asked.zeros_reached - asked.zeros_requested
        if gap == 0:
            text += ", exactly as asked"
        elif asked.zeros_requested is not None and gap is not None:
            sign = "+" if gap > 0 else words.MINUS
            text += f" of {words.count(asked.zeros_requested)} asked ({sign}{words.count(abs(gap))})"
        rows.append(("Zeros", text))
    return [(k, v) for k, v in rows if v]


def _worse(report: Report) -> list[tuple[str, str]]:
    """What got worse, or stayed, beyond the headline figure."""
    task, picked, dense = report.task, report.picked, report.dense
    if picked is None or picked.unpacked:
        return []
    rows = []
    if picked.quality is not None:
        own = phrases.span(picked.low, picked.high, task)
        rows.append((task.metric, phrases.quality(picked.quality, task) + (f" (95 % interval {own})" if own else "")))
        for name, other in (("dense", dense), ("ticket before packing", report.ticket)):
            if other is not None and other.quality is not None:
                own = phrases.span(other.low, other.high, task)
                value = phrases.quality(other.quality, task) + (f" ({own})" if own else "")
                rows.append((f"{task.metric}, {name}", value))
        if dense is None and report.ticket is not None:
            rows.append((f"{task.metric}, dense", "not measured"))
    given = phrases.from_what(report)
    if picked.agreement is not None:
        rows.append((f"Same answer as {given}", words.percent(picked.agreement)))
    if picked.kl is not None:
        rows.append((f"KL from {given}", f"{words.number(max(picked.kl, 0.0))} nats"))
    return [(words.capital(k), v) for k, v in rows]


def _classes(report: Report) -> list[dict[str, Any]]:
    """Classes, the biggest losers first."""

    def lost(c: ClassQuality) -> float:
        return c.dense - c.pruned if c.dense is not None and c.pruned is not None else -math.inf

    rows = []
    for c in sorted(report.classes, key=lambda c: -lost(c)):
        known = math.isfinite(lost(c))
        change = Candidate(name="", kind="pruned", drop=lost(c)) if known else None
        task = report.task.model_copy(update={"higher_is_better": True})
        rows.append(
            {
                "name": c.name,
                "n": words.count(c.n),
                "dense": phrases.quality(c.dense, task),
                "pruned": phrases.quality(c.pruned, task),
                "change": phrases.change(change, task) if change else "",
                "lost": known and lost(c) > 0,
            }
        )
    return rows


def _changed(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "input": words.clip(e.input, EXCERPT),
            "image": e.image,
            "truth": words.clip(e.truth or "", EXCERPT),
            "dense": words.clip(e.dense or "", EXCERPT),
            "pruned": words.clip(e.pruned or "", EXCERPT),
        }
        for e in report.changed
    ]


def _rival(report: Report) -> str:
    """One sentence that sets the chosen model beside the best plain quantization of no more bits."""
    picked, task = report.picked, report.task
    if picked is None or picked.bits_per_weight is None or picked.quality is None or "pruned" not in picked.kind:
        return ""
    plain = [c for c in report.candidates if c.kind == "quantized" and c.quality is not None and c.bits_per_weight]
    if not plain:
        return "Plain quantization was not measured in this run."
    here = f"{words.short(picked.bits_per_weight)} bits per weight"
    near = [c for c in plain if c.bits_per_weight <= picked.bits_per_weight * 1.02]  # type: ignore[operator]
    if not near:
        return f"No plain quantization was measured at {here} or fewer."
    best = (max if task.higher_is_better else min)(near, key=lambda c: c.quality)  # type: ignore[arg-type, return-value]
    of = " of the ticket" if report.ticket is not None else ""
    return (
        f"At {here} or fewer, the best plain quantization{of} measured is {best.name}: {task.metric} "
        f"{phrases.quality(best.quality, task)}, against {phrases.quality(picked.quality, task)} for the chosen model."
    )
