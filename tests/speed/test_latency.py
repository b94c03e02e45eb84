"""Statistics of latency against numpy and hand-made numbers; clocks are made up, nothing is timed."""

import importlib.machinery
import importlib.util
import itertools
import math
import random
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from winnow.machine.bandwidth import read_bandwidth
from winnow.machine.energy import Energy, energy_of, open_meter
from winnow.measure.latency import calls_in_a_row, interleave, median_interval, paired_ratio, spread

SECONDS = st.floats(1e-6, 1e3)


class Clock:
    """Time that passes only where a step says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_spread_by_hand():
    found = spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.q1, found.q3, found.n) == (3.0, 2.0, 4.0, 5)
    assert found.p95 == pytest.approx(4.8)  # position 0.95 * 4 = 3.8, between 4 and 5


@given(st.lists(SECONDS, min_size=1, max_size=60))
def test_spread_is_numpys(values):
    found = spread(values)
    assert found.median == pytest.approx(np.median(values))
    assert found.p95 == pytest.approx(np.percentile(values, 95))
    assert found.q1 <= found.median <= found.q3


def coverage(n: int, k: int) -> float:
    """P(k-th smallest <= median <= k-th largest of n), by counting every pattern of below and above."""
    inside = sum(math.comb(n, below) for below in range(k, n - k + 1))
    return inside / 2**n


@given(st.lists(SECONDS, min_size=1, max_size=40, unique=True))
def test_median_interval_is_the_narrowest_with_95_percent(values):
    interval = median_interval(values)
    n, ordered = len(values), sorted(values)
    if interval is None:
        assert n < 6 and coverage(n, 1) < 0.95
        return
    k = ordered.index(interval[0]) + 1
    assert interval == (ordered[k - 1], ordered[n - k])
    assert coverage(n, k) >= 0.95 > coverage(n, k + 1)


def test_median_interval_covers_the_median():
    draw = random.Random(1)
    hits = 0
    for _ in range(1000):
        low, high = median_interval([draw.expovariate(1) for _ in range(15)])
        hits += low <= math.log(2) <= high
    assert hits >= 940


def test_paired_ratio_cancels_what_slows_both():
    slow = [1.0, 3.0, 1.0, 9.0, 1.0, 2.0, 5.0, 1.0]
    dense = [[2.0 * s] * 3 for s in slow]
    fast = [[1.0 * s] * 2 for s in slow]
    found = paired_ratio(dense, fast)
    assert (found.value, found.low, found.high, found.rounds) == (2.0, 2.0, 2.0, 8)
    assert paired_ratio(dense[:3], fast[:3]).low is None
    one_outlier = paired_ratio([[1.0, 1.0, 50.0]], [[0.5, 0.5, 0.5]])
    assert one_outlier.value == 2.0  # a round counts by the median of its calls
    with pytest.raises(ValueError):
        paired_ratio(dense, fast[:3])


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 1), (0.05, 3), (0.01, 15), (1e-9, 40), (0.0, 40)])
def test_calls_in_a_row(seconds, calls):
    assert calls_in_a_row(seconds) == calls


def test_alternate_times_each_call_alone_and_in_a_changing_order():
    clock, begun = Clock(), []

    def begin_of(name, seconds):
        def begin():
            begun.append(name)
            clock.now += 100.0  # what a beginning takes counts for nothing

            def step():
                clock.now += seconds

            return step

        return begin

    begins = {"a": begin_of("a", 1.0), "b": begin_of("b", 2.0), "c": begin_of("c", 3.0)}
    rounds = list(interleave(begins, {"a": 3, "b": 1, "c": 2}, 20, clock=clock))
    assert len(rounds) == 20
    for one in rounds:
        assert list(one) == ["a", "b", "c"]
        assert one["a"] == pytest.approx([1.0] * 3) and one["b"] == pytest.approx([2.0])
        assert one["c"] == pytest.approx([3.0] * 2)
    orders = {tuple(begun[i : i + 3]) for i in range(0, 60, 3)}
    assert len(orders) > 2 and all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_alternate_yields_whole_rounds_only():
    counter = itertools.count()

    def step():
        if next(counter) == 4:
            raise KeyboardInterrupt

    taken = []
    with pytest.raises(KeyboardInterrupt):
        for one in interleave({"a": lambda: step, "b": lambda: step}, {"a": 1, "b": 1}, 10):
            taken.append(one)
    assert len(taken) == 2 and all(set(one) == {"a", "b"} for one in taken)


def test_bandwidth_is_the_fastest_pass():
    ticks = itertools.cycle([0.0, 0.5, 1.0, 1.25])  # passes of 0.5 and 0.25 seconds
    found = read_bandwidth(2, least=1 << 20, clock=lambda: next(ticks))
    assert found.bytes_per_second == pytest.approx(found.buffer / 0.25)
    assert found.buffer >= min(2 * found.cache, 1 << 20) and found.buffer % 4096 == 0
    assert found.threads == torch.get_num_threads()
    assert found.seconds(found.buffer) == pytest.approx(0.25)


class Made:
    """A meter of made-up joules: 3 a second of the clock."""

    kind, method = "estimated", "made up"

    def __init__(self, clock: Clock, rate: float = 3.0) -> None:
        self.clock, self.rate = clock, rate

    def start(self) -> None:
        self.began = self.clock.now

    def stop(self) -> float:
        return self.rate * (self.clock.now - self.began)

    def close(self) -> None: ...


def test_energy_is_per_call_and_never_invented():
    clock = Clock()

    def call():
        clock.now += 0.5

    assert energy_of(call, Made(clock), seconds=2.0, clock=clock) == Energy(1.5, "estimated", "made up")
    assert energy_of(call, Made(clock, rate=0.0), seconds=2.0, clock=clock) is None  # a meter that stood still


def install(monkeypatch, name, **members):
    """A made-up package, where the real one would be found."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


def no_package(monkeypatch):
    find = importlib.util.find_spec
    hidden = ("zeus", "codecarbon")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: sys.modules[name].__spec__ if name in hidden and name in sys.modules else None if name in hidden else find(name, *a)
    )  # fmt: skip
    for name in hidden:
        monkeypatch.delitem(sys.modules, name, raising=False)


def tracker(mode):
    class CPU:
        _mode = mode

    class Tracker:
        def __init__(self, **options):
            assert options["save_to_file"] is False
            self._hardware = [CPU()]

        def start_task(self, name): ...
        def stop_task(self, name):
            return types.SimpleNamespace(cpu_energy=2e-6, gpu_energy=1e-6, ram_energy=1.0)  # kWh

        def stop(self): ...

    return Tracker


@pytest.mark.parametrize(
    ("mode", "kind"), [("intel_rapl", "measured"), ("cpu_load", "estimated"), ("constant", "estimated")]
)
def test_codecarbon_says_whether_it_measured(monkeypatch, mode, kind):
    no_package(monkeypatch)
    install(monkeypatch, "codecarbon", OfflineEmissionsTracker=tracker(mode))
    meter, said = open_meter()
    assert meter is not None and meter.kind == kind and said.startswith(kind) and "codecarbon" in said
    assert ("RAPL" in said) == (kind == "measured")
    meter.start()
    assert meter.stop() == pytest.approx(10.8)  # 3e-6 kWh; the constant for memory modules is left out


def test_without_a_package_one_line_says_what_to_install(monkeypatch):
    no_package(monkeypatch)
    meter, said = open_meter()
    assert meter is None and "pip install codecarbon" in said and "\n" not in said


def test_zeus_without_a_meter_gives_way(monkeypatch):
    no_package(monkeypatch)

    class Monitor:
        def __init__(self, **options):
            raise RuntimeError("no RAPL here\nand a trace")

    install(monkeypatch, "zeus")
    install(monkeypatch, "zeus.monitor", ZeusMonitor=Monitor)
    meter, said = open_meter()
    assert meter is None and said == "not measured: zeus: no RAPL here"
    install(monkeypatch, "codecarbon", OfflineEmissionsTracker=tracker("cpu_load"))
    assert open_meter()[0].kind == "estimated"
