"""The main picture: what was lost against the size of the file, plain quantization always beside pruning."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from winnow import words
from winnow.naming import title_of
from winnow.records.compression import Candidate, Report, TaskInfo
from winnow.report.compression import phrases
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import Box, Wanted, fit, text_width
from winnow.report.draw.plot import NARROW, Plot

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
ONE = 3.0  # pixels: marks as near share a label


@dataclass(frozen=True)
class Point:
    number: int  # its row in the table of candidates
    candidate: Candidate
    size: int  # bytes of its file
    lost: float  # as Candidate.drop: positive when worse


def points(report: Report) -> list[Point]:
    """The candidates that have a place on the plot."""
    found = []
    for i, c in enumerate(report.ranked, 1):
        lost = 0.0 if c is report.yardstick and c.quality is not None else c.drop
        # An infinite perplexity is a result; a metric infinitely good is not.
        if c.file_bytes and lost is not None and not math.isnan(lost) and lost != -math.inf:
            found.append(Point(i, c, c.file_bytes, lost))
    return found


def front(found: list[Point], kinds: tuple[str, ...]) -> list[Point]:
    """The points of these kinds that none of as few bytes beats, from the smallest file to the largest."""
    best: list[Point] = []
    for p in sorted((p for p in found if p.candidate.kind in kinds), key=lambda p: (p.size, p.lost)):
        if not best or p.lost < best[-1].lost:
            best.append(p)
    return best


def _shown(found: list[Point], picked: Candidate | None) -> tuple[float, float]:
    """The least and the greatest loss on the axis.

    The axis shows the region a decision is made in. A collapsed model (perplexity in the thousands, accuracy of a
    coin) would flatten it, so a loss far beyond the usual is left out here and drawn in a band of its own.
    """
    finite = [p.lost for p in found if math.isfinite(p.lost)]
    best = min(finite)

    def edges(p: Point) -> list[float]:
        return [e for e in (p.candidate.drop_low, p.candidate.drop_high) if e is not None and math.isfinite(e)]

    # The chosen one's own interval sets the least of the axis: differences smaller than the noise must look it.
    own = [p for p in found if (p.candidate is picked or p.candidate.unpacked) and math.isfinite(p.lost)]
    noise = [abs(e - p.lost) for p in own for e in edges(p)]
    usual = statistics.median_low([lost - best for lost in finite])
    focus = max([usual, 1e-9, *noise, *(p.lost - best for p in own)])
    shown = [lost for lost in finite if lost - best <= 3 * focus]
    values = shown + [e for p in own for e in edges(p)]
    worst = max(v - best for v in values)
    # Other intervals too, as far as they do not stretch the axis.
    others = [e for p in found if p.lost in shown for e in edges(p)]
    values += [e for e in others if -worst <= e - best <= 1.5 * worst]
    room = max((max(values) - min(values)) * 0.09, 0.05)
    return min(values) - room, max(values) + room


def in_bytes(value: float) -> str:
    """A size on an axis: "150 kB", "1.5 MB"."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:.4g} bytes"


class _Frontier:
    """One drawing: its axes, and where each point stands."""

    def __init__(self, report: Report, found: list[Point], canvas: Canvas) -> None:
        self.found, self.task, self.picked, self.canvas = found, report.task, report.picked, canvas
        self.report, higher = report, report.task.higher_is_better
        self.toward = -1 if higher else 1  # losses go down, as the figure itself does; perplexities rise
        least, most = _shown(found, self.picked)
        low, high = sorted((self.toward * least, self.toward * most))
        self.lost = sorted((p for p in found if not least <= p.lost <= most), key=lambda p: (p.size, p.number))
        whole = Box(0, 34.0 + 1.6 * canvas.font, canvas.width - 6, canvas.height - 46)
        sizes = [p.size for p in found]
        margin = max(1.10, (max(sizes) / min(sizes)) ** 0.05)
        band, rows = 0.0, dict[int, int]()
        for _ in range(2):  # figures need room on the left, and which there are depends on the band
            self.plot = Plot(canvas, whole, (low, high), room=(0, band) if higher else (band, 0))
            self.x = self.plot.across(min(sizes) / margin, max(sizes) * margin, log=True, room=(4, 4))
            rows = self._rows()
            band = (max(rows.values()) + 1) * STEP + 14 if rows else 0.0
        self.area = self.plot.area
        self.edge = None if not rows else whole.bottom - band if higher else whole.top + band
        self.taken: list[Box] = []  # where other words stand
        self.whiskers: list[list[tuple[float, float]]] = []
        self.spots = {p.number: (self.x(p.size), self._y(p.lost)) for p in found}
        for p in self.lost:
            offset = 14 + rows[p.number] * STEP
            self.spots[p.number] = (self.x(p.size), whole.bottom - offset if higher else whole.top + offset)

    def _y(self, lost: float) -> float:
        return self.plot.y.clamp(self.toward * lost)

    def _name(self, p: Point) -> str:
        """The label of a point; the value with it where the scale does not show it."""
        name = words.clip_middle(p.candidate.name, 34 if self.canvas.width > NARROW else 24)
        return f"{name} ({phrases.change(p.candidate, self.task)})" if p in self.lost else name

    def _rows(self) -> dict[int, int]:
        """A row of the band for each lost point, so that every one has room for its label on the right."""
        rows: dict[int, int] = {}
        ends = {p.number: self.x(p.size) + text_width(self._name(p), self.canvas.font) + 24 for p in self.lost}
        for p in self.lost:
            taken = {row for number, row in rows.items() if self.x(p.size) < ends[number]}
            rows[p.number] = next(i for i in range(len(self.lost) + 1) if i not in taken) % BAND_ROWS
        return rows

    def grid(self) -> None:
        canvas, area, task, font = self.canvas, self.area, self.task, self.canvas.font
        self.plot.rules()
        self.plot.ticks(self.x.ticks(4.2 * font), in_bytes, "file size, log scale", 40)
        canvas.text(area.left, area.bottom + 40, "← smaller", "label")
        if self.edge is not None:
            canvas.line(area.left, self.edge, area.right, self.edge, "edge")
            base = self.edge - 5 if self.edge < canvas.height / 2 else self.edge + font + 1
            canvas.text(area.right, base, BEYOND, anchor="end")
            left = area.right - text_width(BEYOND, font)
            self.taken.append(Box(left, base - font, area.right, base + 3))
        better, unit = ("higher", "points") if task.higher_is_better else ("lower", "%")
        given = phrases.against(self.report)
        for line, (text, css) in enumerate(
            (
                (f"{title_of(self.report.model.name)}: {task.metric} against file size", "heading"),
                (f"change against {given}, {unit}; {better} is better", "label"),
            )
        ):
            canvas.text(0, 12 + 1.6 * font * line, fit(text, canvas.width, font), css, title=text)

    def fronts(self) -> list[list[tuple[float, float]]]:
        """Draws the line of each family's best; returns the lines, for the labels to avoid."""
        self.plot.datum(0.0)
        lines = []
        for css, kinds in FAMILIES:
            path = [p for p in front(self.found, kinds) if p not in self.lost]
            if len(path) >= 2:
                lines.append([self.spots[p.number] for p in path])
                self.canvas.polyline(lines[-1], f"front {css}")
        return lines

    def mark(self, p: Point) -> None:
        c, (x, y), canvas = p.candidate, self.spots[p.number], self.canvas
        css, low, high = "both" if c.kind == "pruned+quantized" else c.kind, c.drop_low, c.drop_high
        title = _said(p, self.task)
        if low is not None and high is not None:
            low, high = sorted((self.toward * low, self.toward * high))
        if self.plot.interval(x, y, self.toward * p.lost, low, high, css) and low is not None and high is not None:
            title += f" (95% interval {phrases.change_span(c, self.task)})"
            self.whiskers.append([(x, self.plot.y.clamp(low)), (x, self.plot.y.clamp(high))])
        canvas.marker(c.kind, x, y, title)
        if c is self.picked:
            canvas.dot(x, y, 10, "ring")

    def labels(self, lines: list[list[tuple[float, float]]]) -> None:
        """Names beside their points, the important first; where a name has no room, its number in the table."""
        higher = self.task.higher_is_better
        leading = {p.number for css, kinds in FAMILIES for p in front(self.found, kinds[1:])}

        def rank(p: Point) -> tuple[int, int]:
            first = 0 if p.candidate is self.picked else 1 if p.candidate.unpacked else 2 if p.number in leading else 3
            return first, p.number

        whole = Box(self.area.left + 2, self.area.top - 14, self.area.right, self.area.bottom - 2)
        rooms = [whole, whole]  # for names of points on the scale, and of those beyond it
        if self.edge is not None:
            rooms = [replace(whole, bottom=self.edge - 1), replace(whole, top=self.edge + 1)][:: 1 if higher else -1]
        wanted, names = [], {}
        for same in self._together(sorted(self.found, key=rank)):
            p = same[0]
            chosen, texts = p.candidate is self.picked, (", ".join(map(self._name, same)), ", ".join(f"#{q.number}" for q in same))  # fmt: skip
            radius = 10.0 if chosen else 6.0
            wanted.append(Wanted(p.number, *self.spots[p.number], texts, rooms[p in self.lost], radius, chosen))
            names[p.number] = ", ".join(q.candidate.name for q in same)
        self.plot.names(wanted, lines, self.taken, names, self.whiskers)

    def _together(self, found: list[Point]) -> list[list[Point]]:
        """Points whose marks lie on one another, which one label names."""
        groups: list[list[Point]] = []
        for p in found:
            spot = self.spots[p.number]
            near = next((g for g in groups if math.dist(self.spots[g[0].number], spot) <= ONE), None)
            if near is None:
                groups.append([p])
            else:
                near.append(p)
        return groups


def _said(p: Point, task: TaskInfo) -> str:
    c = p.candidate
    return ", ".join(
        filter(
            None,
            (
                f"{c.name}: {words.size(c.file_bytes)}",
                f"{task.metric} {phrases.quality(c.quality, task)}" if c.quality is not None else "",
                phrases.change(c, task),
            ),
        )
    )


def draw(report: Report, canvas: Canvas) -> tuple[str, str] | None:
    """The frontier, or None when fewer than two candidates have both coordinates."""
    found = points(report)
    if len(found) < 2 or not any(math.isfinite(p.lost) for p in found):
        return None
    canvas.height = 480 if canvas.width > NARROW else 420
    plot = _Frontier(report, found, canvas)
    plot.grid()
    lines = plot.fronts()
    for p in sorted(found, key=lambda p: p.candidate is report.picked):  # the chosen one on top
        plot.mark(p)
    plot.labels(lines)
    task = report.task
    better = "higher" if task.higher_is_better else "lower"
    title = f"{title_of(report.model.name)}: {task.metric} against file size"
    return title, f"{better} is better. {'; '.join(_said(p, task) for p in found)}."
