import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.budget import Budget, index_bits_per_weight, largest_remainder, parse_size, parse_sparsity, zeros_for
from winnow.errors import InputError
from winnow.masks.structure import NM, BlockShape, Coupled, Unstructured

SIZES = {"a": 1000, "b": 3000}


@pytest.mark.parametrize(
    "text, value", [("0.6", 0.6), ("60%", 0.6), (" 60% ", 0.6), (0.6, 0.6), (0, 0.0), ("0%", 0.0), ("5e-1", 0.5)]
)
def test_sparsity_is_read(text, value):
    assert parse_sparsity(text) == pytest.approx(value, abs=0)


@pytest.mark.parametrize(
    "text", [1, "1", 1.2, "1.2", "fifty", "60", "100%", -0.1, "nan", float("inf"), "", "%", "1_0%", True, None, []]
)
def test_sparsity_that_cannot_be(text):
    with pytest.raises(InputError) as caught:
        parse_sparsity(text)
    assert "0.6 or 60%" in str(caught.value) and "\n" not in str(caught.value)


def test_sixty_is_probably_per_cent():
    with pytest.raises(InputError, match="did you mean 60%"):
        parse_sparsity("60")


@pytest.mark.parametrize(
    "text, value",
    [
        *[("40MB", 40_000_000), ("1.5GiB", 3 << 29), ("800k", 800_000), ("7", 7), (7, 7), (1e6, 10**6)],
        *[("2 kib", 2048), (".5 tb", 5 * 10**11), ("0.1MB", 100_000), (1e16, 10**16)],
    ],
)
def test_size_is_read_exactly(text, value):
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "0", "-4MB", "MB", "4 parsec", "0.1", "nan", float("nan"), True, None, "1,5GB"])
def test_size_that_cannot_be(text):
    with pytest.raises(InputError, match="40MB"):
        parse_size(text)


def test_exactly_one_budget():
    assert Budget.of(sparsity="60%") == Budget("sparsity", 0.6)
    assert Budget.of(bits_per_weight="2.5") == Budget("bits_per_weight", 2.5)
    assert Budget.of(size="40MB") == Budget("size", 40_000_000)
    for wrong in ({}, {"sparsity": 0.5, "size": 3}, {"bits_per_weight": 0}, {"bits_per_weight": "few"}):
        with pytest.raises(InputError):
            Budget.of(**wrong)


def slow_shares(weights, total, caps):
    """One unit at a time would not be Hamilton's method; this fixes saturated shares one by one, in Fractions."""
    caps = [total] * len(weights) if caps is None else caps
    fixed = {}
    while True:
        open_ = [i for i in range(len(weights)) if i not in fixed]
        left = total - sum(fixed.values())
        claims = {i: Fraction(weights[i]) for i in open_}
        if sum(claims.values()) == 0:
            claims = {i: Fraction(1) for i in open_}
        shares = {i: left * claims[i] / sum(claims.values()) for i in open_}
        over = [i for i in open_ if shares[i] > caps[i]]
        if not over:
            break
        worst = max(over, key=lambda i: shares[i] - caps[i])
        fixed[worst] = caps[worst]
    counts = {i: math.floor(s) for i, s in shares.items()}
    for i in sorted(shares, key=lambda i: (-(shares[i] - counts[i]), i))[: left - sum(counts.values())]:
        counts[i] += 1
    return [{**counts, **fixed}[i] for i in range(len(weights))]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_largest_remainder_is_exact(data):
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 1e-9, 1e9]), min_size=1, max_size=8))
    caps = data.draw(st.none() | st.lists(st.integers(0, 30), min_size=len(weights), max_size=len(weights)))
    total = data.draw(st.integers(0, 200 if caps is None else sum(caps)))
    counts = largest_remainder(weights, total, caps)
    assert sum(counts) == total
    if caps is not None:
        assert all(0 <= c <= cap for c, cap in zip(counts, caps))
    elif sum(weights):
        assert all(abs(c - total * w / sum(weights)) < 1 + 1e-6 for c, w in zip(counts, weights))
    assert counts == slow_shares(weights, total, caps)


def test_largest_remainder_by_hand():
    assert largest_remainder([47, 16, 15.8, 12, 6.1, 3.1], 10) == [5, 2, 1, 1, 1, 0]
    assert largest_remainder([1, 1, 1], 4) == [2, 1, 1]  # ties to the lower index
    assert largest_remainder([1, 1, 1], 5, [1, 9, 9]) == [1, 2, 2]
    assert largest_remainder([1, 0, 0], 5, [1, 9, 9]) == [1, 2, 2]
    assert largest_remainder([], 0) == []
    for wrong in (([1.0], 5, [4]), ([-1.0], 1), ([math.nan], 1), ([1.0], -1), ([], 1)):
        with pytest.raises(InputError):
            largest_remainder(*wrong)


def test_sparsity_is_the_rounded_share():
    assert zeros_for(Budget.of(sparsity=0.6), SIZES, 16) == 2400
    assert zeros_for(Budget.of(sparsity=0), SIZES, 16) == 0
    assert zeros_for(Budget.of(sparsity=0.99999), SIZES, 16) == 3999  # something stays
    assert zeros_for(Budget.of(sparsity=0.5), SIZES, 16, NM(2, 4)) == 2000
    assert zeros_for(Budget.of(sparsity=0.3333), SIZES, 16, BlockShape(2, 4)) == 1336  # 1333 to the nearest block
    with pytest.raises(InputError, match=r"2:4 .* sparsity 0\.5"):
        zeros_for(Budget.of(sparsity=0.6), SIZES, 16, NM(2, 4))


def test_bits_per_weight_follow_the_storage_table():
    # density * value bits + 1: the table of what storage costs
    for value_bits, bits, rate in [
        (16, 9, 0.5),
        (16, 2.6, 0.9),
        (8, 5, 0.5),
        (8, 3.4, 0.7),
        (4, 3, 0.5),
        (4, 1.4, 0.9),
    ]:
        assert zeros_for(Budget.of(bits_per_weight=bits), SIZES, value_bits) == pytest.approx(4000 * rate, abs=1)
    assert zeros_for(Budget.of(bits_per_weight=16), SIZES, 16) == 0  # dense fits, and needs no bitmask
    assert zeros_for(Budget.of(bits_per_weight=15.99), SIZES, 16) > 200
    assert zeros_for(Budget.of(bits_per_weight=9), SIZES, 16, Coupled("neuron")) == 1750
    assert zeros_for(Budget.of(bits_per_weight=8.75), SIZES, 16, NM(2, 4)) == 2000
    with pytest.raises(InputError, match=r"2:4 with 16-bit values takes 8\.75 bits"):
        zeros_for(Budget.of(bits_per_weight=8.7), SIZES, 16, NM(2, 4))
    with pytest.raises(InputError, match="index of which weights stayed"):
        zeros_for(Budget.of(bits_per_weight=1), SIZES, 16)


@pytest.mark.parametrize("n, m, bits", [(2, 4, 3 / 4), (1, 4, 2 / 4), (4, 8, 7 / 8), (1, 2, 1 / 2), (8, 16, 14 / 16)])
def test_index_bits_of_n_of_m(n, m, bits):
    assert index_bits_per_weight(NM(n, m)) == bits == math.ceil(math.log2(math.comb(m, n))) / m


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [Unstructured(), BlockShape(1, 4), BlockShape(2, 2), Coupled("head"), lambda density: 0.5 + density / 2]
    ),
    st.sampled_from([4.0, 4.25, 8.0, 16.0, 32.0]),
    st.floats(0.3, 33),
    st.integers(0, 40),
)
def test_bits_give_the_smallest_count_that_fits(index, value_bits, bits, overhead):
    numels = {"a": 16, "b": 48}
    total, unit = 64, 4 if isinstance(index, BlockShape) else 1

    def used(zeros):
        per = 0 if not zeros else index(1 - zeros / total) if callable(index) else index_bits_per_weight(index)
        return value_bits * (total - zeros) + per * total + 8 * overhead

    fitting = [z for z in range(0, total, unit) if used(z) <= bits * total]
    size = Budget("size", math.floor(bits * total / 8) + 100)
    fitting_size = [z for z in range(0, total, unit) if math.ceil(used(z) / 8) + 100 <= size.value]
    for budget, options in ((Budget.of(bits_per_weight=bits), fitting), (size, fitting_size)):
        if options:
            assert zeros_for(budget, numels, value_bits, index, 100, overhead) == options[0]
        else:
            with pytest.raises(InputError, match="cannot be met"):
                zeros_for(budget, numels, value_bits, index, 100, overhead)


def test_more_budget_never_means_more_zeros():
    for structure in (Unstructured(), BlockShape(1, 8), Coupled("neuron")):
        counts = [zeros_for(Budget.of(bits_per_weight=b), SIZES, 8, structure) for b in np.linspace(1.1, 9, 60)]
        assert counts == sorted(counts, reverse=True) and counts[-1] == 0
        counts = [zeros_for(Budget.of(size=s), SIZES, 8, structure, 5000) for s in range(5600, 9200, 60)]
        assert counts == sorted(counts, reverse=True) and counts[-1] == 0


def test_a_size_that_cannot_be_met_names_the_floor():
    dense = {"embeddings": 20_000_000, "norms": 3_400_000}
    with pytest.raises(
        InputError, match=r"20\.0 MB cannot be met: .* alone take 23\.4 MB, of which embeddings 20\.0 MB"
    ):
        zeros_for(Budget.of(size="20MB"), {"a": 10**7}, 16, dense_bytes=dense)
    with pytest.raises(
        InputError, match=r"index of which weights stayed and 23\.4 MB of dense tensors.* take 24\.7 MB in all"
    ):
        zeros_for(Budget.of(size="24MB"), {"a": 10**7}, 16, dense_bytes=dense)
    assert (
        zeros_for(Budget.of(size="30MB"), {"a": 10**7}, 16, dense_bytes=dense) == 10**7 - (6_600_000 * 8 - 10**7) // 16
    )
    with pytest.raises(InputError, match="nothing is prunable"):
        zeros_for(Budget.of(sparsity=0.5), {}, 16)
