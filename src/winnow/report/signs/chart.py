"""The pictures of signs: what arms reach, shares over the steps of training, and flips by tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from winnow import words
from winnow.records.signs import SignArm, SignPoint, SignReport, SignRun
from winnow.report.allocation.words import block, mean, shortened
from winnow.report.compression import phrases
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import Box, fit, text_width
from winnow.report.draw.plot import NARROW, Plot, Scale
from winnow.report.signs.tables import level
from winnow.report.ticket.chart import Style, apart, mark

ROWS = 40  # more tensors than this are summed up by block
COLUMNS = 48  # records drawn at most: evenly spaced ones, the last among them
LOOKS = {
    "teacher": Style("dense", "rect"), "signs": Style("pruned", "dot"), "magnitudes": Style("quantized", "diamond"),
    "random": Style("m0", "rect"), "sign-in": Style("m1", "dot"), "initial": Style("m2", "diamond"),
}  # fmt: skip
PLAIN = Style("pruned", "dot")
Get = Callable[[SignPoint], float | None]


def arms(report: SignReport, canvas: Canvas) -> tuple[str, str] | None:
    """A row for each arm, a group for each sparsity, all on one scale."""
    if not report.arms:
        return None
    font, width, task = canvas.font, canvas.width, report.task
    stacked, line = width <= NARROW, 1.75 * font
    names = 0.0 if stacked else max(text_width(report.title_of(a.name), font) for a in report.arms) + 16
    behind = max(text_width(phrases.quality(a.figure.value, task), font) for a in report.arms) + 16
    ends = [e for a in report.arms for e in (a.figure.value, a.figure.low, a.figure.high) if e is not None]
    room = 0.04 * (max(ends) - min(ends)) or 1.0
    x = Scale(min(ends) - room, max(ends) + room, names, width - behind)
    unit = f", {task.unit}" if task.unit else ""
    better = "higher" if task.higher_is_better else "lower"
    canvas.text(0, font, fit(f"{words.capital(task.metric)}{unit}; {better} is better", width, font), "heading")
    y = 1.4 * font
    for sparsity in report.levels:
        y += line
        canvas.text(0, y, level(sparsity), "heading")
        top = y + 0.35 * font
        y = top
        own = [a for a in report.arms if a.sparsity == sparsity]
        bottom = top + len(own) * line * (2 if stacked else 1)
        for value in x.ticks(56):
            canvas.line(x(value), top, x(value), bottom, "grid")
            canvas.text(x(value), bottom + 1.25 * font, words.short(value), anchor="middle")
        for arm in own:
            y = _arm(report, arm, canvas, x, y, line, stacked)
        canvas.line(names, y, width - behind, y, "axis")
        y += 1.5 * font
    canvas.height = y + 0.3 * font
    said = "; ".join(
        f"{report.title_of(a.name)} at {words.percent(a.sparsity)}: {phrases.quality(a.figure.value, task)}"
        for a in report.arms[:12]
    )
    return f"{words.capital(task.metric)} by start", f"{said}."


def _arm(report: SignReport, arm: SignArm, canvas: Canvas, x: Scale, y: float, line: float, stacked: bool) -> float:
    font, f, look = canvas.font, arm.figure, LOOKS.get(arm.name, PLAIN)
    if stacked:
        canvas.text(0, y + 0.8 * line, report.title_of(arm.name), "name")
        y += line
    middle = y + line / 2
    if not stacked:
        canvas.text(0, middle + 0.35 * font, report.title_of(arm.name), "label")
    end = x(f.value)
    if f.low is not None and f.high is not None:
        canvas.line(x(f.low), middle, x(f.high), middle, f"whisker {look.css}")
        end = x(f.high)
    for value in arm.values if len(arm.values) > 1 else ():
        canvas.line(x.clamp(value), middle - 3, x.clamp(value), middle + 3, f"whisker {look.css}")
    said = phrases.quality(f.value, report.task)
    mark(canvas, look, x(f.value), middle, 4.2, f"{report.title_of(arm.name)} at {words.percent(arm.sparsity)}: {said}")
    canvas.text(max(end, *map(x.clamp, arm.values)) + 8, middle + 0.35 * font, said, "value")
    return y + line


def over_steps(
    report: SignReport, runs: Sequence[SignRun], heading: str, get: Get, share: bool, canvas: Canvas
) -> tuple[str, str] | None:
    """A line for each training; None where fewer than two records have the figure."""
    scale = 100.0 if share else 1.0
    lines = {r.name: [(p.step, scale * v) for p in r.points if (v := get(p)) is not None] for r in runs}
    lines = {name: line for name, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    font, width = canvas.font, canvas.width
    canvas.height = 250 if width > NARROW else 230
    values = [v for line in lines.values() for _, v in line]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ends = (low if low == 0 else low - pad, high + pad)
    tall = canvas.height - 5.1 * font
    fanned = sorted(tall * (line[-1][1] - ends[0]) / (ends[1] - ends[0]) for line in lines.values())
    several = len(lines) > 1 and fanned[-1] - fanned[0] > 1.25 * font  # lines that end in one spot need no names there
    longest = max(text_width(report.brief_of(name), font) for name in lines)
    names = min(longest + 14, width * (0.34 if width > NARROW else 0.36)) if several else 4.0
    plot = Plot(canvas, Box(0, 2.2 * font, width - names, canvas.height - 2.9 * font), ends, spacing=26)
    x = plot.across(0, max(s for line in lines.values() for s, _ in line), room=(3, 6))
    canvas.text(0, font, fit(heading + (", %" if share else ""), width, font), "heading")
    plot.rules()
    plot.ticks(x.ticks(58), lambda v: f"{v:,.0f}", "steps →", 2.9 * font - 3)
    for name, line in lines.items():
        canvas.polyline([(x(s), plot.y(v)) for s, v in line], f"front {LOOKS.get(name, PLAIN).css}")
    if several:
        spots = apart([plot.y(line[-1][1]) for line in lines.values()], 1.25 * font, plot.area.top, plot.area.bottom)
        for (name, line), at in zip(lines.items(), spots, strict=True):
            px, py, right = x(line[-1][0]), plot.y(line[-1][1]), plot.area.right
            mark(canvas, LOOKS.get(name, PLAIN), px, py, 3.2, f"{report.title_of(name)}: {words.number(line[-1][1])}")
            canvas.line(px + 5, py, right + 3, at, "leader")
            canvas.text(
                right + 6,
                at + 0.35 * font,
                fit(report.brief_of(name), names - 8, font),
                "name",
                title=report.title_of(name),
            )
    ended = "; ".join(
        f"{report.title_of(n)} from {words.short(line[0][1])} to {words.short(line[-1][1])}"
        for n, line in lines.items()
    )
    return heading, f"{ended}."


def by_layer(run: SignRun, canvas: Canvas) -> tuple[str, str] | None:
    """Flips against initialisation of each tensor (or block, where there are many) at every record."""
    steps = [p.step for p in run.points]
    chosen = [i for i, step in enumerate(steps) if step]
    if len(chosen) < 2 or len(run.layers) < 2:
        return None
    if len(chosen) > COLUMNS:
        chosen = [chosen[round(i * (len(chosen) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    groups = [(t.name, [t]) for t in run.layers]
    if len(groups) > ROWS:
        blocks: dict[str, list] = {}  # type: ignore[type-arg]
        for t in run.layers:
            blocks.setdefault(block(t.name) or t.name, []).append(t)
        groups = list(blocks.items())
    grid = [[mean((t.flips[i], t.last.compared) for t in members) for i in chosen] for _, members in groups]
    top = max((v for line in grid for v in line if v is not None), default=0.0) or 1.0
    font, width = canvas.font, canvas.width
    short = shortened([name for name, _ in groups])
    labels = min(max(text_width(n, font) for n in [*short, "steps →"]) + 10, width * 0.34)
    last = text_width("100%", font) + 8
    pitch = min((width - labels - last) / len(chosen), 60.0)
    row = 20.0 if len(groups) <= 24 else 15.0
    canvas.text(labels - 8, font, "steps →", "heading", anchor="end")
    shown = -1e9
    for i, at in enumerate(chosen):
        middle, text = labels + (i + 0.5) * pitch, f"{steps[at]:,}"
        if middle - shown > text_width(text, font) + 8:
            canvas.text(middle, font, text, anchor="middle")
            shown = middle
    y = 1.7 * font
    for (name, _), label, line in zip(groups, short, grid, strict=True):
        canvas.text(labels - 8, y + row / 2 + 0.35 * font, fit(label, labels - 10, font), anchor="end", title=name)
        for i, (at, value) in enumerate(zip(chosen, line, strict=True)):
            if value is not None:
                canvas.heat(
                    labels + i * pitch,
                    y,
                    pitch,
                    row,
                    "heat sparsity",
                    value / top,
                    f"{name}, step {steps[at]:,}: {words.percent(value)} flipped",
                )
        if line[-1] is not None:
            canvas.text(
                labels + len(chosen) * pitch + 6,
                y + row / 2 + 0.35 * font,
                words.percent(line[-1], 0 if line[-1] >= 0.1 else 1),
                "value",
            )
        y += row
    canvas.height = y + 4
    return "Signs flipped against initialisation, by tensor", f"{len(groups)} rows; the most is {words.percent(top)}."
