"""What every contender of the dispatcher promises: a name and a reason, the layer's own outputs, and no need of native code."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparse_layers import coded, relative, thinned
from winnow.kernels import dispatch, native
from winnow.kernels.contenders import Layer, contenders
from winnow.kernels.dense import unpacked
from winnow.kernels.expanded import expand
from winnow.kernels.modules import PackedLayer
from winnow.kernels.swap import LayerSpec, pack_layer

ROWS = 9  # of x: from 8 on, every way of a packed layer is timed


def linear(dtype=torch.float32, bias=True):
    layer = thinned(nn.Linear(40, 33, bias=bias)).to(dtype)
    with torch.no_grad():
        layer.weight[[2, 30]] = 0
        layer.weight[:, :7] = 0  # so that leaving out rows and columns is offered too
    return layer


def conv1d():
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(33, 40)
    with torch.no_grad():
        layer.weight.copy_(linear().weight.t())
    return layer.eval()


def convolution():
    layer = thinned(nn.Conv2d(5, 8, 3, padding=1))
    with torch.no_grad():
        layer.weight[:, 2] = 0
    return layer


LAYERS = {
    **{f"linear {d}": lambda d=d: linear(getattr(torch, d)) for d in ("float32", "float16", "bfloat16")},
    "no bias": lambda: linear(bias=False),
    "convolution": convolution,
    "conv1d": conv1d,
    "packed float32": lambda: pack_layer(linear()),
    "packed bfloat16": lambda: pack_layer(linear(torch.bfloat16)),
    "packed conv1d": lambda: pack_layer(conv1d()),
    "packed convolution": lambda: pack_layer(convolution()),
    "int8": lambda: coded("int8")[0][0],
    "int8 float32": lambda: coded("int8", torch.float32, bias=False)[0][0],
    "int8 blocks": lambda: coded("int8", block=4)[0][0],
    "int4": lambda: coded("int4", torch.float32)[0][0],
}
KINDS = [pytest.param(name, marks=pytest.mark.hf if "conv1d" in name else ()) for name in LAYERS]


def tolerance(label: str, dtype: torch.dtype) -> float:
    """Of the largest output, as ``contenders`` documents it."""
    if "int8 activations" in label:
        return 0.04
    if "bfloat16" in label or label == "torch int8" or dtype == torch.bfloat16:
        return 0.02
    return 1e-5 if dtype == torch.float32 else 3e-3


def offered(layer: nn.Module, shape: tuple[int, ...]) -> dict:
    """Everything the dispatcher may choose for the layer when all is allowed."""
    spec = LayerSpec(layer)
    rows = spec.count(torch.empty(shape))
    inputs = {} if spec.geometry is None else {rows: shape}
    return contenders(Layer("layer", layer, spec, {rows}, inputs), ("bfloat16",), "int8", "speed")


def favour(label: str):
    """A timer by which one contender takes half the time of the others."""
    return lambda case, calls, x: {name: 50.0 if name == label else 100.0 for name in calls}


def shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    if LayerSpec(layer).geometry is not None:
        return [(1, 5, 3, 3), (2, 5, 6, 7), (5, 4, 4), (0, 5, 4, 4)]
    cols = LayerSpec(layer).cols
    return [(1, cols), (ROWS, cols), (2, 9, cols), (cols,), (0, cols)]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_layer_does_in_float64(kind, backend, monkeypatch):
    if backend == "reference":
        monkeypatch.setattr(native, "available", lambda: False)
    layer = LAYERS[kind]()
    exact = copy.deepcopy(unpacked(layer) if isinstance(layer, PackedLayer) else layer).double()
    if isinstance(layer, PackedLayer):
        exact.weight = nn.Parameter(layer._restore(expand(layer.matrix, dtype=torch.float64)))
    dtype = layer.weight.dtype
    found = offered(layer, shapes(layer)[1])
    assert len(found) >= 3
    for label, contender in found.items():
        assert (native.isa() in label) == (contender.way is not None)  # "reference" without the extension
        module = contender.module()
        assert module.state_dict().keys() == exact.state_dict().keys()
        for shape in shapes(layer):
            x = torch.randn(shape).to(dtype)
            with torch.inference_mode():
                y, expected = module(x), exact(x.double())
            assert y.dtype == dtype and y.shape == expected.shape
            assert not y.numel() or relative(y, expected) < tolerance(label, dtype), (label, shape)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_chosen_and_listed_by_its_name(kind, monkeypatch):
    monkeypatch.setattr(dispatch, "SMALLEST", 1)
    layer = LAYERS[kind]()
    shape = shapes(layer)[1]
    x = torch.randn(shape).to(layer.weight.dtype)
    options = {"values": "bfloat16", "activations": "int8", "rows": ROWS, "example": x, "cache": False}
    for label, contender in offered(layer, shape).items():
        assert contender.nbytes > 0
        fast = dispatch.accelerate(nn.Sequential(layer), timer=favour(label), **options)
        (decision,), (line,) = fast.winnow_dispatch, fast.winnow_dispatch.table()
        assert set(decision.kernel.values()) == {label} and line["runs on"] == label
        gained = "faster than as given: 2.00x" if decision.changed else "stays: nothing was faster than"
        assert decision.reason.startswith(gained) and line["why"] == decision.reason
        assert fast(x).shape == layer(x).shape
