"""An allocation in words: rates, differences, the names of starts, and how names group into blocks."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable

from winnow import words
from winnow.records.allocation import AllocationLayer, AllocationRecord

NAMES = {"fcpts": "FCPTS", "erk": "ERK", "lamp": "LAMP", "l2": "L2 norm", "table": "a table of rates", "distil": "distillation"}  # fmt: skip

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def named(method: str | None) -> str:
    return NAMES.get(method or "", method or "")


def rate(value: float | None) -> str:
    """A share in per cent, two decimals, without its unit; never 100 or 0 by rounding alone."""
    if value is None or not math.isfinite(value):
        return ""
    text = f"{100 * value:.2f}"
    if text == "100.00" and value < 1:
        return "> 99.99"
    return "< 0.01" if text == "0.00" and value > 0 else text


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, signed: -0.0123 -> "−1.23"."""
    if difference is None or not math.isfinite(difference):
        return ""
    return words.signed(100 * difference).replace(",", "")


def small(value: float | None) -> str:
    """Three significant digits, for figures of any size: losses, sensitivities."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return words.short(value)
    sign, size = (words.MINUS if value < 0 else ""), abs(value)
    if size < 1e-4 or size >= 1e5:
        mantissa, exponent = f"{size:.1e}".split("e")
        return f"{sign}{mantissa}e{int(exponent)}".replace("e-", f"e{words.MINUS}")
    return f"{sign}{size:.{max(0, 2 - math.floor(math.log10(size)))}f}"


def scaled(values: list[float | None]) -> tuple[str, Callable[[float | None], str]]:
    """One power of ten for a column of figures, so that they align: (", ×10⁻³", how to show a value)."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v)]
    top = max(known, default=0.0)
    exponent = 3 * math.floor(math.log10(top) / 3) if top > 0 else 0
    exponent = 0 if exponent in (0, 3) else exponent
    unit = 10.0**exponent
    digits = min(3, max(0, 2 - math.floor(math.log10(top / unit)))) if top > 0 else 0

    def show(value: float | None) -> str:
        if value is None:
            return ""
        if not math.isfinite(value):
            return words.number(value)
        text = f"{abs(value) / unit:,.{digits}f}"
        return (words.MINUS if value < 0 and text.strip("0.,") else "") + text

    return (f", ×10{str(exponent).translate(_RAISED)}" if exponent else ""), show


def block(name: str) -> str:
    """The block a layer belongs to, by its name: all up to the first number, "" where there is none or nothing after.

    "model.layers.3.mlp.up_proj" -> "model.layers.3", "layer1.0.conv2" -> "layer1.0", "features.4" -> "".
    """
    parts = name.removesuffix(".weight").split(".")
    return next((".".join(parts[: i + 1]) for i, part in enumerate(parts[:-1]) if part.isdigit()), "")


def runs(layers: list[AllocationLayer]) -> list[tuple[str, list[AllocationLayer]]]:
    """Layers in model order, neighbours of one block together; a layer outside of blocks stands alone."""
    found: list[tuple[str, list[AllocationLayer]]] = []
    for layer in layers:
        key = block(layer.name)
        if key and found and found[-1][0] == key:
            found[-1][1].append(layer)
        else:
            found.append((key, [layer]))
    return found


def shortened(names: list[str]) -> list[str]:
    """Names without ".weight", and without the path they all share, save for its last part."""
    parts = [name.removesuffix(".weight").split(".") for name in names]
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [".".join(p[max(0, shared - 1) :]) for p in parts]


def kind(name: str) -> str:
    """The path inside the block; numbered siblings (experts) share one."""
    inside = name.removesuffix(".weight")
    inside = inside[len(block(name)) :].lstrip(".")
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", inside)


def mean(weighted: Iterable[tuple[float | None, float]]) -> float | None:
    """The mean of (value, weight), over the values that are known."""
    known = [(v, n) for v, n in weighted if v is not None]
    total = sum(n for _, n in known)
    return sum(v * n for v, n in known) / total if total else None


def deviation(layer: AllocationLayer) -> float | None:
    """Standard deviation of the layer's rate over the seeds (of the population, as several seeds are all there are)."""
    return statistics.pstdev(layer.rates) if len(layer.rates) > 1 else None


def step_parts(record: AllocationRecord) -> list[tuple[str, float]]:
    """(name, seconds) of a step, without what took no time."""
    if record.step_time is None:
        return []
    names = ("Dense model", "Forward", "Backward", "Bridge from threshold to rate", "Optimizer step")
    s = record.step_time
    parts = zip(names, (s.teacher, s.forward, s.backward, s.bridge, s.update), strict=True)
    return [(name, seconds) for name, seconds in parts if seconds > 0 and math.isfinite(seconds)]


def milliseconds(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.{0 if ms >= 99.95 else 1 if ms >= 9.995 else 2}f} ms"


def comparison(record: AllocationRecord) -> str:
    """The comparison with the earlier run as one line."""
    c = record.comparison
    if c is None:
        return ""
    if not c.matched or c.moved is None:
        return f"{c.against}: no layer has a name in common with it"
    said = [f"rates moved by {100 * c.moved:.2f} points on average"]
    if c.largest is not None and c.difference is not None and abs(c.difference) >= 5e-5:
        said[0] += f", most in {c.largest} ({points(c.difference)})"
    if c.correlation is not None:
        said.append(f"rank correlation {_correlation(c.correlation)}")
    if c.only_here:
        said.append(f"{_layers(c.only_here, 'this run')} it")
    if c.only_earlier:
        said.append(f"{_layers(c.only_earlier, 'it')} this run")
    return f"{c.against}: " + "; ".join(said)


def stability(record: AllocationRecord) -> str:
    s = record.stability
    if s is None:
        return ""
    count = len(s.seeds) if isinstance(s.seeds, list) else s.seeds
    said = [f"{count} seed{'' if count == 1 else 's'}"]
    if s.spread is not None and math.isfinite(s.spread):
        said.append(f"a layer's rate varies by {100 * s.spread:.2f} points at most (standard deviation)")
    if s.correlation is not None and math.isfinite(s.correlation):
        said.append(f"mean rank correlation between two seeds {_correlation(s.correlation)}")
    return "; ".join(said)


def _correlation(value: float) -> str:
    return f"{value:.2f}".replace("-", words.MINUS)


def _layers(n: int, of: str) -> str:
    return f"{words.count(n)} {'layer' if n == 1 else 'layers'} of {of} {'is' if n == 1 else 'are'} not in"
