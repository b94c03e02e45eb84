"""Direct labels that do not overlap: greedy placement around points, the important ones first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from winnow import words

SPOT = 1.5  # pixels: marks as near are one
CROSSED = 25.0  # pixels: a label rather stands so much farther off than across a whisker
Point = tuple[float, float]
Segment = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def hits(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def inside(self, other: Box) -> bool:
        across = self.left >= other.left and self.right <= other.right
        return across and self.top >= other.top and self.bottom <= other.bottom

    def grown(self, by: float) -> Box:
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)


@dataclass(frozen=True)
class Wanted:
    """A point that asks for a label: the texts it would take, the best first."""

    key: int
    x: float
    y: float
    texts: tuple[str, ...]
    area: Box  # the label stays in here
    radius: float = 5.0
    bold: bool = False


@dataclass(frozen=True)
class Label:
    """A label that found its place; ``leader`` is the line back to a point that is not next to it."""

    key: int
    text: str
    x: float  # left edge of the text
    y: float  # baseline
    box: Box
    bold: bool
    leader: Segment | None


def text_width(text: str, font: float, bold: bool = False) -> float:
    """A generous estimate in pixels, wide enough for the broad system fonts."""
    units = 0.0
    for c in text:
        if c in "iljI.,:;'|!()[] ":
            units += 0.36
        elif c in "mwMW@%—":
            units += 0.98
        elif ord(c) > 0x2E80:
            units += 1.05
        elif c.isupper() or c in "×+−<>=~":
            units += 0.76
        else:
            units += 0.62
    return units * font * (1.06 if bold else 1.0)


def fit(text: str, width: float, font: float) -> str:
    """The text, its middle cut out as far as the width asks."""
    limit = len(text)
    while limit > 4 and text_width(words.clip_middle(text, limit), font) > width:
        limit -= 1
    return words.clip_middle(text, limit)


def place(
    wanted: list[Wanted],
    font: float,
    lines: list[list[Point]],
    taken: list[Box],
    whiskers: Sequence[list[Point]] = (),
) -> list[Label]:
    """Places what fits, in the order given; a point whose every text would overlap stays without a label.

    ``lines`` are polylines that labels had better not cover, still less the ``whiskers``; ``taken`` are places that they must
    not.
    """
    posts = [(*line[0], *line[-1]) for line in whiskers]
    markers = [(w, Box(w.x - w.radius, w.y - w.radius, w.x + w.radius, w.y + w.radius)) for w in wanted]
    trail = [p for line in lines for p in _dots(line)]
    placed: list[Label] = []
    for want in wanted:
        # A mark on the very spot is no obstacle: what keeps clear of the one keeps clear of the other.
        others = [box for w, box in markers if math.dist((w.x, w.y), (want.x, want.y)) > SPOT]
        for text in want.texts:
            label = _best(want, text, font, others, placed, trail, taken, posts)
            if label is not None:
                placed.append(label)
                break
    return placed


def _best(
    want: Wanted,
    text: str,
    font: float,
    others: list[Box],
    placed: list[Label],
    trail: list[Point],
    taken: list[Box],
    posts: list[Segment],
) -> Label | None:
    wide, tall = text_width(text, font, want.bold), font * 1.15
    labelled = [label.box for label in placed]
    leaders = [label.leader for label in placed if label.leader is not None]
    best, least = None, math.inf
    for distance in (want.radius + 4, want.radius + 12, want.radius + 24, want.radius + 40, want.radius + 60):
        for turn, (dx, dy) in enumerate(_DIRECTIONS):
            away = max(distance * 0.7, want.radius + 1) if dx and dy else distance
            cx, cy = want.x + dx * (away + wide / 2), want.y + dy * (away + tall / 2)
            box = Box(cx - wide / 2, cy - tall / 2, cx + wide / 2, cy + tall / 2)
            if not box.inside(want.area):
                continue
            near, wider = box.grown(1), box.grown(2)
            if any(near.hits(m) for m in others) or any(wider.hits(there) for there in taken + labelled):
                continue
            gap = _gap(box, want.x, want.y) - want.radius
            rival = (
                min((_gap(box, (m.left + m.right) / 2, (m.top + m.bottom) / 2) for m in others), default=math.inf)
                - want.radius
            )
            unclear = rival < gap + 8  # the text could be taken for another point's
            leader = _leader(want, box) if distance > want.radius + 6 or unclear else None
            if leader is not None and any(_segment_hits(leader, there) for there in others + labelled):
                continue
            if any((leader is not None and _meet(leader, line)) or _segment_hits(line, box) for line in leaders):
                continue
            covered = sum(box.left < x < box.right and box.top < y < box.bottom for x, y in trail)
            crossed = sum(_segment_hits(post, box) for post in posts)
            cost = distance + 1.5 * covered + CROSSED * crossed + 0.6 * turn + (14 if unclear else 0)
            if cost < least:
                best, least = Label(want.key, text, box.left, cy + font * 0.35, box, want.bold, leader), cost
    return best


def _gap(box: Box, x: float, y: float) -> float:
    """Distance from a point to a box."""
    return math.hypot(max(box.left - x, 0, x - box.right), max(box.top - y, 0, y - box.bottom))


# right, left, above, below, then the diagonals: the order breaks ties
_DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))


def _dots(line: list[Point]) -> list[Point]:
    """Points every few pixels along a polyline."""
    dots = []
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 6))
        dots += [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps)]
    return dots


def _leader(want: Wanted, box: Box) -> Segment:
    """From the edge of the marker to the nearest point of the text."""
    x = min(max(want.x, box.left), box.right)
    y = min(max(want.y, box.top), box.bottom)
    length = math.hypot(x - want.x, y - want.y) or 1.0
    reach = want.radius + 1.5
    return (want.x + (x - want.x) / length * reach, want.y + (y - want.y) / length * reach, x, y)


def _segment_hits(line: Segment, box: Box) -> bool:
    """Whether any inner point of the box lies on the segment (clipped against both pairs of sides)."""
    x0, y0, x1, y1 = line
    first, last = 0.0, 1.0
    for start, step, low, high in ((x0, x1 - x0, box.left, box.right), (y0, y1 - y0, box.top, box.bottom)):
        if step == 0:
            if not low < start < high:
                return False
        else:
            enter, leave = sorted(((low - start) / step, (high - start) / step))
            first, last = max(first, enter), min(last, leave)
    return first < last


def _meet(a: Segment, b: Segment) -> bool:
    def side(x0: float, y0: float, x1: float, y1: float, x: float, y: float) -> float:
        return (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)

    return side(*a, b[0], b[1]) * side(*a, b[2], b[3]) < 0 and side(*b, a[0], a[1]) * side(*b, a[2], a[3]) < 0
