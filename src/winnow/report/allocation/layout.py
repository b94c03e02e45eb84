"""Where the layers of a picture go: gaps between the rows of blocks, and blocks over lines of columns."""

from __future__ import annotations

import math


def breaks(lengths: list[int], count: int) -> set[int]:
    """Before which rows a gap goes: where a block of several layers begins or ends."""
    found, at, before = set(), 0, 1
    for n in lengths:
        if at and (n > 1 or before > 1):
            found.add(at)
        at, before = at + n, n
    return found if len(found) <= count / 2 else set()


def lines(lengths: list[int], room: float, pitch: float, limit: int) -> list[list[tuple[int, int, int]]]:
    """Groups over ``limit`` lines at most: (group, first, after last) of each, as evenly as whole groups allow."""
    total = sum(lengths)
    count = min(limit, math.ceil(total * pitch / room))

    def pack(size: int) -> list[list[tuple[int, int, int]]]:
        lines: list[list[tuple[int, int, int]]] = [[]]
        used = 0
        for i, n in enumerate(lengths):
            a = 0
            while a < n:
                if used and used + n - a > size and (n - a <= size or used == size):
                    lines.append([])
                    used = 0
                b = min(n, a + size - used)
                lines[-1].append((i, a, b))
                used, a = used + b - a, b
        return lines

    size = math.ceil(total / count)
    while len(found := pack(size)) > count:
        size += 1
    return found
