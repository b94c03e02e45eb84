"""How alike several seeds' allocations are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.fcpts.method import stability


@settings(max_examples=60, deadline=None)
@given(seeds=st.integers(2, 5), groups=st.integers(3, 12), levels=st.integers(3, 50), number=st.integers(0, 999))
def test_it_is_numpys_deviation_and_scipys_spearman(seeds, groups, levels, number):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(number)
    table = rng.integers(0, levels, (seeds, groups)) / levels  # few levels: many ties
    table[:, 0], table[:, 1] = 2.0, 3.0  # no row is constant
    rates = [{f"g{i}": float(v) for i, v in enumerate(row)} for row in table]
    rates[-1] = dict(reversed(rates[-1].items()))  # matched by name, not by place
    spread, correlation = stability(rates)
    assert spread == pytest.approx(max(np.std(table[:, i], ddof=1) for i in range(groups)))
    pairs = [stats.spearmanr(table[i], table[j])[0] for i in range(seeds) for j in range(i)]
    assert correlation == pytest.approx(np.mean(pairs))


def test_by_hand():
    same = {"a": 0.5, "b": 0.8, "c": 0.9}
    assert stability([same, same, same]) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.0))
    spread, correlation = stability([same, {"a": 0.9, "b": 0.8, "c": 0.5}])
    assert spread == pytest.approx(0.4 / 2**0.5) and correlation == pytest.approx(-1.0)
    flat = {"a": 0.7, "b": 0.7, "c": 0.7}
    assert stability([flat, flat])[1] == 1.0
    assert stability([flat, same])[1] == 0.0
    assert stability([{"only": 0.5}, {"only": 0.7}]) == (pytest.approx(0.02**0.5), 1.0)


@pytest.mark.parametrize("rates", [[], [{"a": 0.5}], [{}, {}], [{"a": 0.5}, {"b": 0.5}]])
def test_what_cannot_be_compared(rates):
    with pytest.raises(InputError):
        stability(rates)
