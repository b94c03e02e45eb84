"""The Triton kernels, in Triton's interpreter on the CPU (TRITON_INTERPRET=1); set in conftest.py; skipped where triton is not
installed."""

import pytest
import torch

from winnow.errors import InputError
from winnow.kernels.expanded import expand
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.modules import PackedLinear


def matrix_of(values, rows, cols, density, block=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    keep = torch.rand(rows, cols // block, generator=generator).repeat_interleave(block, 1) < density
    return PackedMatrix.from_dense(weight * keep, values, block=block, group=32)


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("rows, cols, density", [(5, 2051, 0.3), (3, 64, 0.0), (4, 130, 1.0), (1, 1, 1.0)])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_products_on_the_gpu_path_match_float64(values, rows, cols, density, batch):
    pytest.importorskip("triton")
    from winnow.kernels.gpu import GpuLinear

    matrix = matrix_of(values, rows, cols, density)
    dense = expand(matrix, dtype=torch.float64)
    x, bias = torch.randn(2, batch, cols)[1], torch.randn(rows)
    y = GpuLinear(matrix, bias)(x)
    expected = x.double() @ dense.T + bias
    assert y.dtype == x.dtype and torch.allclose(y.double(), expected, atol=2e-5 * cols**0.5, rtol=1e-5)


def test_blocks_and_dense_integers():
    pytest.importorskip("triton")
    from winnow.kernels.gpu import bitmask

    for density in (0.4, 1.1):
        matrix = matrix_of("int8", 6, 88, density, block=4)
        about = {"rows": 6, "cols": 88, "values": "int8", "block": matrix.block, "group": 88}
        assert torch.equal(bitmask.expand(matrix.tensors(), about, torch.float32), expand(matrix))


def test_a_packed_model_keeps_its_outputs():
    pytest.importorskip("triton")
    from winnow.kernels.gpu import to_gpu

    matrix = matrix_of("bfloat16", 16, 40, 0.5)
    model = torch.nn.Sequential(PackedLinear(matrix, torch.zeros(16)), torch.nn.ReLU())
    x = torch.randn(2, 5, 40)
    expected = model(x)
    moved = to_gpu(model, "cpu").to(torch.float32)
    assert moved[0].winnow_data.dtype == torch.bfloat16
    assert torch.allclose(moved(x), expected, atol=1e-4)


def test_2_of_4_says_what_it_needs():
    from winnow.kernels.gpu.layers import to_semi_structured, why_dense

    with pytest.raises(InputError, match="NVIDIA GPUs only"):
        to_semi_structured(torch.nn.Linear(64, 64))
    half = torch.tensor([1.0, 0, 2, 0]).repeat(32, 16).half()
    assert why_dense(half) is None
    assert "2:4" in why_dense(half + torch.tensor([0, 1.0, 0, 0]).repeat(32, 16).half())
    assert "float32" in why_dense(half.float())
    assert "multiple" in why_dense(half[:31])
