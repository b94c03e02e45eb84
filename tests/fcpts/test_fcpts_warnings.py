"""One sentence for every reason to doubt a result."""

from __future__ import annotations

import pytest

from winnow.fcpts.warnings import warnings_for
from winnow.records.allocation import AllocationLayer, AllocationRecord, Stability


def record(**changes):
    given = dict(
        method="fcpts", numel=100_000, target=0.9, raw_rate=0.9005,
        layers=[AllocationLayer(name="a", numel=50_000, rate=0.85), AllocationLayer(name="b", numel=50_000, rate=0.95)],
        stability=Stability(seeds=3, spread=0.01, correlation=0.97),
    )  # fmt: skip
    return AllocationRecord(**{**given, **changes})


def test_nothing_to_say():
    assert warnings_for(record(classes=10, answers=5), examples=256) == []
    assert warnings_for(record(classes=1000, answers=200), examples=300) == []  # few examples cannot show every class
    assert warnings_for(record(), quality=80.0, floor=80.0, examples=1024, classes=10) == []
    assert warnings_for(record(stability=None, raw_rate=None, target=None, numel=None, layers=[]), examples=256) == []
    assert warnings_for(record(), quality=10.0, examples=256) == []  # no floor was asked for
    assert warnings_for(record(), floor=80.0, examples=256) == []  # nothing was measured


@pytest.mark.parametrize(
    ("changes", "call", "said"),
    [
        ({}, dict(quality=79.9, floor=80.0), "Quality is 79.9, below the floor of 80"),
        ({}, dict(quality=float("nan"), floor=80.0), "below the floor"),
        ({"numel": 9_999}, {}, "only 9,999 prunable weights"),
        ({"classes": 10, "answers": 4}, {}, "gives only 4 of its 10 answers: shuffle the data"),
        ({"classes": 2, "answers": 1}, {}, "only 1 of its 2 answers"),
        ({}, dict(examples=255), "Only 255 calibration examples; use at least 256 (see --samples)"),
        (
            {},
            dict(examples=999, classes=100),
            "Only 999 calibration examples; use at least 1,000 (10 for each of 100 classes; see --samples)",
        ),
        (
            {"stability": Stability(seeds=4, spread=0.06, correlation=0.9)},
            {},
            "over 4 seeds a layer's rate spreads by up to 0.06",
        ),
        ({"stability": Stability(seeds=2, spread=0.01, correlation=0.79)}, {}, "the rates correlate at 0.79"),
        ({"stability": Stability(seeds=2, spread=None, correlation=0.5)}, {}, "unknown"),
        ({"raw_rate": 0.93}, {}, "came to a rate of 0.9300 where 0.9000"),
        ({"raw_rate": 0.85}, {}, "came to a rate of 0.8500"),
        (
            {"layers": [AllocationLayer(name="conv1", numel=432, rate=427 / 432)]},
            {},
            "A layer is at the limit, 99% pruned (conv1)",
        ),
        (
            {"layers": [AllocationLayer(name=f"l{i}", numel=1000, rate=0.995) for i in range(5)]},
            {},
            "5 layers are at the limit, 99% pruned (l0, l1, l2 and 2 more)",
        ),
    ],
)
def test_each_warning_alone(changes, call, said):
    found = warnings_for(record(**changes), **{"examples": 1024, **call})
    assert len(found) == 1 and said in found[0]
    assert found[0].endswith(".") and "\n" not in found[0]


def test_the_edges():
    assert warnings_for(record(numel=10_000), examples=256) == []
    assert warnings_for(record(raw_rate=0.909), examples=1000, classes=100) == []
    layers = [AllocationLayer(name="a", numel=432, rate=426 / 432), AllocationLayer(name="one", numel=1, rate=0.0)]
    assert warnings_for(record(layers=layers), examples=256) == []


def test_all_at_once_the_gravest_first():
    bad = record(
        numel=500, raw_rate=0.5, stability=Stability(seeds=2, spread=0.3, correlation=0.1),
        layers=[AllocationLayer(name="a", numel=500, rate=1.0)],
    )  # fmt: skip
    found = warnings_for(bad, quality=1.0, floor=2.0, examples=1)
    assert len(found) == 6 and found[0].startswith("Quality")
