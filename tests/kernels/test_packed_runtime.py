"""Packed matrices and layers against float64 formulas, on every instruction path of this machine and without any."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from winnow.errors import FormatError, InputError
from winnow.formats import PackedTensor, pack
from winnow.kernels import expanded, multiply, native, ops
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.modules import PackedConv2d, PackedLinear
from winnow.kernels.swap import pack_layer, packed_layers, swap, why_dense
from winnow.masks.structure import NM, BlockShape, Unstructured
from winnow.quantize import Grid, Quantized, round_to_nearest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    PATHS = ["reference", *native.isas()]

VALUES = ["float32", "bfloat16", "float16", "int8", "int4", "int8 blocks"]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
# rows, columns: below, at and above every vector width, odd ones, one column, and several bands
SHAPES = [(1, 1), (3, 5), (7, 31), (16, 64), (5, 127), (33, 200), (2, 1024), (300, 68)]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """One instruction path of the extension, or the PyTorch reference."""
    if request.param == "reference":
        monkeypatch.setattr(native, "available", lambda: False)
    else:
        monkeypatch.setenv("WINNOW_ISA", request.param)
    return request.param


def sparse(rows, cols, density, seed=0, block=1):
    """A random matrix with a row of nothing and a row of everything."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(rows, cols // block, generator=generator) < density
    if rows > 2:
        keep[0], keep[1] = False, True
    keep = keep.repeat_interleave(block, dim=1)
    weight = torch.randn(rows, cols, generator=generator)
    return torch.where(weight == 0, 1.0, weight) * keep


def packed_of(rows, cols, values, density=0.4, seed=0):
    """(matrix, its exact values in float64): integers by hand-made codes, so that nothing is fitted."""
    block = 4 if values == "int8 blocks" else 1
    if block == 4:
        cols = (cols + 3) // 4 * 4
    weight = sparse(rows, cols, density, seed, block)
    if not values.startswith("int"):
        weight = weight.to(getattr(torch, values))
        return PackedMatrix.from_dense(weight), weight.double()
    generator = np.random.default_rng(seed)
    bits, group = (4, 32) if values == "int4" else (8, None)
    limit = 1 << (bits - 1)
    codes = torch.from_numpy(generator.integers(-limit, limit, (rows, cols)).astype(np.int8))
    codes = torch.where(weight != 0, torch.where(codes == 0, 1, codes), 0).to(torch.int8)
    size = min(group or cols, cols)
    scales = torch.from_numpy(generator.normal(0, 0.02, (rows, -(-cols // size)))).half()
    dense = codes.double() * scales.double().repeat_interleave(size, 1)[:, :cols]
    return PackedMatrix.from_codes(Quantized(codes, scales, bits, group), block=block), dense


def bound(weight, x, bias, dtype, rounded):
    """How far a sum of float32 may be from the float64 one, plus what rounding y (and W, where ``rounded``) to dtype adds."""
    size = x.double().abs() @ weight.abs().T + (0 if bias is None else bias.abs())
    fixed = x.double().abs().amax(-1, keepdim=True) * weight.abs().sum(1)  # 24-bit fixed point of a row of x
    unit = {torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    return (
        2**-23 * (4 + math.sqrt(weight.shape[1])) * size + 2**-22 * fixed + (3 if rounded else 1) * unit * size + 1e-6
    )


@pytest.mark.parametrize("values", VALUES)
def test_every_way_agrees_with_float64(path, values):
    for seed, (rows, cols) in enumerate(SHAPES):
        matrix, weight = packed_of(rows, cols, values, seed=seed)
        cols = matrix.cols
        for dtype in TYPES:
            for batch in (0, 1, 2, 7, 16, 17, 40):
                x = torch.randn(batch, cols).to(dtype)
                bias = torch.randn(rows) if batch % 2 else None
                expected = x.double() @ weight.T + (0 if bias is None else bias.double())
                for way in matrix.ways():
                    y = multiply.linear(matrix, x, bias, way=way)
                    assert y.dtype == dtype and y.shape == expected.shape
                    limit = bound(weight, x, bias, dtype, rounded=way == "expanded")
                    assert bool(((y.double() - expected).abs() <= limit).all()), (rows, cols, dtype, batch, way)


@pytest.mark.parametrize("values", ["int8", "int4", "int8 blocks"])
def test_int8_activations_are_exact_integer_sums(path, values):
    for seed, (rows, cols) in enumerate(SHAPES):
        matrix, weight = packed_of(rows, cols, values, seed=seed)
        for dtype in TYPES:
            for batch in (1, 3, 18):
                x = torch.randn(batch, matrix.cols).to(dtype)
                x[0, 0] = 0 if matrix.cols > 1 else 1
                if batch == 3:
                    x[1] = 0
                scale = (x.float().abs().amax(1, keepdim=True) / 127).double()
                quotient = x.double() / torch.where(scale == 0, 1.0, scale)
                codes = torch.round(quotient)  # half to even
                # In float32 a quotient this near to a half may come out on its other side.
                either = ((quotient - quotient.floor() - 0.5).abs() < 1e-4).double()
                expected = codes @ weight.T * scale
                unit = {torch.float32: 2**-21, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
                limit = (unit * codes.abs() + either) @ weight.abs().T * scale + 1e-6
                for way in matrix.ways("int8"):
                    y = multiply.linear(matrix, x, activations="int8", way=way)
                    assert bool(((y.double() - expected).abs() <= limit).all()), (rows, cols, dtype, batch, way)


@pytest.mark.parametrize("values", VALUES)
def test_times_and_expand(path, values):
    for seed, (rows, cols) in enumerate(SHAPES):
        matrix, weight = packed_of(rows, cols, values, seed=seed)
        bias = torch.randn(rows)
        for n in (0, 1, 5, 16, 33, 100):
            x = torch.randn(matrix.cols, n)
            wide = torch.randn(matrix.cols, n + 7)[:, 3 : 3 + n]
            for given_x, given_bias in ((x, None), (x, bias), (wide, bias)):
                y = multiply.times(matrix, given_x, given_bias)
                expected = weight @ given_x.double() + (0 if given_bias is None else bias.double()[:, None])
                limit = bound(weight, given_x.T, given_bias, torch.float32, False).T if n else 0
                assert y.shape == (rows, n) and bool(((y.double() - expected).abs() <= limit).all())
        for part in (slice(None), slice(0, 1), slice(rows // 2, rows), slice(1, 1)):
            for dtype in (*TYPES, torch.float64):
                found = expanded.expand(matrix, part, dtype)
                assert found.dtype == dtype and torch.equal(found, weight[part].to(dtype))
            if matrix.scales is not None:
                codes = expanded.expand(matrix, part, torch.int8)
                size = matrix.group_size
                wide_scales = matrix.scales[part].double().repeat_interleave(size, 1)[:, : matrix.cols]
                assert codes.dtype == torch.int8 and torch.equal(codes.double() * wide_scales, weight[part])


@pytest.mark.parametrize("values", ["float32", "int8", "int4"])
def test_shapes_and_strides_of_x(path, values):
    matrix, weight = packed_of(12, 40, values)
    big = torch.randn(6, 9, 80)
    inputs = [
        torch.randn(40),
        torch.randn(2, 3, 5, 40),
        torch.randn(0, 3, 40),
        big[:, 2, :40],
        big[:, :, ::2],
        big[0, :, 40:].expand(4, 9, 40),
        torch.randn(40, 3).t(),
        torch.randn(1, 40).expand(5, 40),
    ]
    for x in inputs:
        for way in matrix.ways():
            y = multiply.linear(matrix, x, way=way)
            assert y.shape == (*x.shape[:-1], 12) and y.is_contiguous()
            torch.testing.assert_close(y, (x.double() @ weight.T).float(), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 300),
    batch=st.integers(0, 20),
    density=st.sampled_from([0.0, 0.02, 0.3, 0.7, 1.0]),
    values=st.sampled_from(VALUES),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 1000),
)
def test_any_shape(path, rows, cols, batch, density, values, dtype, seed):
    matrix, weight = packed_of(rows, cols, values, density, seed)
    x = torch.randn(batch, matrix.cols, generator=torch.Generator().manual_seed(seed)).to(dtype)
    y = multiply.linear(matrix, x).double()
    assert bool(((y - x.double() @ weight.T).abs() <= bound(weight, x, None, dtype, False)).all())
    assert torch.equal(expanded.expand(matrix, dtype=torch.float64), weight)


def test_nan_and_infinity_in_x_are_not_hidden(path):
    for values in VALUES:
        matrix, weight = packed_of(4, 70, values, density=1.0)
        for bad in (math.nan, math.inf, -math.inf):
            x = torch.randn(3, 70 if matrix.cols == 70 else matrix.cols)
            x[1, 5] = bad
            y = multiply.linear(matrix, x)
            clean = x[[0, 2]].double() @ weight.T
            assert not bool(torch.isfinite(y[1, 1]))
            torch.testing.assert_close(y[[0, 2]].double(), clean, rtol=1e-4, atol=1e-4)


# --- the packed matrix itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    "structure", [Unstructured(), NM(2, 4), NM(1, 3), BlockShape(1, 4), BlockShape(2, 3), BlockShape(4, 1), BlockShape(3, 12)],
    ids=str,
)  # fmt: skip
def test_every_encoding_becomes_the_same_matrix(path, values, structure):
    rows, cols = 12, 36
    generator = torch.Generator().manual_seed(1)
    if isinstance(structure, NM):
        order = torch.rand(rows, cols // structure.m, structure.m, generator=generator).argsort(-1)
        keep = (order < structure.n).reshape(rows, cols)
    else:
        r, c = (structure.r, structure.c) if isinstance(structure, BlockShape) else (1, 1)
        keep = torch.rand(rows // r, cols // c, generator=generator) < 0.5
        keep = keep.repeat_interleave(r, 0).repeat_interleave(c, 1)
    weight = torch.randn(rows, cols, generator=generator) * keep
    quantized = None
    if values.startswith("int"):
        quantized = round_to_nearest(weight, Grid(int(values[3:]), 10 if values == "int4" else None), keep)
    else:
        weight = weight.to(getattr(torch, values))
    packed = pack(weight, keep, structure, quantized)
    matrix = PackedMatrix.from_packed(packed)
    assert torch.equal(expanded.expand(matrix, dtype=torch.float32), packed.unpack(torch.float32))
    assert matrix.zeros == packed.zeros == int((~keep).sum())
    assert matrix.density == pytest.approx(1 - packed.zeros / packed.numel)
    if packed.encoding == "bitmask" or matrix.block == 4:
        assert matrix.data.data_ptr() == packed.data.data_ptr() and matrix.mask.data_ptr() == packed.mask.data_ptr()
    assert matrix.block == (4 if structure == BlockShape(1, 4) and values == "int8" else 1)
    held = [matrix.data, matrix.mask, matrix.starts, *([matrix.scales] if quantized else [])]
    assert matrix.nbytes == sum(t.numel() * t.element_size() for t in held)


def test_starts_are_byte_offsets_counted_by_hand(path):
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 0, 3], [0.0] * 9, [5.0] * 9, [0, 0, 0, 0, 0, 0, 0, 0, 7]])
    assert PackedMatrix.from_dense(weight).starts.tolist() == [0, 12, 12, 48, 52]
    assert PackedMatrix.from_dense(weight, "bfloat16").starts.tolist() == [0, 6, 6, 24, 26]
    assert PackedMatrix.from_dense(weight, "int8").starts.tolist() == [0, 3, 3, 12, 13]
    assert PackedMatrix.from_dense(weight, "int4").starts.tolist() == [0, 2, 2, 7, 8]
    assert PackedMatrix.from_dense(weight[2:3].repeat(3, 1)).starts.tolist() == [0, 36, 72, 108]


def test_damage_is_refused_before_a_kernel_sees_it(path):
    matrix, _ = packed_of(6, 21, "float32")
    parts = dict(rows=6, cols=21, values="float32", mask=matrix.mask, data=matrix.data)
    PackedMatrix(**parts)

    def changed(**change):
        with pytest.raises(FormatError):
            PackedMatrix(**{**parts, **change})

    flipped = matrix.mask.clone()
    flipped[3, 0] ^= 1  # one value more or less than there are
    changed(mask=flipped)
    moved = matrix.mask.clone()
    moved[3, 2] |= 1 << 5  # column 21 of 21
    changed(mask=moved)
    both = moved.clone()
    column = next(c for c in range(8) if int(both[3, 0]) >> c & 1)
    both[3, 0] &= ~(1 << column) & 0xFF  # the count is right, the place is not
    changed(mask=both)
    changed(data=matrix.data[:-1])
    changed(data=matrix.data.double())
    changed(data=matrix.data[None])
    changed(mask=matrix.mask[:, :2])
    changed(mask=matrix.mask[:5])
    changed(mask=matrix.mask.t().contiguous().t())
    changed(mask=None)
    changed(scales=torch.ones(6, 1, dtype=torch.float16))
    changed(values="int8", data=matrix.data[:].to(torch.int8))
    changed(block=4)
    codes, _ = packed_of(6, 21, "int4")
    with pytest.raises(FormatError):
        PackedMatrix(6, 21, "int4", codes.mask, codes.data[:-1], codes.scales, group=32)


def test_what_cannot_be_packed_says_so():
    with pytest.raises(InputError, match="float64"):
        PackedMatrix.from_dense(torch.eye(3, dtype=torch.float64))
    quantized = round_to_nearest(torch.randn(4, 16), Grid(8, 4))
    with pytest.raises(InputError, match="several scales a row"):
        PackedMatrix.from_packed(pack(torch.empty(4, 16), None, Unstructured(), quantized))
    with pytest.raises(InputError, match="int3"):
        PackedMatrix.from_dense(torch.eye(3), "int3")
    matrix = PackedMatrix.from_dense(torch.eye(3))
    for x in (torch.randn(2, 4), torch.randn(2, 3).double(), torch.ones(2, 3, dtype=torch.int64)):
        with pytest.raises(InputError, match="packed layer"):
            multiply.linear(matrix, x)
    with pytest.raises(InputError, match="no way"):
        multiply.linear(matrix, torch.randn(2, 3), activations="int8")
    with pytest.raises(InputError, match="no way"):
        multiply.linear(matrix, torch.randn(2, 3), way="fastest")
    with pytest.raises(InputError, match="times takes"):
        multiply.times(matrix, torch.randn(2, 3))
    for bias in (torch.randn(4), torch.randn(1), torch.randn(3, 1)):
        with pytest.raises(InputError, match="bias"):
            multiply.linear(matrix, torch.randn(2, 3), bias)
        with pytest.raises(InputError, match="bias"):
            PackedLinear(matrix, bias)
    conv = pack_layer(nn.Conv2d(2, 3, 3))
    for x in (
        torch.randn(1, 3, 5, 5),
        torch.randn(1, 2, 5, 2),
        torch.ones(1, 2, 5, 5, dtype=torch.int64),
        torch.randn(5, 5),
    ):
        with pytest.raises(InputError, match="packed convolution"):
            conv(x)
    with pytest.raises(InputError, match="packed convolution"):
        ops.conv2d(torch.randn(1, 3, 5, 5), None, conv._numbers, "spmm", *ops.describe(conv.matrix))


def test_inexact_integer_products_of_torch_are_never_used(monkeypatch):
    """Some of torch's int8 kernels saturate at 16 bits: then the sums come from the packed kernel."""

    packed, _ = packed_of(20, 64, "int8")
    x = torch.randn(40, 64)
    expected = multiply.linear(packed, x, activations="int8")
    monkeypatch.setattr(multiply, "exact_int_mm", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    assert torch.equal(multiply.linear(packed, x, activations="int8", way="expanded"), expected)


def test_more_than_four_gib_of_values_is_refused():
    data = torch.empty(1 << 32, dtype=torch.int8, device="meta")
    with pytest.raises(InputError, match="4 GiB"):
        PackedMatrix(1 << 16, 1 << 16, "int8", None, data, torch.empty(1 << 16, 1, dtype=torch.float16))


def test_matrices_pickle_small_and_copy_by_reference(path):
    matrix, weight = packed_of(8, 50, "bfloat16")
    storage = torch.zeros(1 << 20, dtype=torch.bfloat16)  # as if mapped: a view of something large
    storage[: matrix.data.numel()] = matrix.data
    view = PackedMatrix(8, 50, "bfloat16", matrix.mask, storage[: matrix.data.numel()], zeros=matrix.zeros)
    stored = pickle.dumps(view)
    assert len(stored) < 10_000
    again = pickle.loads(stored)
    assert torch.equal(expanded.expand(again, dtype=torch.float64), weight) and again.zeros == matrix.zeros
    assert copy.deepcopy(matrix) is matrix


# --- layers ---------------------------------------------------------------------------------------------------------------


def layer_of(kind, dtype=torch.float32):
    if kind == "conv1d":
        transformers = pytest.importorskip("transformers")
        layer = transformers.pytorch_utils.Conv1D(9, 20)
    else:
        layer = nn.Linear(20, 9, bias=kind == "linear")
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape) < 0.5)
        if layer.bias is not None:
            layer.bias.normal_()
    return layer.to(dtype)


KINDS = ["linear", "no bias", pytest.param("conv1d", marks=pytest.mark.hf)]


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers(path, kind):
    layer = layer_of(kind)
    fast = pack_layer(layer)
    assert isinstance(fast, PackedLinear)
    assert fast.weight.shape == layer.weight.shape and fast.weight.dtype == layer.weight.dtype
    assert (fast.in_features, fast.out_features) == (20, 9)
    x = torch.randn(4, 3, 20)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-5)
        for way in ("packed", "expanded", "spmm"):
            fast.ways = [(math.inf, way)]
            torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-5)

    state = fast.state_dict()
    assert list(state) == list(layer.state_dict())
    assert all(torch.equal(state[k], v) and state[k].is_contiguous() for k, v in layer.state_dict().items())
    other = layer_of(kind)
    other.load_state_dict(state)
    changed = layer_of(kind)
    assert fast.load_state_dict(changed.state_dict()) == layer.load_state_dict(changed.state_dict())
    torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-5)


def test_which_way_follows_the_rows_of_x(monkeypatch):
    fast = pack_layer(layer_of("linear"))
    seen = []
    linear = multiply.linear

    def spy(self, x, bias=None, *, activations="keep", way="packed"):
        seen.append(way)
        return linear(self, x, bias, activations=activations, way=way)

    monkeypatch.setattr(multiply, "linear", spy)
    for shape in ((16, 20), (17, 20), (4, 4, 20), (3, 6, 20)):
        fast(torch.randn(shape))
    fast.ways = [(1, "spmm"), (4, "packed"), (math.inf, "expanded")]
    x = torch.randn(3, 20, requires_grad=True)
    for rows in (1, 4, 5):
        fast(torch.randn(rows, 20))
    fast(x)  # through the operator
    assert seen == ["packed", "expanded", "packed", "expanded", "spmm", "packed", "expanded", "packed"]
    for wrong in ([], [(4, "packed")], [(math.inf, "quickly")], [(9, "packed"), (2, "spmm"), (math.inf, "packed")]):
        with pytest.raises(InputError, match="ways"):
            fast.ways = wrong
    with pytest.raises(InputError, match="activations"):
        PackedLinear(fast.matrix, activations="int8")


@pytest.mark.parametrize("values", ["bfloat16", "int8", "int4", "int8 blocks"])
def test_state_dict_keeps_the_type_of_values(values):
    matrix, weight = packed_of(8, 64, values)
    fast = PackedLinear(matrix, dtype=torch.float32)
    dense = nn.Linear(64, 8, bias=False)
    dense.load_state_dict(fast.state_dict())
    assert torch.equal(dense.weight.double(), weight)
    fast.load_state_dict(dense.state_dict())
    assert (fast.matrix.values, fast.matrix.block) == (matrix.values, matrix.block)
    assert torch.equal(expanded.expand(fast.matrix, dtype=torch.float64), weight)
    before = fast.matrix
    with pytest.raises(RuntimeError, match="does not fit"):
        fast.load_state_dict({"weight": torch.randn(8, 64)})
    with pytest.raises(RuntimeError, match="shape"):
        fast.load_state_dict({"weight": torch.zeros(8, 63)})
    with pytest.raises(RuntimeError, match="Missing"):
        fast.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected"):
        fast.load_state_dict({"weight": dense.weight, "other": dense.weight})
    assert fast.load_state_dict({}, strict=False).missing_keys == ["weight"]
    assert torch.equal(expanded.expand(fast.matrix), expanded.expand(before))


def test_to_changes_the_types_around_the_values():
    layer = layer_of("linear")
    fast = pack_layer(layer)
    assert fast.to(torch.bfloat16) is fast and fast.to("cpu") is fast
    assert fast.weight.dtype == fast.bias.dtype == fast.state_dict()["weight"].dtype == torch.bfloat16
    assert fast.matrix.values == "float32"
    x = torch.randn(3, 20)
    torch.testing.assert_close(fast(x), x @ layer.weight.T + layer.bias.bfloat16().float(), rtol=1e-5, atol=1e-5)
    assert fast(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(InputError, match="CPU"):
        fast.to("meta")


def test_models_copy_pickle_and_save():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 5)))
    for path in ("0", "2.0"):
        swap(model, path, pack_layer(model.get_submodule(path)))
    assert list(packed_layers(model)) == ["0", "2.0"]
    x = torch.randn(4, 6)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for other in copies:
        assert torch.equal(other(x), expected)
        other.half()
    assert model[0].weight.dtype == torch.float32  # the copies are layers of their own


@pytest.mark.parametrize("values", ["float32", "int8"])
def test_gradient_of_x(path, values):
    matrix, weight = packed_of(9, 20, values)
    layer = PackedLinear(matrix, torch.randn(9))
    x = torch.randn(2, 3, 20, requires_grad=True)
    (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    y = x.double() @ weight.T + layer.bias.double()
    torch.testing.assert_close(found.double(), 2 * y.detach() @ weight, rtol=1e-4, atol=1e-4)
    assert not layer(x.detach()).requires_grad
    with torch.no_grad():
        assert not layer(x).requires_grad
    if values == "int8":
        with pytest.raises(InputError, match="no gradient"):
            PackedLinear(matrix, activations="int8")(x)


CONVOLUTIONS = [
    dict(kernel_size=1),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=1, padding=1),
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=2, stride=2, dilation=2),
    dict(kernel_size=(2, 5), padding=(0, 2), stride=(1, 2), bias=False),
    dict(kernel_size=3, padding="same"),
    dict(kernel_size=(1, 3), padding="valid"),
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions(path, options):
    layer = nn.Conv2d(5, 11, **options)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape) < 0.5)
    fast = pack_layer(layer)
    assert isinstance(fast, PackedConv2d)
    exact = copy.deepcopy(layer).double()
    for shape in ((3, 5, 9, 10), (1, 5, 24, 24), (0, 5, 9, 9), (5, 9, 8), (2, 5, 6, 5)):
        x = torch.randn(shape)
        views = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
        for way in ("spmm", "expanded"):
            fast.ways = [(math.inf, way)]
            for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
                for view in views:
                    y = fast(view.to(dtype))
                    expected = exact(view.to(dtype).double())
                    assert y.dtype == dtype and y.shape == expected.shape
                    assert ((y.double() - expected).abs() <= tolerance * (1 + expected.abs())).all()
    x = torch.randn(2, 5, 9, 10, requires_grad=True)
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    state = fast.state_dict()
    assert all(torch.equal(state[k], v) for k, v in layer.state_dict().items())
    fast.load_state_dict(layer.state_dict())


def test_layers_that_stay_dense_say_why():
    attention = nn.MultiheadAttention(8, 2)
    model = nn.ModuleDict(
        {
            "attention": attention,
            "groups": nn.Conv2d(4, 4, 3, groups=2),
            "reflect": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            "uneven": nn.Conv2d(4, 4, 2, padding="same"),
            "embedding": nn.Embedding(4, 4),
            "hooked": nn.Linear(4, 4),
            "subclass": type("Mine", (nn.Linear,), {})(4, 4),
            "fine": nn.Linear(4, 4),
        }
    )
    model["hooked"].register_forward_hook(lambda *a: None)
    reasons = {path: why_dense(model, path) for path in model}
    assert reasons.pop("fine") is None
    assert all(reasons.values())
    assert why_dense(model, "attention", "in_proj_weight") and why_dense(model, "attention.out_proj")
    for path in ("groups", "reflect", "uneven", "hooked", "subclass"):
        with pytest.raises(InputError, match="cannot be packed"):
            pack_layer(model[path])
    with pytest.raises(InputError):
        swap(model, "", nn.Linear(1, 1))


def test_threads_give_the_same_results(path):
    matrix, _ = packed_of(64, 256, "bfloat16")
    layer = PackedLinear(matrix, torch.randn(64))
    inputs = [torch.randn(rows, 256) for rows in (1, 3, 16, 40) * 8]
    with torch.inference_mode():
        expected = [layer(x) for x in inputs]

    def work(x):
        with torch.inference_mode():
            return [layer(x) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for found, y in zip(pool.map(work, inputs), expected, strict=True):
            assert all(torch.equal(f, y) for f in found)


# --- torch.compile --------------------------------------------------------------------------------------------------------


def test_operators_are_sound():
    matrix, _ = packed_of(9, 20, "float32")
    x = torch.randn(2, 3, 20, requires_grad=True)
    described = ops.describe(matrix)
    for bias in (None, torch.randn(9), torch.randn(9, requires_grad=True)):
        torch.library.opcheck(ops.linear, (x, bias, "keep", "packed:16,expanded", *described))
    torch.library.opcheck(ops.linear_back, (torch.randn(2, 3, 9), *described))
    copied = [t.clone() if isinstance(t, torch.Tensor) else t for t in described]
    assert torch.equal(ops.linear(x, None, "keep", "packed", *copied), multiply.linear(matrix, x))
    copied[0] = copied[0] * 0  # row starts are never believed
    assert torch.equal(ops.linear(x, None, "keep", "packed", *copied), multiply.linear(matrix, x))
    images = torch.randn(2, 5, 7, 6, requires_grad=True)
    conv = pack_layer(nn.Conv2d(5, 4, 3, padding=1))
    args = (images, conv.bias, conv._numbers, conv._ways_text, *ops.describe(conv.matrix))
    torch.library.opcheck(ops.conv2d, args)


@pytest.mark.slow
def test_compiled_without_graph_breaks(monkeypatch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x):
            x = F.relu(self.conv(x)).mean((2, 3))
            return self.two(F.gelu(self.one(x)))

    model = Net()
    for path in ("conv", "one", "two"):
        swap(model, path, pack_layer(model.get_submodule(path)))
    model.two.ways = [(4, "packed"), (math.inf, "spmm")]
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    # The operators find the matrices as they are: packing one again for every call would cost more than the product.
    monkeypatch.setattr(PackedMatrix, "__post_init__", lambda self: pytest.fail("made again"))
    with torch.inference_mode():
        for batch in (2, 3, 20):
            x = torch.randn(batch, 3, 8, 8)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x)[0], expected, rtol=1e-4, atol=1e-5)


def test_every_packed_tensor_from_a_file_works(path):
    """from_tensors(meta, tensors) is what a file gives: nothing else is needed."""
    weight = sparse(10, 33, 0.5)
    packed = pack(weight, weight != 0, Unstructured())
    again = PackedTensor.from_tensors(packed.meta(), packed.tensors())
    x = torch.randn(2, 33)
    torch.testing.assert_close(multiply.linear(PackedMatrix.from_packed(again), x), x @ weight.T, rtol=1e-5, atol=1e-5)
