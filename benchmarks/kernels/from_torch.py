"""Contenders that run in torch: its dense kernels, MKL's sparse one, and winnow's packed layers."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.kernels.layer import GROUP, Array, Copies, Layer, how_many, int4_groups, int8_rows

Tensor = torch.Tensor


def _inputs(layer: Layer, batch: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(layer.inputs(batch)).to(dtype)


def _copies(
    layer: Layer,
    each: list[Any],
    size: int,
    product: Callable[[Any, Tensor], Tensor],
    dtype: torch.dtype,
    feature_major: bool = False,
) -> Copies:
    """Copies of a contender whose product takes (one copy, x); feature-major ones take and give [features, batch]."""

    def use(batch: int) -> Callable[[int], Any]:
        x = _inputs(layer, batch, dtype)
        x = x.t().contiguous() if feature_major else x
        return lambda i: product(each[i % len(each)], x)

    def first(x: Array) -> Array:
        given = torch.from_numpy(x).to(dtype)
        y = product(each[0], given.t().contiguous()).t() if feature_major else product(each[0], given)
        return y.float().numpy()

    return Copies(size, len(each), use, first)


def dense(layer: Layer, size: int, dtype: torch.dtype) -> Copies:
    """``F.linear`` on plain weights."""
    weight = torch.from_numpy(layer.weight()).to(dtype)
    each = [weight.clone() for _ in range(how_many(size, weight.nbytes))]
    return _copies(layer, each, weight.nbytes, lambda w, x: F.linear(x, w), dtype)


def frozen(layer: Layer, size: int, dtype: torch.dtype) -> Copies:
    """What a compiled and frozen linear runs: oneDNN's product on weights packed beforehand, called without the graph."""
    weight = torch.from_numpy(layer.weight()).to(dtype)
    op, pack = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._reorder_linear_weight
    each = [pack(weight) for _ in range(how_many(size, weight.nbytes))]
    return _copies(layer, each, weight.nbytes, lambda w, x: op(x, w, None, "none", [], ""), dtype)


def frozen_mkl(layer: Layer, size: int, batch: int = 1) -> Copies:
    """The other choice of a frozen float32 linear: MKL's packed product."""
    weight = torch.from_numpy(layer.weight())
    pack, op = torch.ops.mkl._mkl_reorder_linear_weight, torch.ops.mkl._mkl_linear
    each = [pack(weight, batch) for _ in range(how_many(size, weight.nbytes))]
    return _copies(layer, each, weight.nbytes, lambda w, x: op(x, w, weight, None, batch), torch.float32)


def compiled(layer: Layer, size: int, dtype: torch.dtype) -> Copies:
    """``torch.compile`` with freezing over all copies as one graph: one call computes every copy once."""
    import torch._inductor.config as config

    weight = torch.from_numpy(layer.weight()).to(dtype)
    count = how_many(size, weight.nbytes)
    linears = torch.nn.ModuleList(torch.nn.Linear(layer.cols, layer.rows, bias=False) for _ in range(count)).to(dtype)
    for linear in linears:
        linear.weight.data.copy_(weight)
    linears.eval()
    config.freezing = True
    torch._dynamo.reset()  # every batch and layer is a compilation of its own: none may fall back to eager
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True

    class Every(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linears = linears

        def forward(self, xs: list[Tensor]) -> list[Tensor]:
            return [linear(x) for linear, x in zip(self.linears, xs)]

    graph = torch.compile(Every().eval(), dynamic=False)

    def use(batch: int) -> Callable[[int], Any]:
        xs = [_inputs(layer, batch, dtype) for _ in range(count)]
        return lambda i: graph(xs)

    def first(x: Array) -> Array:
        return F.linear(torch.from_numpy(x).to(dtype), linears[0].weight).float().numpy()

    return Copies(weight.nbytes, count, use, first, per_call=count)


def int8pack(layer: Layer, size: int, dtype: torch.dtype) -> Copies:
    """``torch._weight_int8pack_mm``: int8 weights by row, activations of ``dtype``."""
    values, scale = (torch.from_numpy(a) for a in int8_rows(layer.weight()))
    scales = scale.to(dtype)
    each = [values.clone() for _ in range(how_many(size, values.nbytes + scales.nbytes))]
    return _copies(
        layer, each, values.nbytes + scales.nbytes, lambda w, x: torch._weight_int8pack_mm(x, w, scales), dtype
    )


def int4pack(layer: Layer, size: int, dtype: torch.dtype) -> Copies:
    """``_weight_int4pack_mm_for_cpu``: int4 weights in groups of 128, activations of ``dtype``."""
    values, scale = int4_groups(layer.weight())
    unsigned = torch.from_numpy(values.reshape(layer.rows, layer.cols).astype("int32") + 8)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1)
    scales = torch.from_numpy(scale.T.copy()).to(dtype)
    pairs = torch.stack([scales, torch.zeros_like(scales)], 2).contiguous()  # [groups, rows, 2]: scale, zero
    bytes_each = layer.rows * layer.cols // 2 + pairs.nbytes
    op = torch.ops.aten._weight_int4pack_mm_for_cpu
    each = [(packed.clone(), pairs.clone()) for _ in range(how_many(size, bytes_each))]
    return _copies(layer, each, bytes_each, lambda w, x: op(x, w[0], GROUP, w[1]), dtype)


def dynamic_int8(layer: Layer, size: int, engine: str) -> Copies:
    """What ``quantize_dynamic`` runs: int8 weights by row, activations quantized at every call."""
    torch.backends.quantized.engine = engine
    values, scale = (torch.from_numpy(a) for a in int8_rows(layer.weight()))
    zeros = torch.zeros(layer.rows, dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(values, scale.double(), zeros, 0)
    bytes_each = values.nbytes + scale.nbytes
    each = [torch.ops.quantized.linear_prepack(weight, None) for _ in range(how_many(size, bytes_each))]
    reduce_range = engine != "onednn"  # as quantize_dynamic does: FBGEMM's 16 bit sums could overflow otherwise

    def product(packed: Any, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x, packed, reduce_range=reduce_range)

    return _copies(layer, each, bytes_each, product, torch.float32)


def csr(layer: Layer, size: int) -> Copies:
    """MKL's CSR product through ``torch.sparse_csr``, feature-major: no transposes are counted against it."""
    matrix = torch.from_numpy(layer.weight()).to_sparse_csr()
    index = (matrix.crow_indices().int(), matrix.col_indices().int())
    bytes_each = sum(t.nbytes for t in (*index, matrix.values()))

    def one() -> Tensor:
        parts = (index[0].clone(), index[1].clone(), matrix.values().clone())
        return torch.sparse_csr_tensor(*parts, size=matrix.shape, check_invariants=False)

    each = [one() for _ in range(how_many(size, bytes_each))]
    return _copies(layer, each, bytes_each, lambda w, x: w @ x, torch.float32, feature_major=True)


def read(layer: Layer, size: int) -> Copies:
    """Reads memory and does next to nothing with it: the bandwidth that a kernel could reach at best. The layer does not matter."""
    rows = torch.ones(max(2, size // (1 << 24)), 1 << 22)
    each = list(rows)

    def use(batch: int) -> Callable[[int], Any]:
        return lambda i: each[i % len(each)].sum()

    return Copies(1 << 24, len(each), use, lambda x: x)


_OPEN: weakref.WeakValueDictionary[tuple[Any, ...], _Matrices] = weakref.WeakValueDictionary()


class _Matrices(list[Any]):
    """A list that can be referred to weakly: copies are shared by the ways they are run in, and go with the last one."""


def packed(layer: Layer, size: int, values: str, way: str, dtype: torch.dtype, activations: str = "keep") -> Copies:
    """winnow's packed layer, run in one of its ways; "times" is the feature-major product."""
    key = (layer, size, values)
    each = _OPEN.get(key)
    if each is None:
        matrix = _matrix(layer, values)
        each = _OPEN[key] = _Matrices(_own_memory(matrix) for _ in range(how_many(size, matrix.nbytes)))
    if way == "times":
        return _copies(layer, each, each[0].nbytes, lambda w, x: w.times(x), dtype, feature_major=True)

    def product(w: Any, x: Tensor) -> Tensor:
        return w.linear(x, way=way, activations=activations)

    return _copies(layer, each, each[0].nbytes, product, dtype)


@lru_cache(maxsize=1)
def _matrix(layer: Layer, values: str) -> Any:
    from winnow.kernels.matrix import PackedMatrix

    block = 4 if values == "int8" and layer.block == 4 else 1
    return PackedMatrix.from_dense(torch.from_numpy(layer.weight()), values=values, block=block)


def _own_memory(matrix: Any) -> Any:
    """The same matrix in memory of its own: a deep copy would share it."""
    own = {name: tensor.clone() for name, tensor in matrix.tensors().items() if name != "starts"}
    return dataclasses.replace(matrix, **own)
