"""Products with int8 and int4 values, every instruction path against float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packed_by_hand import LARGEST, SHAPES, Packed
from winnow.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native extension is not built: nothing to test")

ISAS = native.isas() or ["none"]
isa = pytest.fixture(params=ISAS)(lambda request: request.param)
BATCHES = [0, 1, 2, 3, 15, 16, 17, 33]


def as_int8(x: np.ndarray) -> np.ndarray:
    """x rounded to int8 row by row, in float64: the rule of the kernels, computed in float32 as they do."""
    top = np.abs(x).max(1, keepdims=True, initial=0).astype(np.float32)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    return np.rint(x.astype(np.float32) * inverse).astype(np.float64) * (top.astype(np.float64) / 127)


def check(packed: Packed, isa: str, x: torch.Tensor, bias: torch.Tensor | None = None, int8: bool = False) -> None:
    wide = x.double().numpy()
    wide = as_int8(wide) if int8 else wide
    add = 0 if bias is None else bias.double().numpy()
    want = wide @ packed.dense.T + add
    size = np.abs(wide) @ np.abs(packed.dense).T + np.abs(add)
    # x in fixed point is off by 2^-24 of the largest of its row, whatever its own size.
    fixed = np.abs(wide).max(1, keepdims=True, initial=0) * np.abs(packed.dense).sum(1)
    rounding = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[x.dtype]
    got = packed.linear(isa, x, bias, int8).double().numpy()
    allowed = 1e-6 * size + 2.0**-23 * fixed + 2 * rounding * np.abs(want) + 1e-6 * (x.dtype == torch.float16)
    worst = np.max(np.abs(got - want) - allowed, initial=-1.0)
    assert worst <= 0, f"{isa}: off by {worst:.2e} more than float sums allow"


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("density", [None, 0.5, 0.1])
@pytest.mark.parametrize("int8", [False, True])
def test_shapes_and_batches(isa: str, values: str, density: float | None, int8: bool) -> None:
    for seed, (rows, cols) in enumerate(SHAPES):
        packed = Packed.random(values, rows, cols, density, seed)
        for batch in BATCHES if rows < 40 else [1, 17]:
            check(packed, isa, torch.randn(batch, cols), int8=int8)


@pytest.mark.parametrize("group", [32, 64, 128, 192, 256, 1024])
def test_groups_of_int4(isa: str, group: int) -> None:
    for seed, cols in enumerate((group, 3 * group, 2 * group + 37, 2048 + 2 * group)):
        for density in (None, 0.4):
            packed = Packed.random("int4", 9, cols, density, seed, group=group if cols > group else None)
            for batch in (1, 2, 5):
                check(packed, isa, torch.randn(batch, cols))
                check(packed, isa, torch.randn(batch, cols), int8=True)


@pytest.mark.parametrize("int8", [False, True])
def test_blocks_of_four(isa: str, int8: bool) -> None:
    for seed, (rows, cols) in enumerate([(1, 4), (3, 60), (5, 64), (70, 260), (13, 1100), (6, 4200)]):
        for density in (0.2, 0.7):
            packed = Packed.random("int8", rows, cols, density, seed, block=4)
            for batch in (1, 2, 5, 16, 17, 33, 130, 260):
                check(packed, isa, torch.randn(batch, cols), torch.randn(rows), int8=int8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_of_x_and_bias(isa: str, dtype: torch.dtype) -> None:
    for values, block in (("int8", 1), ("int4", 1), ("int8", 4)):
        packed = Packed.random(values, 11, 300, 0.5, 1, block=block)
        for batch in (1, 6, 40):
            x = torch.randn(2 * batch, 310, dtype=dtype)[::2, 5:305]  # rows apart, an odd address
            check(packed, isa, x, torch.randn(11))
            check(packed, isa, x, torch.randn(11), int8=True)


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_extreme_codes_do_not_overflow(isa: str, values: str) -> None:
    for cols in (512, 20_000):
        for sign in (1, -1):
            codes = np.full((5, cols), -LARGEST[values] - 1, np.int8)
            scales = np.full((5, 1), 0.01, np.float16)
            for keep in (None, np.ones((5, cols), bool)):
                packed = Packed.of(torch.from_numpy(codes), keep, scales, values)
                for batch in (1, 3):
                    check(packed, isa, torch.full((batch, cols), float(sign)))
                    check(packed, isa, torch.full((batch, cols), float(sign)), int8=True)


def test_a_very_long_row(isa: str) -> None:
    packed = Packed.random("int8", 2, 140_000, 0.01, 3)  # longer than 32-bit sums hold
    check(packed, isa, torch.randn(1, 140_000))


def test_int8_activations_are_exact(isa: str) -> None:
    # Every number is an integer that float32 holds: nothing may be rounded.
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (37, 320)).astype(np.int8)
    for block in (1, 4):
        keep = rng.random((37, 320 // block)) < 0.4
        packed = Packed.of(torch.from_numpy(codes), keep, np.ones((37, 1), np.float16), block=block)
        for batch in (1, 2, 7, 16, 50, 150):
            x = rng.integers(-127, 128, (batch, 320)).astype(np.float32)
            x[:, 0] = 127
            got = packed.linear(isa, torch.from_numpy(x), int8=True).double().numpy()
            assert np.array_equal(got, x @ packed.dense.T)


def test_what_is_not_finite_spoils_its_own_row_only(isa: str) -> None:
    for values in ("int8", "int4"):
        packed = Packed.random(values, 20, 200, 0.5, 2)
        for bad in (float("nan"), float("inf")):
            x = torch.randn(4, 200)
            clean = packed.linear(isa, x)
            x[2, 17] = bad
            got = packed.linear(isa, x)
            assert torch.equal(got[[0, 1, 3]], clean[[0, 1, 3]])
            weights = torch.from_numpy(packed.dense[:, 17] != 0)
            assert not torch.isfinite(got[2][weights]).any()


def test_zeros_and_tiny_numbers(isa: str) -> None:
    packed = Packed.random("int8", 6, 100, 0.5, 4)
    assert torch.equal(packed.linear(isa, torch.zeros(2, 100)), torch.zeros(2, 6))
    tiny = packed.linear(isa, torch.full((2, 100), 1e-42))
    assert torch.isfinite(tiny).all() and tiny.abs().max() < 1e-36


def test_several_threads_calling_give_the_same(isa: str) -> None:
    jobs = [
        (Packed.random(v, 64, 640, 0.4, s, block=b), s) for v, b, s in (("int8", 1, 0), ("int4", 1, 1), ("int8", 4, 2))
    ]
    inputs = [torch.randn(batch, 640) for batch in (1, 20, 200)]

    def run(i: int) -> torch.Tensor:
        packed, seed = jobs[i % 3]
        return packed.linear(isa, inputs[i // 3 % 3], int8=seed == 2)

    alone = [run(i) for i in range(9)]
    with ThreadPoolExecutor(6) as pool:
        for i, got in enumerate(pool.map(run, range(90), chunksize=1)):
            assert torch.equal(got, alone[i % 9])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    blocks=st.integers(1, 200),
    values=st.sampled_from(["int8", "int4"]),
    block=st.sampled_from([1, 4]),
    density=st.sampled_from([None, 0.0, 0.05, 0.5, 0.95, 1.0]),
    batch=st.integers(0, 40),
    int8=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_random_matrices(
    rows: int, blocks: int, values: str, block: int, density: float | None, batch: int, int8: bool, seed: int
) -> None:
    block = block if values == "int8" and density is not None else 1
    packed = Packed.random(values, rows, blocks * block, density, seed, block=block)
    x = torch.randn(batch, blocks * block, generator=torch.Generator().manual_seed(seed))
    for isa in ISAS:
        check(packed, isa, x, int8=int8)
