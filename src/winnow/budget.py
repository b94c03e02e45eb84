"""Budgets - sparsity, bits per weight or file size - as an exact number of zeros."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from winnow.errors import InputError
from winnow.masks.structure import NM, BlockShape, Coupled, Structure, Unstructured, nearest_zeros, unit_size
from winnow.words import size

IndexBits = Callable[[float], float]  # density -> index bits per weight

_UNITS = {"": 1, "b": 1, **{f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)}}
_UNITS |= {p: 1000**i for i, p in enumerate("kmgt", 1)} | {f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)}


@dataclass(frozen=True)
class Budget:
    """One of: share of zeros among the prunable weights, bits per prunable weight, bytes of the whole file.

    ``value`` is a fraction in [0, 1), bits, or bytes. Build it with :meth:`of`.
    """

    kind: Literal["sparsity", "bits_per_weight", "size"]
    value: float

    @classmethod
    def of(
        cls,
        sparsity: float | str | None = None,
        bits_per_weight: float | str | None = None,
        size: int | float | str | None = None,
    ) -> Budget:
        """The budget of exactly one of the three, as numbers or text such as "60%", "3.5" or "40MB".

        Raises InputError when none or several are given, or one cannot be read.
        """
        if sum(value is not None for value in (sparsity, bits_per_weight, size)) != 1:
            raise InputError("give exactly one budget: sparsity, bits per weight, or size")
        if sparsity is not None:
            return cls("sparsity", parse_sparsity(sparsity))
        if bits_per_weight is not None:
            bits = _number(bits_per_weight)
            if bits is None or not bits > 0:
                raise InputError(
                    f"{bits_per_weight!r} bits per weight cannot be: write a positive number, such as 3 or 2.5"
                )
            return cls("bits_per_weight", bits)
        assert size is not None
        return cls("size", parse_size(size))

    def __str__(self) -> str:
        if self.kind == "sparsity":
            return f"sparsity {self.value:g}"
        return f"{self.value:g} bits per weight" if self.kind == "bits_per_weight" else size(int(self.value))


def parse_sparsity(value: float | str) -> float:
    """A share of zeros in [0, 1) from a number, "0.6" or "60%"; InputError otherwise."""
    number = _number(value)
    if number is None and isinstance(value, str) and value.strip().endswith("%"):
        percent = _number(value.strip()[:-1])
        number = None if percent is None else percent / 100
    if number is None:
        raise InputError(f"sparsity {value!r} is no number: write the share of zeros as 0.6 or 60%")
    if not 0 <= number < 1:
        hint = f" (did you mean {number:g}%?)" if 2 <= number < 100 else ""
        raise InputError(
            f"sparsity {value} is outside 0 to 1{hint}: write a share of zeros below 1, such as 0.6 or 60%"
        )
    return number


def parse_size(value: int | float | str) -> int:
    """Bytes from a number or text: "40MB", "800k", "1.5GiB" (k, M, G, T are 1000s; Ki, Mi, Gi, Ti with B 1024s).

    Raises InputError when it cannot be read or is below one byte.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*([a-z]*)\s*", str(value).lower())
    if isinstance(value, bool) or not found or found[2] not in _UNITS:
        raise InputError(f"size {value!r} cannot be read: write bytes with a unit, such as 40MB or 1.5GiB")
    exact = Fraction(found[1]) * _UNITS[found[2]]
    if exact < 1:
        raise InputError(f"size {value!r} is less than one byte: write bytes with a unit, such as 40MB or 1.5GiB")
    return int(exact)


def largest_remainder(weights: Sequence[float], total: int, caps: Sequence[int] | None = None) -> list[int]:
    """``total`` shared in proportion to ``weights`` as whole numbers, none above its cap; the sum is exact.

    Each gets the floor of its share, and the largest fractions one more (Hamilton's method), ties to the lower
    index. A share that reaches its cap stays there and the others are shared anew; what the positive weights cannot
    take goes evenly to those of weight zero. The arithmetic is exact, so equal input gives equal output anywhere.

    Raises InputError for weights that are negative or not finite, a negative total, or caps that leave less room.
    """
    if total < 0 or any(not math.isfinite(w) or w < 0 for w in weights):
        raise InputError("shares need a total and weights that are finite and not negative: check the rates")
    room = math.inf if caps is None and weights else sum(caps or ())
    if total > room:
        raise InputError(f"{total} does not fit into limits that sum to {room}: ask for less or raise the limits")
    counts = [0] * len(weights)
    free = list(range(len(weights)))
    left = total
    while left:
        claims = {i: Fraction(weights[i]) for i in free}
        whole = sum(claims.values())
        if not whole:
            claims, whole = dict.fromkeys(free, Fraction(1)), Fraction(len(free))
        shares = {i: left * claims[i] / whole for i in free}
        full = [i for i in free if caps is not None and shares[i] >= caps[i] and claims[i]]
        if full:
            for i in full:
                assert caps is not None
                counts[i] = caps[i]
                left -= caps[i]
            free = [i for i in free if i not in set(full)]
            continue
        # An integer cap above the share is at or above its ceiling, so one more always fits.
        for i in free:
            counts[i] = shares[i].numerator // shares[i].denominator
        ahead = sorted(free, key=lambda i: (counts[i] - shares[i], i))
        for i in ahead[: left - sum(counts[i] for i in free)]:
            counts[i] += 1
        left = 0
    return counts


def index_bits_per_weight(structure: Structure) -> float:
    """Bits per weight that say which weights stayed: a bitmask for unstructured, one bit a block, ceil(log2 C(m, n))
    bits for a group of m, nothing for coupled units, which leave smaller dense shapes."""
    if isinstance(structure, NM):
        return (math.comb(structure.m, structure.n) - 1).bit_length() / structure.m
    if isinstance(structure, BlockShape):
        return 1 / unit_size(structure)
    return 0.0 if isinstance(structure, Coupled) else 1.0


def zeros_for(
    budget: Budget,
    numels: Mapping[str, int],
    value_bits: float,
    index_bits: Structure | IndexBits = Unstructured(),  # noqa: B008 (frozen)
    dense_bytes: int | Mapping[str, int] = 0,
    overhead_bytes: int = 0,
) -> int:
    """The number of zeros, over all prunable weights, that a budget asks for.

    ``numels``: prunable weights by tensor. ``value_bits``: bits of a stored value. ``index_bits``: the structure, or
    bits per weight as a function of the density. ``dense_bytes``: what is stored as it was, in all or by label (the
    labels appear in the error). ``overhead_bytes``: scales, headers and padding, which do not depend on the zeros;
    bits per weight count them too.

    Sparsity gives ``round(sparsity * N)``, at most N - 1. The other two give the smallest count whose packed tensors
    (``density * value_bits + index bits`` per weight) fit; no zeros at all are stored dense, without an index. n:m
    has one count, which must meet the budget; blocks get whole blocks, enough of them.

    Raises InputError when nothing is prunable or the budget cannot be met, naming the floor that stops it.
    """
    total = sum(numels.values())
    if total < 1:
        raise InputError("nothing is prunable here: name tensors to include, or choose another model")
    unit = 1 if callable(index_bits) else unit_size(index_bits)
    if budget.kind == "sparsity":
        zeros = min(round(budget.value * total), total - 1)
        if isinstance(index_bits, NM | BlockShape):
            zeros = min(nearest_zeros(index_bits, total, zeros, "the prunable weights"), total - unit)
        return zeros

    def used(zeros: int) -> float:
        """Bits of the packed tensors."""
        per_weight = 0.0
        if zeros:
            per_weight = index_bits(1 - zeros / total) if callable(index_bits) else index_bits_per_weight(index_bits)
        return (total - zeros) * value_bits + per_weight * total + 8 * overhead_bytes

    dense = dense_bytes if isinstance(dense_bytes, int) else sum(dense_bytes.values())
    allowed = budget.value * total if budget.kind == "bits_per_weight" else 8 * (budget.value - dense)
    if allowed < 0:
        raise InputError(
            f"{budget} cannot be met: the tensors that stay dense alone take {size(dense)}"
            f"{_largest(dense_bytes)}; ask for more, or widen the scope"
        )
    if isinstance(index_bits, NM):
        fixed = total // index_bits.m * (index_bits.m - index_bits.n)
        if used(fixed) > allowed:
            raise InputError(
                f"{budget} cannot be met: {index_bits} with {value_bits:g}-bit values takes "
                f"{_amount(budget, used(fixed), total, dense)}; ask for more, fewer bits a value, or another structure"
            )
        return fixed
    if used(0) <= allowed:
        return 0
    most = (total - 1) // unit  # in units: at least one weight stays
    if used(most * unit) > allowed:
        parts = ["the index of which weights stayed"]
        if overhead_bytes:
            parts.append(f"{size(overhead_bytes)} of scales and padding")
        if dense and budget.kind == "size":
            parts.append(f"{size(dense)} of dense tensors{_largest(dense_bytes)}")
        raise InputError(
            f"{budget} cannot be met: with next to nothing kept, {' and '.join(parts)} take "
            f"{_amount(budget, used(most * unit), total, dense)}; ask for more, or a structure of smaller index"
        )
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if used(middle * unit) <= allowed else (middle, high)
    return high * unit


def _amount(budget: Budget, bits: float, total: int, dense: int) -> str:
    if budget.kind == "bits_per_weight":
        return f"{bits / total:.4g} bits per weight"
    return f"{size(math.ceil(bits / 8) + dense)} in all"


def _largest(dense: int | Mapping[str, int]) -> str:
    if isinstance(dense, int) or not dense:
        return ""
    label = max(dense, key=lambda name: dense[name])
    return f", of which {label} {size(dense[label])}"


def _number(value: float | str) -> float | None:
    """A finite number, or None: text such as "nan", "1_000" or "inf" and booleans are none."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
