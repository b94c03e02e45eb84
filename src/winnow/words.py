"""Numbers, sizes, durations and dates, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

MINUS = "\u2212"
_MONTHS = "January February March April May June July August September October November December"


def number(value: float | None) -> str:
    """About four significant digits, thousands with commas: 12.3 -> "12.30", 2572 -> "2,572"."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else MINUS + "∞")
    size = abs(value)
    if size >= 1e7:
        mantissa, exponent = f"{size:.2e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif 0 < size < 1e-3:
        text = f"{size:.2g}"
    else:
        digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 1 else 4
        text = f"{size:,.{digits}f}"
    return (MINUS if value < 0 else "") + text


def listed(names: Sequence[str], most: int) -> str:
    """At most ``most`` names: "a, b and 3 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def short(value: float | None) -> str:
    """For axes and cells: :func:`number` without trailing zeros, 12.50 -> "12.5"."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def count(value: int | None) -> str:
    return "" if value is None else f"{value:,}".replace("-", MINUS)


def bulk(value: int | None) -> str:
    """A large count in one word: 11015040 -> "11.0 million"."""
    if value is None:
        return ""
    for limit, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= limit:
            return f"{value / limit:{'.3g' if value >= 100 * limit else '.1f'}} {word}"
    return count(value)


def size(value: int | None) -> str:
    """Decimal units, as file managers count: 22036200 -> "22.0 MB"."""
    if value is None:
        return ""
    for limit, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        # 999,950 bytes would round to 1000.0 kB
        if value >= limit * 0.99995:
            return f"{value / limit:.{1 if value / limit < 100 else 0}f} {unit}"
    return f"{value} bytes"


def ratio(before: int | None, after: int | None) -> str:
    """22.0 MB to 5.5 MB -> "4.0× smaller"; the other way round -> "larger"."""
    if not before or not after:
        return ""
    times = before / after if before >= after else after / before
    text = f"{times:.0f}" if times >= 100 else f"{times:.1f}" if times >= 2 else f"{times:.2f}"
    if text == "1.00":
        return "same size"
    return f"{text}× {'smaller' if before >= after else 'larger'}"


def duration(seconds: float | None) -> str:
    """0.4 -> "0.4 s", 75 -> "1 min 15 s", 7500 -> "2 h 5 min"."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole, large, small = round(seconds), "min", "s"
    if whole < 60:
        return f"{whole} s"
    if whole >= 3600:
        whole, large, small = round(seconds / 60), "h", "min"
    return f"{whole // 60} {large}" + (f" {whole % 60} {small}" if whole % 60 else "")


def amount(text: str, unit: str) -> str:
    """A figure with its unit; nothing stands between a figure and a per cent sign."""
    return text + unit if unit == "%" else f"{text} {unit}".strip()


def percent(share: float | None, digits: int = 1, fixed: bool = False) -> str:
    """0.5 -> "50%" (``fixed``: "50.0%"), 0.505 -> "50.5%"."""
    if share is None or not math.isfinite(share):
        return ""
    exact = f"{100 * share:.{digits}f}"
    text = exact.rstrip("0").rstrip(".") if "." in exact else exact
    # A share that only rounds to all or nothing must not read as all or nothing.
    if text == "100" and share < 1:
        return f"> {100 - 10**-digits:.{digits}f}%"
    if text in ("0", "-0") and share > 0:
        return f"< {10**-digits:.{digits}f}%"
    return f"{exact if fixed else text}%"


def when(created: str | None) -> str:
    """ISO 8601 as "22 November 2026, 18:49 UTC"; anything else as it stands."""
    if not created:
        return ""
    try:
        moment = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    text = f"{moment.day} {_MONTHS.split()[moment.month - 1]} {moment.year}"
    if "T" in created or ":" in created:
        text += f", {moment:%H:%M}"
        if moment.tzinfo is not None:
            text += " UTC" if not moment.utcoffset() else f" UTC{moment:%z}"
    return text


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign; what rounds to zero has none."""
    if not math.isfinite(value):
        return number(value)
    text = f"{abs(value):,.{digits}f}"
    if not any(c in "123456789" for c in text):
        return text
    return ("+" if value > 0 else MINUS) + text


def change(drop: float, low: float | None, high: float | None, relative: bool) -> str:
    """What was lost as a change with the signs of every verdict: "−0.20 points (−1.12 to +0.56)"; minus is worse.

    ``relative``: per cent of a metric where lower is better (perplexity); then plus is worse.
    """
    sign, unit = (1, "%") if relative else (-1, "points")
    text = amount(signed(sign * drop), unit)
    if low is None or high is None:
        return text
    first, last = sorted((sign * low, sign * high))
    return f"{text} ({signed(first)} to {signed(last)})"


def clip(text: str, limit: int) -> str:
    """At most ``limit`` characters, the cut marked."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def clip_middle(text: str, limit: int) -> str:
    """At most ``limit`` characters; the middle goes, since paths differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return text[:head] + "…" + text[len(text) - (limit - 1 - head) :]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
