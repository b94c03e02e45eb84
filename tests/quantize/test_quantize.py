from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.quantize import Grid, Quantized, round_to_nearest

BITS = (8, 4, 3, 2)


def squared_error(weight, quantized, keep=None, importance=None):
    error = (quantized.dequantize() - weight).double().square()
    if keep is not None:
        error = error * keep
    return float((error if importance is None else error * importance).sum())


def test_dequantize_is_codes_times_scales_by_hand():
    codes = torch.tensor([[1, -2, 0, 3, -8], [7, 0, 1, 1, 2]], dtype=torch.int8)
    scales = torch.tensor([[0.5, -1.0, 0.25], [2.0, 0.0, -0.5]], dtype=torch.float16)
    found = Quantized(codes, scales, 4, 2).dequantize()
    assert found.tolist() == [[0.5, -1.0, 0.0, -3.0, -2.0], [14.0, 0.0, 0.0, 0.0, -1.0]]
    assert found.dtype == torch.float32


def test_one_scale_a_row():
    codes = torch.tensor([[1, -2, 3]], dtype=torch.int8)
    assert Quantized(codes, torch.tensor([[0.5]], dtype=torch.float16), 4).dequantize().tolist() == [[0.5, -1.0, 1.5]]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [1, -1])
def test_every_level_is_used_whichever_sign_the_largest_weight_has(bits, sign):
    low = -(2 ** (bits - 1))
    values = sign * torch.arange(low, -low, dtype=torch.float32)[None] * 0.125
    found = round_to_nearest(values, Grid(bits))
    assert sorted(found.codes[0].tolist()) == list(range(low, -low))
    assert torch.equal(found.dequantize(), values)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [None, 16, 24, 1000])
def test_nearest_point_of_the_grid(bits, group):
    weight = torch.randn(6, 64)
    found = round_to_nearest(weight, Grid(bits, group))
    scales = found.scales.float()
    size = 64 if group is None else min(group, 64)
    assert scales.shape == (6, -(-64 // size))
    for i in range(6):
        for j in range(64):
            points = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) * scales[i, j // size]
            best = (points - weight[i, j]).abs().min()
            assert abs((found.dequantize()[i, j] - weight[i, j]).abs() - best) < 1e-6


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("weighted", [False, True])
def test_search_comes_near_the_best_scale_and_beats_the_largest_weights_own(bits, weighted):
    weight = torch.randn(32, 64)
    importance = torch.rand(64) ** 4 if weighted else None
    searched = squared_error(weight, round_to_nearest(weight, Grid(bits), importance=importance), None, importance)
    plain = squared_error(weight, round_to_nearest(weight, Grid(bits, search=False)), None, importance)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    best = torch.full((32,), torch.inf).double()
    for factor in torch.linspace(0.3, 2.0, 400):
        scale = largest / low * factor
        error = ((weight / scale).round().clamp(low, high) * scale - weight).double().square()
        best = torch.minimum(best, (error if importance is None else error * importance).sum(1))
    assert searched <= plain * (1 + 1e-3)
    if bits < 8:  # at 8 bits the best of many scales is luck with a few weights, and the error is tiny
        assert searched <= float(best.sum()) * 1.05


def test_removed_weights_shape_no_scale_and_get_code_zero():
    weight = torch.randn(5, 32)
    keep = torch.rand(5, 32) < 0.5
    wild = torch.where(keep, weight, 1000.0)
    found, clean = round_to_nearest(wild, Grid(4, 16), keep), round_to_nearest(weight * keep, Grid(4, 16), keep)
    assert (found.codes[~keep] == 0).all() and (found.dequantize()[~keep] == 0).all()
    assert torch.equal(found.codes, clean.codes) and torch.equal(found.scales, clean.scales)


def test_importance_moves_the_error_to_where_it_does_not_matter():
    weight = torch.randn(16, 32)
    importance = torch.ones(32)
    importance[:4] = 1000.0
    plain = round_to_nearest(weight, Grid(3))
    weighted = round_to_nearest(weight, Grid(3), importance=importance)
    assert squared_error(weight, weighted, None, importance) < squared_error(weight, plain, None, importance)
    assert torch.equal(round_to_nearest(weight, Grid(3), importance=torch.zeros(32)).codes, plain.codes)


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-12, 1e-7, 1e-5, 1e-2, 1.0, 1e4, 1e6, 1e30, 3e38])
@pytest.mark.parametrize("bits", BITS)
def test_any_magnitude_stays_finite(scale, bits):
    weight = torch.linspace(-1, 1, 64).reshape(2, 32) * scale
    found = round_to_nearest(weight, Grid(bits, 16), importance=torch.rand(32) * 1e30)
    value = found.dequantize()
    assert torch.isfinite(value).all() and torch.isfinite(found.scales).all()
    if scale <= 1e-12:  # below what float16 can hold as a scale: exact zeros
        assert (found.codes == 0).all() and (found.scales == 0).all()
    if 1e-2 <= scale <= 1e4:
        assert (value - weight).abs().max() < scale * 1.3 / 2 ** (bits - 1)
    if scale >= 1e30:  # saturates instead of overflowing
        assert value.abs().max() == 65504.0 * 2 ** (bits - 1)


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from(BITS),
    rows=st.integers(1, 5),
    cols=st.integers(1, 40),
    group=st.one_of(st.none(), st.integers(1, 48)),
    seed=st.integers(0, 10**6),
)
def test_codes_in_range_shapes_and_a_second_rounding_changes_nothing(bits, rows, cols, group, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    keep = torch.rand(rows, cols, generator=generator) < 0.6
    grid = Grid(bits, group)
    found = round_to_nearest(weight, grid, keep)
    assert found.codes.dtype == torch.int8 and found.scales.dtype == torch.float16
    assert found.scales.shape == (rows, grid.groups(cols))
    assert found.codes.min() >= grid.low and found.codes.max() <= grid.high
    assert (found.codes[~keep] == 0).all()
    assert torch.equal(grid.round(found.dequantize(), found.scales, keep), found.codes)


def test_large_matrices_are_fitted_in_chunks_alike(monkeypatch):
    weight = torch.randn(50, 24)
    whole = round_to_nearest(weight, Grid(4, 8))
    monkeypatch.setattr("winnow.quantize.grid._CHUNK", 24 * 7)
    parts = round_to_nearest(weight, Grid(4, 8))
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.scales, parts.scales)


@pytest.mark.parametrize("where", ["tensor", "row", "group"])
@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(4, 16), Grid(3, 24)])
@pytest.mark.parametrize("exponent", range(-12, 33, 2))
def test_what_float16_scales_do_not_hold_is_found(exponent, grid, where):
    """Against the error itself, in float64: of every group, beside what the same codes' exact scale would cost."""
    generator = torch.Generator().manual_seed(exponent + 100)
    weight = torch.randn(3, 48, generator=generator) / 10
    part = {"tensor": slice(None), "row": (1, slice(None)), "group": (1, slice(0, grid.group or 48))}[where]
    weight[part] *= 10.0**exponent
    found, exact = round_to_nearest(weight, grid), round_to_nearest(weight, replace(grid, scale_dtype=torch.float32))
    lost, least = ((q.dequantize().double() - weight.double()).square() for q in (found, exact))
    worst = 0.0
    for start in range(0, 48, grid.group or 48):
        columns = slice(start, start + (grid.group or 48))
        norm = weight[:, columns].double().norm(dim=1)
        more = lost[:, columns].sum(1).sqrt() - least[:, columns].sum(1).sqrt()
        worst = max(worst, float((more / norm).max()))
    if not 0.9e-3 < worst < 1.1e-3:
        assert grid.holds(weight) == (worst < 1e-3)
    if -2 <= exponent <= 4:
        assert grid.holds(weight)
    if exponent <= -8 or exponent >= 8:
        assert not grid.holds(weight)


def test_removed_weights_need_no_scale():
    weight = torch.randn(4, 32)
    keep = torch.ones(4, 32, dtype=torch.bool)
    weight[2, 5], weight[1] = 1e30, 1e-12
    keep[2, 5], keep[1] = False, False
    assert not Grid(8).holds(weight) and Grid(8).holds(weight, keep) and Grid(4, 8).holds(torch.zeros(2, 16))


def test_grids_that_do_not_exist():
    with pytest.raises(InputError, match="8, 4, 3 or 2"):
        Grid(5)
    with pytest.raises(InputError, match="128, 32"):
        Grid(4, 0)
