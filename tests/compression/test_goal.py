"""The goal search and the verdict on outcomes made by hand."""

import math
import random

import numpy as np
import pytest

from winnow.compression.candidates import Candidate, baselines, primary
from winnow.compression.goal import GRID, safest_first, search, within
from winnow.compression.outcome import Outcome
from winnow.compression.recipe import Recipe
from winnow.compression.rivals import winner
from winnow.compression.verdict import doubtful, judge
from winnow.errors import GateError
from winnow.measure.compare import Comparison
from winnow.measure.evaluation import Evaluation

BITS = {"keep": 32, "int8": 8, "int4": 4}


def recipe(sparsity, values="keep", **more):
    return Recipe(method="magnitude", sparsity=sparsity, zeros=round(1000 * sparsity), values=values, **more)


def answers(value, n=1000):
    """Examples that are right in order, so that of two models one is right wherever the other is."""
    right = (np.arange(n) < (0 if math.isnan(value) else round(value * n))).astype(float)
    return Evaluation("accuracy", value, value - 0.01, value + 0.01, right, np.zeros(n, int), n)


def outcome(candidate, drop, size, half=0.2):
    loss = Comparison(drop, drop - half, drop + half, False, 1000, "given")
    return Outcome(candidate, None, answers(0.9 - drop / 100), loss, size, 1.0)


class Task:
    metric, scale, higher_is_better, unit = "accuracy", 100.0, True, "points"


DENSE = answers(0.9)


def drop_of(candidate):
    """Loss grows with sparsity and with fewer bits."""
    r = candidate.recipe
    return 4 * r.sparsity**2 + {"keep": 0, "int8": 0.05, "int4": 0.6}[r.values]


def size_of(candidate):
    r = candidate.recipe
    return round(1000 * ((1 - r.sparsity) * BITS[r.values] + (1 if r.sparsity else 0)))


def make(calls):
    def made(candidate):
        calls.append(candidate.name)
        return outcome(candidate, drop_of(candidate), size_of(candidate))

    return made


@pytest.mark.parametrize("limit", [0.3, 0.8, 1.0, 1.5, 2.5, 4.5, 9])
def test_search_finds_what_trying_everything_finds(limit):
    plain = [c for c in baselines([recipe(0.0)], "rtn", has_data=False) if c.kind == "quantized"]
    calls = []
    tried = search(recipe, plain, make(calls), limit)
    everything = [*plain, *(primary(recipe(s, v)) for s in GRID for v in BITS)]
    good = [c for c in everything if drop_of(c) + 0.2 <= limit]
    assert min(o.file_bytes for o in tried if within(o, limit)) == min(size_of(c) for c in good)
    assert len(calls) == len(set(calls)) <= len(plain) + 3 * 4


def test_nothing_within_the_limit_says_how_close_it_came():
    with pytest.raises(GateError, match=r"closest: .*bound 0\.2"):
        search(recipe, [], lambda c: outcome(c, 0.05, 10), 0.1)
    with pytest.raises(GateError):
        search(recipe, [], lambda c: outcome(c, math.nan, 10), 100)


def test_plain_quantization_wins_only_when_no_larger_and_no_worse():
    chosen = outcome(primary(recipe(0.5)), 1.0, 500)
    plain = Candidate("int4-g128-rtn", "quantized", recipe(0.0, "int4"))
    assert winner(chosen, [outcome(plain, 0.5, 400)]).name == "int4-g128-rtn"
    assert winner(chosen, [outcome(plain, 0.5, 600), outcome(plain, 1.1, 400)]) is None
    assert winner(chosen, [outcome(plain, 1.0, 500)]) is None
    assert winner(chosen, [outcome(plain, math.nan, 400)]) is None


@pytest.mark.parametrize(
    ("drop", "others", "tone", "words"),
    [
        (0.1, [], "good", "2.0× smaller"),
        (1.0, [], "mixed", "points"),
        (9.0, [], "bad", "lost too much"),
        (math.nan, [], "bad", "lost too much"),
        (1.0, [("int4-g128-rtn", "quantized", 0.2, 400)], "bad", "Plain quantization is the better answer"),
        (1.0, [("s50-int8", "pruned+quantized", 1.0, 300)], "mixed", "narrower values"),
    ],
)
def test_verdict(drop, others, tone, words):
    chosen = outcome(primary(recipe(0.5)), drop, 500)
    rivals = [
        outcome(Candidate(n, k, recipe(0.5, "int8") if k != "quantized" else recipe(0.0, "int4")), d, s)
        for n, k, d, s in others
    ]
    found = judge(chosen, rivals, Task(), DENSE, 1000, "out")
    assert found.tone == tone and words in found.sentence
    assert (found.better is not None) == bool(others)
    if others:
        assert f"--keep {others[0][0]}" in found.next_step


def test_a_file_that_did_not_shrink_is_said():
    chosen = outcome(primary(recipe(0.01)), 0.0, 1010)
    assert "did not get smaller" in judge(chosen, [], Task(), DENSE, 1000, "out").sentence


def test_what_is_confirmed_goes_from_the_safest_to_the_smallest():
    at = [(0.1, 900), (0.2, 800), (0.5, 850), (0.6, 400), (0.7, 300), (3.0, 100)]
    tried = [outcome(Candidate(f"c{i}", "pruned", recipe(0.5)), d, s) for i, (d, s) in enumerate(at)]
    for order in (tried, tried[::-1], tried[3:] + tried[:3]):
        assert [o.name for o in safest_first(order, 1.0)] == ["c0", "c1", "c3", "c4"]  # c2 is larger and worse than c1
    assert safest_first(tried, 0.2) == []


def test_what_is_recommended_is_never_dominated_and_the_best_within_the_size_is_named():
    """Random tables: no row within the size is better than the one named, and none is named that loses to another."""
    rng = random.Random(0)
    for _ in range(300):
        rows = [
            outcome(Candidate(f"r{i}", "quantized", recipe(0.0, "int4")), rng.choice([0.1, 0.5, 1.0, 2.0, 9.0, 40.0]), rng.randint(1, 20))
            for i in range(6)
        ]  # fmt: skip
        chosen = outcome(primary(recipe(0.5)), rng.choice([0.5, 1.0, 30.0]), rng.randint(5, 15))
        limit = rng.choice([None, 18])
        best = winner(chosen, rows, limit)
        room = [o for o in rows if o.file_bytes <= max(chosen.file_bytes, limit or 0)]
        least = min((o.comparison.drop for o in room), default=math.inf)
        if best is None:
            assert least > chosen.comparison.drop or all(
                (o.comparison.drop, o.file_bytes) >= (chosen.comparison.drop, chosen.file_bytes) for o in room
            )
        else:
            assert best in room and best.comparison.drop == least <= chosen.comparison.drop
            assert not any(o.comparison.drop <= least and o.file_bytes < best.file_bytes for o in room)


def test_a_small_bad_row_is_not_recommended_for_being_small():
    plain = [Candidate(n, "quantized", recipe(0.0, "int4")) for n in ("int4-g128-rtn", "int4-g32-gptq")]
    chosen = outcome(primary(recipe(0.9)), 45.0, 100)
    found = judge(chosen, [outcome(plain[0], 43.0, 60), outcome(plain[1], 0.6, 90)], Task(), DENSE, 1000, "out")
    assert found.better == "int4-g32-gptq" and found.tone == "bad"
    alone = judge(chosen, [outcome(plain[0], 43.0, 60)], Task(), DENSE, 1000, "out")
    assert alone.better is None and "So did everything within that size" in alone.sentence
    assert alone.tone == "bad" and "Ask for less" in alone.next_step
    # A size that was asked for is what others may use, whatever the chosen one came to.
    assert winner(chosen, [outcome(plain[1], 0.6, 120)]) is None
    assert winner(chosen, [outcome(plain[1], 0.6, 120)], 130).name == "int4-g32-gptq"


def test_doubts_take_the_praise_back():
    good = judge(outcome(primary(recipe(0.5)), 0.1, 500), [], Task(), DENSE, 1000, "out")
    assert good.tone == "good" and doubtful(good, []) == good
    found = doubtful(good, ["the dense model is at chance."])
    assert found.tone == "mixed" and found.sentence.endswith("The dense model is at chance.")
