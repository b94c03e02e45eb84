"""Expanding packed rows and feature-major products, every instruction path against float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from packed_by_hand import SHAPES, Packed
from winnow.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native extension is not built: nothing to test")

KINDS = ["float32", "float16", "bfloat16", "int8", "int8 blocks", "int4 32", "int4 128", "int4 24", "int4 row"]


def of_kind(kind: str, rows: int, cols: int, density: float | None, seed: int = 0) -> Packed:
    values, _, rest = kind.partition(" ")
    block = 4 if rest == "blocks" else 1
    return Packed.random(
        values, rows, -(-cols // block) * block, density, seed, block, int(rest) if rest.isdigit() else None
    )


@pytest.fixture(params=native.isas() or ["none"])
def kernels(request: pytest.FixtureRequest) -> object:
    return native.load_extension().kernels(request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_expand(kernels: object, kind: str, dtype: torch.dtype) -> None:
    if dtype == torch.int8 and "int" not in kind:
        pytest.skip("float values have no codes")
    for number, (rows, cols) in enumerate(SHAPES):
        for density in (0.1, 0.7, None):
            case = of_kind(kind, rows, cols, density, number)
            begin = rows // 3
            pad = 3  # a line of the output is longer than a row: what lies beyond must not be written
            out = torch.full((rows - begin, case.dense.shape[1] + pad), 77, dtype=dtype)
            native.load_extension().expand(
                kernels, case.view, begin, rows, out.data_ptr(), out.stride(0), native.TYPES[dtype], 2
            )
            assert (out[:, case.dense.shape[1] :] == 77).all()
            got = out[:, : case.dense.shape[1]]
            if dtype == torch.int8:
                assert torch.equal(got, case.numbers[begin:])
            else:
                # A code times its scale fits float32, so what is expected is one rounding away from the truth.
                expected = torch.from_numpy(case.dense[begin:]).float().to(dtype)
                assert torch.equal(got, expected), (rows, cols, density)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_times(kernels: object, kind: str, threads: int) -> None:
    rng = np.random.default_rng(5)
    for number, (rows, cols) in enumerate(SHAPES):
        for density, n, pad in ((0.1, 130, 0), (0.5, 1, 2), (None, 16, 0), (0.1, 33, 31), (0.3, 128, 0), (0.2, 96, 0)):
            case = of_kind(kind, rows, cols, density, number)
            x = rng.standard_normal((case.dense.shape[1], n + pad)).astype(np.float32)
            y = np.full((rows, n + pad), 77, np.float32)
            bias = rng.standard_normal(rows).astype(np.float32) if n % 2 else None
            native.load_extension().times(
                kernels, case.view, x.ctypes.data, n + pad, n, 0 if bias is None else bias.ctypes.data,
                y.ctypes.data, n + pad, threads,
            )  # fmt: skip
            assert (y[:, n:] == 77).all()
            exact = case.dense @ x[:, :n].astype(np.float64) + (0 if bias is None else bias[:, None])
            size = np.abs(case.dense) @ np.abs(x[:, :n]) + 1
            assert (np.abs(y[:, :n] - exact) <= 1e-6 * size).all(), (rows, cols, density, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 2])
def test_linear_many(kernels: object, dtype: torch.dtype, threads: int) -> None:
    torch.manual_seed(1)
    for number, (rows, cols) in enumerate([(1, 1), (5, 64), (33, 257), (300, 40), (9, 1100)]):
        for kind, batch in (("float32", 0), ("int4 32", 1), ("float32", 33), ("int8 blocks", 128), ("bfloat16", 1100)):
            case = of_kind(kind, rows, cols, 0.3, number)
            x = torch.randn(batch, case.dense.shape[1] + 5).to(dtype)[:, : case.dense.shape[1]]
            bias = torch.randn(rows) if number % 2 else None
            y = torch.full((batch, rows + 2), 77, dtype=dtype)
            native.load_extension().linear_many(
                kernels, case.view, x.data_ptr(), x.stride(0), native.TYPES[dtype], batch,
                0 if bias is None else bias.data_ptr(), y.data_ptr(), y.stride(0), threads,
            )  # fmt: skip
            assert (y[:, rows:] == 77).all()
            exact = x.double().numpy() @ case.dense.T + (0 if bias is None else bias.double().numpy())
            size = np.abs(x.double().numpy()) @ np.abs(case.dense.T) + 1
            error = np.abs(y[:, :rows].double().numpy() - exact)
            rounding = {torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
            assert (error <= 1e-6 * size + rounding * np.abs(exact)).all(), (kind, rows, cols, batch)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("images", "channels", "size", "kernel", "stride", "padding", "dilation"),
    [
        (1, 3, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
        (2, 5, (14, 14), (1, 1), (1, 1), (0, 0), (1, 1)),
        (2, 5, (20, 16), (1, 1), (1, 1), (0, 0), (1, 1)),
        (3, 4, (13, 6), (1, 1), (2, 2), (0, 0), (1, 1)),
        (2, 2, (30, 31), (3, 5), (2, 1), (0, 2), (1, 2)),
        (2, 2, (12, 12), (3, 3), (1, 1), (0, 0), (1, 1)),
        (1, 2, (5, 5), (2, 2), (1, 1), (7, 7), (3, 3)),  # windows that lie in the padding alone
        (9, 3, (40, 40), (3, 3), (1, 1), (1, 1), (1, 1)),  # more panels than the threads share
    ],
)
def test_convolve(kernels, threads, images, channels, size, kernel, stride, padding, dilation):
    torch.manual_seed(2)
    case = of_kind("float32", 21, channels * kernel[0] * kernel[1], 0.4)
    x = torch.randn(images, channels, *size)
    bias = torch.randn(21)
    filters = torch.from_numpy(case.dense).view(21, channels, *kernel)
    expected = torch.nn.functional.conv2d(x.double(), filters, bias.double(), stride, padding, dilation)
    y = torch.full_like(expected, 77, dtype=torch.float32)
    sizes = [images, channels, *size, *expected.shape[2:], *kernel, *stride, *padding, *dilation]
    native.load_extension().convolve(kernels, case.view, x.data_ptr(), sizes, bias.data_ptr(), y.data_ptr(), threads)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["expanded", "spmm"])
def test_linear_of_a_packed_matrix(way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from winnow.kernels import expanded, multiply
    from winnow.kernels.matrix import PackedMatrix

    torch.manual_seed(3)
    linear = functools.partial(multiply.linear, way=way)
    monkeypatch.setattr(expanded, "_SMALL", 8 << 10)  # several panels, the last one smaller
    monkeypatch.setattr(expanded, "_LARGE", 16 << 10)
    for rows, cols, batch in ((70, 65, 5), (130, 33, 200), (9, 40, 0)):
        weight = torch.randn(rows, cols) * (torch.rand(rows, cols) < 0.3)
        matrix = PackedMatrix.from_dense(weight)
        x = torch.randn(batch, cols).to(dtype)
        bias = torch.randn(rows) if rows != 70 else None
        expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        rounding = 1e-5 if dtype == torch.float32 else 0.05
        for _ in range(2):
            y = linear(matrix, x, bias)
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=rounding)
