"""Products with float32, float16 and bfloat16 values, every instruction path against float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packed_by_hand import FLOATS, SHAPES, Packed
from winnow.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native extension is not built: nothing to test")

ISAS = native.isas() or ["none"]
isa = pytest.fixture(params=ISAS)(lambda request: request.param)


def check(packed: Packed, isa: str, x: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    wide = x.double().numpy()
    want = wide @ packed.dense.T + (0 if bias is None else bias.double().numpy())
    size = np.abs(wide) @ np.abs(packed.dense).T + (0 if bias is None else bias.abs().double().numpy())
    rounding = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[x.dtype]
    got = packed.linear(isa, x, bias).double().numpy()
    # A float sum: a few units in the last place of the sum of magnitudes; then the result is rounded to the type of x.
    allowed = 1e-6 * size + 2 * rounding * np.abs(want) + 1e-6 * (x.dtype == torch.float16)
    worst = np.max(np.abs(got - want) - allowed, initial=-1.0)
    assert worst <= 0, f"{worst} beyond what is allowed"


def activations(dtype: torch.dtype, batch: int, cols: int, seed: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, cols))).to(dtype)


@pytest.mark.parametrize("values", FLOATS)
@pytest.mark.parametrize("density", [None, 0.05, 0.3, 0.6])
def test_every_shape(isa: str, values: str, density: float | None) -> None:
    for i, (rows, cols) in enumerate(SHAPES):
        packed = Packed.random(values, rows, cols, density, seed=i)
        bias = torch.linspace(-1, 1, rows)
        for dtype in FLOATS.values():
            for batch in (1, 3):
                check(packed, isa, activations(dtype, batch, cols), bias if i % 2 else None)


@pytest.mark.parametrize("values", FLOATS)
@pytest.mark.parametrize("batch", [0, 1, 2, 4, 5, 7, 8, 9, 12, 15, 16, 17, 33])
def test_every_batch(isa: str, values: str, batch: int) -> None:
    for density in (None, 0.1, 0.5):
        packed = Packed.random(values, 11, 203, density, seed=batch)
        for dtype in FLOATS.values():
            check(packed, isa, activations(dtype, batch, 203), torch.arange(11.0))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    cols=st.integers(1, 400),
    batch=st.integers(1, 18),
    density=st.one_of(st.none(), st.floats(0, 1)),
    values=st.sampled_from(sorted(FLOATS)),
    dtype=st.sampled_from(sorted(FLOATS)),
    seed=st.integers(0, 1000),
)
def test_random_shapes(
    isa: str, rows: int, cols: int, batch: int, density: float | None, values: str, dtype: str, seed: int
) -> None:
    check(Packed.random(values, rows, cols, density, seed), isa, activations(FLOATS[dtype], batch, cols, seed))


@pytest.mark.parametrize("values", FLOATS)
def test_words_of_every_count(isa: str, values: str) -> None:
    """Rows that are sparse on the whole, with words of the mask that are not: every count of kept columns in a word."""
    rows, cols = 65, 64 * 40
    keep = np.zeros((rows, cols), bool)
    rng = np.random.default_rng(3)
    for r in range(rows):
        for word in (0, 7, 39):
            keep[r, 64 * word + rng.permutation(64)[:r]] = True
    weights = torch.from_numpy(rng.standard_normal((rows, cols))).to(FLOATS[values])
    for dtype in FLOATS.values():
        for batch in (1, 2):
            check(Packed.of(weights, keep), isa, activations(dtype, batch, cols))


def test_rows_of_x_need_not_follow_each_other(isa: str) -> None:
    packed = Packed.random("bfloat16", 9, 130, 0.4, seed=1)
    for dtype in FLOATS.values():
        check(packed, isa, activations(dtype, 5, 400)[:, 17:147])


@pytest.mark.parametrize("values", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_belongs(isa: str, values: str, bad: float) -> None:
    """In one row of x it spoils that row of y; in one row of weights that column of y; nothing else."""
    rng = np.random.default_rng(5)
    for density in (0.05, 0.5):
        for batch in (1, 3, 8):
            keep = rng.random((9, 200)) < density
            keep[:, [0, 199]] = True
            weights = torch.from_numpy(rng.standard_normal((9, 200))).to(FLOATS[values])
            weights[4, 0] = weights[4, 199] = bad  # the neighbours of the rows before and behind
            packed = Packed.of(weights, keep)
            for dtype in FLOATS.values():
                x = activations(dtype, batch, 200)
                x[batch - 1, 100] = bad
                finite = torch.isfinite(packed.linear(isa, x)).numpy()
                rest = np.delete(np.arange(9), 4)
                assert finite[: batch - 1][:, rest].all()
                assert not finite[:, 4].any()
                through = keep[:, 100]
                assert not finite[batch - 1, through].any()


def test_threads_do_not_change_a_bit(isa: str) -> None:
    packed = Packed.random("float32", 500, 300, 0.3, seed=2)
    for batch in (1, 6, 40):
        x = activations(torch.float32, batch, 300)
        alone = packed.linear(isa, x, threads=1)
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(lambda threads: packed.linear(isa, x, threads=threads), [1, 2, 3, 8] * 3):  # noqa: B023
                assert torch.equal(y, alone)
