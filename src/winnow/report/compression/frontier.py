"""The main picture: quality against bits per weight, plain quantization always beside pruning."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from winnow import words
from winnow.records.compression import Candidate, Report, TaskInfo
from winnow.report.compression import phrases
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import Box, Wanted, text_width
from winnow.report.draw.plot import NARROW, Plot, bit_ticks

KINDS: dict[str, str] = {
    "dense": "dense",
    "ticket": "ticket, before packing",
    "quantized": "plain quantization",
    "pruned": "pruned",
    "pruned+quantized": "pruned and quantized",
}


FAMILIES = (
    ("quantized", ("dense", "ticket", "quantized")),
    ("pruned", ("dense", "ticket", "pruned", "pruned+quantized")),
)
BEYOND = "beyond the scale"
STEP = 18.0  # pixels between the rows of the band for values beyond the scale
BAND_ROWS = 6  # of that band at most


@dataclass(frozen=True)
class Point:
    number: int  # its row in the table of candidates
    candidate: Candidate
    bits: float
    quality: float


def points(report: Report) -> list[Point]:
    """The candidates that have a place on the plot."""
    found = []
    for i, c in enumerate(report.ranked, 1):
        usable = c.bits_per_weight is not None and c.bits_per_weight > 0 and math.isfinite(c.bits_per_weight)
        # An infinite perplexity is a result; a metric infinitely good is not.
        best = math.inf if report.task.higher_is_better else -math.inf
        if usable and c.quality is not None and not math.isnan(c.quality) and c.quality != best:
            found.append(Point(i, c, c.bits_per_weight, c.quality))  # type: ignore[arg-type]
    return found


def front(found: list[Point], kinds: tuple[str, ...], higher: bool) -> list[Point]:
    """The points of these kinds that none with as few bits beats, from few bits to many."""
    best: list[Point] = []
    sign = 1 if higher else -1
    for p in sorted((p for p in found if p.candidate.kind in kinds), key=lambda p: (p.bits, -p.quality * sign)):
        if not best or p.quality * sign > best[-1].quality * sign:
            best.append(p)
    return best


def _vertical(found: list[Point], picked: Candidate | None, task: TaskInfo) -> tuple[float, float, bool]:
    """Lowest and highest value of the axis, and whether it is logarithmic.

    The axis shows the region a decision is made in. A collapsed model (perplexity in the thousands, accuracy of a
    coin) would flatten it, so a loss far beyond the usual is left out here and drawn in a band of its own.
    """
    finite = [p.quality for p in found if math.isfinite(p.quality)]
    positive = not task.higher_is_better and min(finite) > 0
    see = math.log if positive else float  # compare perplexities by ratio, points by difference
    sign = 1 if task.higher_is_better else -1
    best = max(sign * see(q) for q in finite)

    def loss(quality: float) -> float:
        return best - sign * see(quality)

    def edges(p: Point) -> list[float]:
        ends = (p.candidate.low, p.candidate.high)
        return [e for e in ends if e is not None and math.isfinite(e) and (e > 0 or not positive)]

    # The yardsticks' own intervals set the least of the axis: differences smaller than the noise must look it.
    yardsticks = [p for p in found if (p.candidate is picked or p.candidate.unpacked) and math.isfinite(p.quality)]
    noise = [abs(loss(e) - loss(p.quality)) for p in yardsticks for e in edges(p)]
    usual = statistics.median_low([loss(q) for q in finite])
    focus = max([usual, 1e-9, *noise, *(loss(p.quality) for p in yardsticks)])
    shown = [q for q in finite if loss(q) <= 3 * focus]
    values = shown + [e for p in yardsticks for e in edges(p)]
    worst = max(loss(v) for v in values)
    # Other intervals too, as far as they do not stretch the axis.
    others = [e for p in found if p.quality in shown for e in edges(p)]
    values += [e for e in others if -0.5 * worst <= loss(e) <= 1.5 * worst]
    low, high = min(values), max(values)
    if positive and high / low > 2.5:
        room = (high / low) ** 0.09
        return low / room, high * room, True
    room = max((high - low) * 0.09, abs(high) * 1e-3, 1e-6)
    return low - room, high + room, False


class _Frontier:
    """One drawing: its axes, and where each point stands."""

    def __init__(self, report: Report, found: list[Point], canvas: Canvas) -> None:
        self.found, self.task, self.picked, self.canvas = found, report.task, report.picked, canvas
        self.yardstick, higher = report.yardstick, report.task.higher_is_better
        low, high, log = _vertical(found, self.picked, self.task)
        self.lost = sorted((p for p in found if not low <= p.quality <= high), key=lambda p: (p.bits, p.number))
        whole = Box(0, 34.0, canvas.width - 6, canvas.height - 46)
        bits = [p.bits for p in found]
        margin = max(1.10, (max(bits) / min(bits)) ** 0.05)
        band, rows = 0.0, dict[int, int]()
        for _ in range(2):  # figures need room on the left, and which there are depends on the band
            self.plot = Plot(canvas, whole, (low, high), log=log, room=(0, band) if higher else (band, 0))
            self.x = self.plot.across(min(bits) / margin, max(bits) * margin, log=True, room=(4, 4))
            rows = self._rows()
            band = (max(rows.values()) + 1) * STEP + 14 if rows else 0.0
        self.area = self.plot.area
        self.edge = None if not rows else whole.bottom - band if higher else whole.top + band
        self.taken: list[Box] = []  # where other words stand
        self.whiskers: list[list[tuple[float, float]]] = []
        self.spots = {p.number: (self.x(p.bits), self.plot.y.clamp(p.quality)) for p in found}
        for p in self.lost:
            offset = 14 + rows[p.number] * STEP
            self.spots[p.number] = (self.x(p.bits), whole.bottom - offset if higher else whole.top + offset)

    def _name(self, p: Point) -> str:
        """The label of a point; the value with it where the scale does not show it."""
        name = words.clip_middle(p.candidate.name, 34 if self.canvas.width > NARROW else 24)
        return f"{name} ({words.short(p.quality)})" if p in self.lost else name

    def _rows(self) -> dict[int, int]:
        """A row of the band for each lost point, so that every one has room for its label on the right."""
        rows: dict[int, int] = {}
        ends = {p.number: self.x(p.bits) + text_width(self._name(p), self.canvas.font) + 24 for p in self.lost}
        for p in self.lost:
            taken = {row for number, row in rows.items() if self.x(p.bits) < ends[number]}
            rows[p.number] = next(i for i in range(len(self.lost) + 1) if i not in taken) % BAND_ROWS
        return rows

    def grid(self) -> None:
        canvas, area, task = self.canvas, self.area, self.task
        self.plot.rules()
        self.plot.ticks(bit_ticks(self.x, 30), words.short, "bits per weight, log scale", 40)
        canvas.text(area.left, area.bottom + 40, "← smaller", "label")
        if self.edge is not None:
            canvas.line(area.left, self.edge, area.right, self.edge, "edge")
            base = self.edge - 5 if self.edge < canvas.height / 2 else self.edge + canvas.font + 1
            canvas.text(area.right, base, BEYOND, anchor="end")
            left = area.right - text_width(BEYOND, canvas.font)
            self.taken.append(Box(left, base - canvas.font, area.right, base + 3))
        better = "higher" if task.higher_is_better else "lower"
        unit, scale = f" in {task.unit}" if task.unit else "", ", log scale" if self.plot.y.log else ""
        heading = f"{task.metric}{unit}, {better} is better{scale}"
        canvas.text(0, 12, words.clip(heading, int(canvas.width / canvas.font / 0.6)), "label", title=heading)

    def fronts(self) -> list[list[tuple[float, float]]]:
        """Draws the line of each family's best; returns the lines, for the labels to avoid."""
        dense = next((p for p in self.found if p.candidate is self.yardstick and p not in self.lost), None)
        if dense is not None:
            self.plot.datum(dense.quality)
        lines = []
        for css, kinds in FAMILIES:
            path = [p for p in front(self.found, kinds, self.task.higher_is_better) if p not in self.lost]
            if len(path) >= 2:
                lines.append([self.spots[p.number] for p in path])
                self.canvas.polyline(lines[-1], f"front {css}")
        return lines

    def mark(self, p: Point) -> None:
        c, (x, y), canvas = p.candidate, self.spots[p.number], self.canvas
        css = "both" if c.kind == "pruned+quantized" else c.kind
        title = f"{c.name}: {words.short(p.bits)} bits per weight, {self.task.metric} {phrases.quality(p.quality, self.task)}"
        if self.plot.interval(x, y, p.quality, c.low, c.high, css) and c.low is not None and c.high is not None:
            title += f" (95% interval {phrases.span(c.low, c.high, self.task)})"
            self.whiskers.append([(x, self.plot.y.clamp(c.low)), (x, self.plot.y.clamp(c.high))])
        canvas.marker(c.kind, x, y, title)
        if c is self.picked:
            canvas.dot(x, y, 10, "ring")

    def labels(self, lines: list[list[tuple[float, float]]]) -> None:
        """Names beside their points, the important first; where a name has no room, its number in the table."""
        higher = self.task.higher_is_better
        leading = {p.number for css, kinds in FAMILIES for p in front(self.found, kinds[1:], higher)}

        def rank(p: Point) -> tuple[int, int]:
            first = 0 if p.candidate is self.picked else 1 if p.candidate.unpacked else 2 if p.number in leading else 3
            return first, p.number

        whole = Box(self.area.left + 2, self.area.top - 14, self.area.right, self.area.bottom - 2)
        rooms = [whole, whole]  # for names of points on the scale, and of those beyond it
        if self.edge is not None:
            rooms = [replace(whole, bottom=self.edge - 1), replace(whole, top=self.edge + 1)][:: 1 if higher else -1]
        wanted = []
        for p in sorted(self.found, key=rank):
            chosen, texts = p.candidate is self.picked, (self._name(p), f"#{p.number}")
            radius = 10.0 if chosen else 6.0
            wanted.append(Wanted(p.number, *self.spots[p.number], texts, rooms[p in self.lost], radius, chosen))
        names = {p.number: p.candidate.name for p in self.found}
        self.plot.names(wanted, lines + self.whiskers, self.taken, names)


def draw(report: Report, canvas: Canvas) -> tuple[str, str] | None:
    """The frontier, or None when fewer than two candidates have both coordinates."""
    found = points(report)
    if len(found) < 2 or not any(math.isfinite(p.quality) for p in found):
        return None
    canvas.height = 460 if canvas.width > NARROW else 400
    plot = _Frontier(report, found, canvas)
    plot.grid()
    lines = plot.fronts()
    for p in sorted(found, key=lambda p: p.candidate is report.picked):  # the chosen one on top
        plot.mark(p)
    plot.labels(lines)
    task = report.task
    better = "higher" if task.higher_is_better else "lower"
    said = [f"{p.candidate.name}: {words.short(p.bits)} bits, {phrases.quality(p.quality, task)}" for p in found]
    return f"{task.metric} against bits per weight", f"{better} is better. {'; '.join(said)}."
