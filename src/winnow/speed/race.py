"""Every contender on every case, in rounds that alternate; what was measured before Ctrl-C is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from winnow.errors import WinnowError
from winnow.machine.bandwidth import Bandwidth
from winnow.measure.latency import SLOT_SECONDS, Begin, Round, Spread, calls_in_a_row, interleave, paired_ratio, spread
from winnow.records.compression import Times
from winnow.records.speed import Case, Measure
from winnow.speed.contender import Contender, Unavailable, difference
from winnow.speed.workload import Work

Progress = Callable[[int, int, str], None]
Clock = Callable[[], float]


@dataclass
class RaceResult:
    """What a race found: cases with the rounds they got, a measure for each contender and case, and what was left out."""

    cases: list[Case] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    dropped: dict[tuple[str, str], str] = field(default_factory=dict)  # (contender, case) -> why
    taken: dict[str, list[Round]] = field(default_factory=dict)  # case -> its rounds
    interrupted: bool = False


@torch.inference_mode()
def race(
    contenders: Sequence[Contender],
    works: Sequence[Work],
    references: Mapping[str, Mapping[str, torch.Tensor]],
    rounds: int,
    *,
    slot: float = SLOT_SECONDS,
    bandwidth: Bandwidth | None = None,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> RaceResult:
    """Times ``contenders`` on ``works``; the first one is what the others are compared with.

    Args:
        references: base -> case -> output of the float32 model, what a contender's own output is compared with.
        rounds: of each case; a contender is called several times in a row in each where its calls are short.
    """
    found = RaceResult()
    report = progress or (lambda done, total, text: None)
    total = rounds * len(works)
    for number, work in enumerate(works):
        done = number * rounds
        taken: list[Round] = []
        begins: dict[str, Begin] = {}
        calls: dict[str, int] = {}  # in a row
        differences: dict[str, float] = {}  # of the output from the reference's
        try:
            for contender in contenders:
                report(done, total, f"preparing {contender.name}")
                try:
                    begin = contender.begin(work)
                    contender.prepare(work)
                    off = difference(contender.output(work), references[contender.base][work.case.name])
                    calls[contender.name] = _calls(begin, work, slot, clock)
                except Exception as error:  # whatever compilers and runtimes raise: the others still run
                    found.dropped[contender.name, work.case.name] = reason(error)
                    continue
                begins[contender.name], differences[contender.name] = begin, off
            for one in interleave(begins, calls, rounds, clock=clock) if begins else ():
                taken.append(one)
                report(done + len(taken), total, work.case.name)
        except KeyboardInterrupt:
            found.interrupted = True
        if taken:
            found.taken[work.case.name] = taken
            found.cases.append(work.case.model_copy(update={"rounds": len(taken)}))
            found.measures += _measures(contenders, work.case, taken, differences, bandwidth)
        if found.interrupted:
            break
    return found


def _calls(begin: Begin, work: Work, slot: float, clock: Clock) -> int:
    """Calls in a row: all tokens in decoding, else as many as fill a slot."""
    if work.tokens is not None:
        return work.tokens.shape[1]
    step = begin()
    start = clock()
    step()
    return calls_in_a_row(clock() - start, slot)


def _measures(
    contenders: Sequence[Contender],
    case: Case,
    taken: list[Round],
    differences: Mapping[str, float],
    bandwidth: Bandwidth | None,
) -> list[Measure]:
    baseline = contenders[0].name
    rows = []
    for contender in (c for c in contenders if c.name in differences):
        name, off = contender.name, differences[contender.name]
        own = [one[name] for one in taken]
        compared = name != baseline and baseline in differences
        ratio = paired_ratio([one[baseline] for one in taken], own) if compared else None
        times = spread([seconds for calls in own for seconds in calls])
        size = contender.about.weight_bytes
        rows.append(
            Measure(
                contender=name,
                case=case.name,
                times=milliseconds(times),
                per_second=case.per_call / times.median,
                ratio=ratio.value if ratio else None,
                ratio_low=ratio.low if ratio else None,
                ratio_high=ratio.high if ratio else None,
                difference=None if off != off else off,
                # Weights that fit in cache are not read from memory: the bandwidth does not bound them.
                limit=1e3 * bandwidth.seconds(size) if bandwidth and size and size > bandwidth.cache else None,
            )
        )
    return rows


def milliseconds(times: Spread) -> Times:
    return Times(median=1e3 * times.median, p95=1e3 * times.p95, q1=1e3 * times.q1, q3=1e3 * times.q3, n=times.n)


def reason(error: Exception) -> str:
    """One line of whatever another library raised."""
    if isinstance(error, WinnowError):
        return error.flagged
    if isinstance(error, Unavailable):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"failed: {type(error).__name__}: {lines[0][:160] if lines else 'without a message'}"
