"""Numbers and patterns that a user gave: of the right kind, or one sentence about it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from winnow.errors import InputError

_USUAL = {"lr": "2e-5", "weight_decay": "0.01", "clip": "1.0", "warmup": "0.1", "epochs": "3"}


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, numpy's too; True and False are none.

    Raises:
        InputError: anything else, or less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        fix = f"{name}={round(value)}" if _is_real(value) and value >= 1 else f"an int such as {name}=10"
        raise InputError(f"{name} must be a whole number and is {value!r}: give {fix}.")
    if least is not None and value < least:
        raise InputError(f"{name} is {value}: give {name}={least} or more.")
    return int(value)


def real(name: str, value: Any, *, zero: bool = False) -> float:
    """A positive, finite int or float, numpy's too; True and False are none. ``name`` is one of those in ``_USUAL``.

    Raises:
        InputError: anything else; 0 unless ``zero`` allows it.
    """
    if not _is_real(value):
        raise InputError(f"{name} must be a number and is {value!r}: give one, such as {name}={_USUAL[name]}.")
    if value < 0 or (value == 0 and not zero):
        raise InputError(f"{name} is {value}: give {'0 or more' if zero else 'more than 0'}, such as {_USUAL[name]}.")
    return value if isinstance(value, (int, float)) else float(value)


def patterns(name: str, given: Any) -> tuple[str, ...]:
    """Names or patterns as a tuple; a single string is a list of one.

    Raises:
        InputError: something else than text.
    """
    found = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for pattern in found:
        if not isinstance(pattern, str):
            raise InputError(f'{name} holds {pattern!r}, which is no name: give a list such as {name}=["*.weight"].')
    return found


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
