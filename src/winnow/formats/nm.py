"""Index of an n:m group: its rank among the C(m, n) patterns that keep n of m.

The patterns are numbered by the combinatorial number system (Knuth, TAOCP 7.2.1.3, theorem L): a group that keeps
positions p_1 < p_2 < ... < p_n has rank C(p_1, 1) + C(p_2, 2) + ... + C(p_n, n). A rank takes
ceil(log2 C(m, n)) bits: 3 bits a group for 2:4, where a bitmask takes 4.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np

from winnow.errors import FormatError

LARGEST_GROUP = 64  # C(64, 32) is the largest central binomial below 2**63
_TABLE_GROUP = 16  # up to here, all patterns of a group fit a table


def index_bits(n: int, m: int) -> int:
    """Bits of one group's rank: ceil(log2 C(m, n))."""
    return (comb(m, n) - 1).bit_length()


def rank(keep: np.ndarray, n: int, m: int) -> np.ndarray:
    """Ranks [R, C / m] of the groups of ``keep`` (bool [R, C], exactly n of every m True)."""
    groups = keep.reshape(keep.shape[0], -1, m)
    if m > _TABLE_GROUP:
        return _rank(groups, n, m)
    weights = (1 << np.arange(m)).astype(np.int32)
    pattern = np.zeros(groups.shape[:2], dtype=np.int32)
    for place in range(m):
        pattern |= groups[..., place] * weights[place]
    return _tables(n, m)[0][pattern]


def unrank(ranks: np.ndarray, n: int, m: int) -> np.ndarray:
    """The inverse of :func:`rank`: bool [R, G * m]. Raises FormatError for a rank that no pattern has."""
    if ranks.size and int(ranks.max()) >= comb(m, n):
        raise FormatError(
            f"the {n}:{m} index of a packed tensor holds a pattern that does not exist: "
            "the file is damaged; copy or write it again"
        )
    keep = _tables(n, m)[1][ranks] if m <= _TABLE_GROUP else _unrank(ranks, n, m)
    return keep.reshape(ranks.shape[0], -1)


def _binomials(n: int, m: int) -> np.ndarray:
    return np.array([[comb(place, kept) for kept in range(n + 1)] for place in range(m + 1)], dtype=np.int64)


def _rank(groups: np.ndarray, n: int, m: int) -> np.ndarray:
    table = _binomials(n, m)
    seen = np.zeros(groups.shape[:-1], dtype=np.int64)
    ranks = np.zeros(groups.shape[:-1], dtype=np.int64)
    for place in range(m):
        here = groups[..., place]
        seen += here
        ranks += np.where(here, table[place][seen], 0)
    return ranks


def _unrank(ranks: np.ndarray, n: int, m: int) -> np.ndarray:
    table = _binomials(n, m)
    left = ranks.astype(np.int64)
    needed = np.full(ranks.shape, n, dtype=np.int64)
    keep = np.zeros((*ranks.shape, m), dtype=np.bool_)
    for place in range(m - 1, -1, -1):
        step = table[place][needed]
        here = (needed > 0) & (left >= step)
        keep[..., place] = here
        left -= np.where(here, step, 0)
        needed -= here
    return keep


@lru_cache(maxsize=8)
def _tables(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """(pattern bits -> rank, rank -> keep) for small groups."""
    keep = _unrank(np.arange(comb(m, n)), n, m)
    patterns = (keep * (1 << np.arange(m))).sum(axis=-1)
    ranks = np.zeros(1 << m, dtype=np.int16)
    ranks[patterns] = np.arange(comb(m, n))
    return ranks, keep
