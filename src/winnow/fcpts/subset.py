"""Things of different sizes, taken in order, whose sum comes as near to a total as single exchanges bring it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def nearest_subset(sizes: Sequence[int], total: int) -> list[int]:
    """Which of ``sizes`` (above 0, the one that should be taken first at the front) to take, as ascending indices.

    Starts from the first ones, as many as come nearest to ``total`` (a draw takes fewer). While the sum is off by
    more than half the smallest size, one thing more is taken, put back, or exchanged for another: the move of the
    least disorder among those that end within half the smallest size, else among those that at least halve what is
    missing, else the move that comes nearest. Ends when no single move comes nearer. Disorder is the number of pairs
    of which the later is taken and the earlier is not.
    """
    size = np.asarray(sizes, dtype=np.int64)
    if not len(size):
        return []
    nothing = len(size)  # an index that stands for no thing at all
    padded = np.append(size, 0)
    reached = np.append(0, size.cumsum())
    taken = np.arange(len(size)) < int(np.abs(reached - total).argmin())
    while 2 * abs(missing := int(total - size[taken].sum())) > size.min():
        out, into = np.meshgrid(np.append(np.flatnonzero(taken), nothing), np.append(np.flatnonzero(~taken), nothing))
        out, into = out.ravel(), into.ravel()
        left = np.abs(missing + padded[out] - padded[into])
        if left.min() >= abs(missing):
            break
        disorder = _change(taken, out, into)
        for bound in (size.min() / 2, abs(missing) / 2):
            if left.min() <= bound:
                best = int(np.lexsort((left, disorder, left > bound))[0])
                break
        else:
            best = int(np.lexsort((disorder, left))[0])
        for index, value in ((out[best], False), (into[best], True)):
            if index < nothing:
                taken[index] = value
    return np.flatnonzero(taken).tolist()


def _change(taken: np.ndarray, out: np.ndarray, into: np.ndarray) -> np.ndarray:
    """How the disorder changes by each move: ``out`` put back and ``into`` taken (the length: nothing)."""
    ahead = np.append(0, (~taken).cumsum())[:-1]  # left out before each
    behind = taken.sum() - taken.cumsum()  # taken after each
    gain = np.append(ahead - behind, 0)  # by taking it
    both = (out < len(taken)) & (into < len(taken))  # then the two pass each other as well
    return gain[into] - gain[out] + both
