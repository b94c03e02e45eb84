"""``layer.weight`` of a layer that holds no dense weight: whoever reads it gets the real values, whoever writes is refused."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import winnow
from winnow.errors import InputError
from winnow.formats import ArtifactWriter, load, pack
from winnow.kernels import expanded
from winnow.kernels.contenders import Layer
from winnow.kernels.dense import Int8Linear, RoundedLayer, RoutedLayer, ShrunkLayer
from winnow.kernels.lazy import LazyWeight
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.modules import PackedConv2d, PackedLinear
from winnow.kernels.operands import Geometry
from winnow.kernels.swap import LayerSpec
from winnow.masks.scope import find_scope
from winnow.masks.structure import Unstructured


def sparse(rows, cols, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=draw) * (torch.rand(rows, cols, generator=draw) < 0.5)


def linear(dtype=None):
    layer = PackedLinear(PackedMatrix.from_dense(sparse(12, 32)), torch.ones(12), dtype=dtype)
    return layer, sparse(12, 32).to(dtype or torch.float32)


def transposed():
    return PackedLinear(PackedMatrix.from_dense(sparse(12, 32)), None, transposed=True), sparse(12, 32).t()


def convolution():
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1))
    return PackedConv2d(PackedMatrix.from_dense(sparse(4, 18)), None, geometry), sparse(4, 18).reshape(4, 2, 3, 3)


def integers():
    layer = PackedLinear(PackedMatrix.from_dense(sparse(12, 32), "int8"), None)
    return layer, expanded.expand(layer.matrix)


def substitute(kind):
    given = nn.Linear(32, 12)
    given.weight = nn.Parameter(sparse(12, 32), requires_grad=False)
    spec = LayerSpec(given)
    if kind == "rounded":
        return RoundedLayer(spec, given.weight, given.bias), given.weight.bfloat16().float()
    if kind == "int8":
        matrix = PackedMatrix.from_dense(sparse(12, 32), "int8")
        return Int8Linear(spec, matrix, given.bias), expanded.expand(matrix)
    shrunk = ShrunkLayer(spec, given.weight, given.bias)
    if kind == "routed":
        packed = PackedLinear(PackedMatrix.from_dense(sparse(12, 32)), given.bias)
        return RoutedLayer(spec, [(4, packed), (math.inf, shrunk)]), given.weight.detach()
    return shrunk, given.weight.detach()


LAYERS = {
    "linear": linear, "bfloat16": lambda: linear(torch.bfloat16), "transposed": transposed, "convolution": convolution, "integers": integers,
    **{kind: lambda kind=kind: substitute(kind) for kind in ("rounded", "int8", "shrunk", "routed")},
}  # fmt: skip


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


def test_what_it_is_costs_no_values(layer, monkeypatch):
    made, weight = layer
    monkeypatch.setattr(type(made), "dense", lambda self: pytest.fail("expanded"))
    found = made.weight
    assert (found.shape, found.dtype, found.device, found.requires_grad) == (weight.shape, weight.dtype, weight.device, False)  # fmt: skip
    assert isinstance(found, nn.Parameter) and not found.is_meta and found.numel() == weight.numel()


READS = {
    "clone": lambda w: w.clone(), "detach": lambda w: w.detach(), "data": lambda w: w.data + 0, "float": lambda w: w.double().to(w.dtype),
    "T": lambda w: w.flatten(1).T.contiguous().T, "view": lambda w: w.view(-1), "row": lambda w: w[1], "iterate": lambda w: torch.stack(list(w)),
    "cat": lambda w: torch.cat([w, w]), "tolist": lambda w: torch.tensor(w.tolist(), dtype=w.dtype), "einsum": lambda w: torch.einsum("o...->o...", w),
    "deepcopy": lambda w: copy.deepcopy(w).detach(), "pickle": lambda w: pickle.loads(pickle.dumps(w)).detach(), "storage": lambda w: torch.tensor([], dtype=w.dtype).set_(w.untyped_storage()),
    "dlpack": lambda w: torch.from_dlpack(w), "where": lambda w: torch.where(w > 0, w, 0), "stack": lambda w: torch.stack([w]), "buffer": lambda w: nn.Buffer(w.detach()),
}  # fmt: skip


@pytest.mark.parametrize("read", READS)
def test_every_reader_gets_the_values(layer, read):
    made, weight = layer
    got, expected = READS[read](made.weight), READS[read](weight.contiguous())
    assert not got.is_meta and got.dtype == expected.dtype
    assert torch.equal(got.reshape(-1), expected.reshape(-1))


def test_numpy_and_files(layer, tmp_path):
    made, weight = layer
    if weight.dtype != torch.bfloat16:
        assert np.array_equal(made.weight.numpy(), weight.numpy()) and np.array_equal(np.asarray(made.weight), weight)
    torch.save({"w": made.weight}, buffer := io.BytesIO())
    buffer.seek(0)
    assert torch.equal(torch.load(buffer)["w"], weight)
    assert torch.equal(made.state_dict()["weight"], weight)
    assert "tensor(" in repr(made.weight)


WRITES = {
    "in place": lambda w: w.mul_(2), "of data": lambda w: w.data.mul_(2), "init": lambda w: nn.init.zeros_(w), "copy": lambda w: w.copy_(w.clone()),
    "item": lambda w: w.__setitem__(0, 1.0), "out": lambda w: torch.add(w.clone(), 1, out=w), "data": lambda w: setattr(w, "data", w.clone()),
    "gradient": lambda w: w.requires_grad_(), "apply": lambda w: w.apply_(lambda v: 0), "foreach": lambda w: torch._foreach_mul_([w], 2.0),
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_writers_are_refused(layer, write):
    made, weight = layer
    with pytest.raises(InputError, match="cannot be changed in place"):
        WRITES[write](made.weight)
    assert torch.equal(made.weight.clone(), weight)
    with pytest.raises(RuntimeError, match="no dense memory"):
        made.weight.data_ptr()


def test_setting_a_weight_packs_it():
    made, _ = linear()
    other = sparse(12, 32, seed=3)
    made.weight = nn.Parameter(other)
    assert torch.equal(made.weight.clone(), other) and torch.equal(expanded.expand(made.matrix), other)
    with pytest.raises(InputError, match="shape"):
        made.weight = nn.Parameter(torch.zeros(3, 3))


def test_tied_by_hand():
    made, weight = linear()
    tied = nn.Linear(32, 12, bias=False)
    tied.weight = made.weight
    x = torch.randn(5, 32)
    assert torch.allclose(tied(x), F.linear(x, weight), atol=1e-6)
    assert torch.equal(tied.state_dict()["weight"], weight)


def test_products_gradients_types_and_the_compiler():
    made, weight = linear()
    x = torch.randn(5, 32, requires_grad=True)
    F.linear(x, made.weight).sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).expand(5, 32), atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(made.weight @ torch.ones(32), weight.sum(1), atol=1e-5)
    made.to(torch.bfloat16)
    assert made.weight.dtype == torch.bfloat16 and torch.equal(made.weight.clone(), weight.bfloat16())

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear()[0]

        def forward(self, x):
            return F.linear(x.to(self.layer.weight.dtype), self.layer.weight) + self.layer(x)

    model = Reads().eval()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), 2 * F.linear(x, weight) + 1, atol=1e-5)


def test_fused_paths_of_torch_call_the_layer():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 3, 16)
    with torch.inference_mode():
        expected = encoder(x)
        encoder.linear1 = PackedLinear(PackedMatrix.from_dense(encoder.linear1.weight), encoder.linear1.bias)
        assert torch.allclose(encoder(x), expected, atol=1e-5)


# --- whole models -----------------------------------------------------------------------------------------------------


class Reads(nn.Module):
    """Reads weights in every way but by calling their layers, and keeps them where a loader does not look."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(16, 16) for _ in range(4))
        self.rnn = nn.LSTM(16, 16, batch_first=True)
        self.kept = [self.c.weight]
        self.register_buffer("scale", torch.ones(16))
        self.scales = {"x": self.scale}
        self.close = self.closure(self.d.weight)

    @staticmethod
    def closure(weight):
        return lambda x: x @ weight.T

    def forward(self, x):
        x = F.linear(x, self.a.weight, self.a.bias)
        x = (self.b.weight @ x.transpose(1, 2)).transpose(1, 2) + x @ self.b.weight.T
        x = self.close(F.linear(x, self.kept[0])) * self.scales["x"]
        return self.rnn(x)[0]


@torch.no_grad()
def test_a_model_that_reads_its_weights_itself(tmp_path):
    torch.manual_seed(0)
    model, packed = Reads().eval(), {}
    model.scale.mul_(3)
    for name, p in find_scope(model, include=["a.weight", "b.weight", "c.weight", "d.weight"]).prunables.items():
        weight = model.get_parameter(name)
        weight.mul_(weight.abs() > weight.abs().median())
        packed[name] = (p, pack(p.matrix(weight), p.matrix(weight) != 0, Unstructured()))
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add_model(model, packed)
        writer.finish(None)
    x = torch.randn(2, 3, 16)
    expected = model(x)
    dense, fast = (load(tmp_path / "out", factory=Reads, packed=p) for p in (False, True))
    assert torch.allclose(dense(x), expected, atol=1e-6)
    for _ in range(3):
        assert torch.allclose(fast(x), expected, atol=1e-5)
    said = fast.winnow_packed
    assert said["a.weight"] == said["b.weight"] == "packed"
    assert "outside its layer" in said["c.weight"] and "outside its layer" in said["d.weight"]
    assert not any(t.is_meta for t in (*fast.parameters(), *fast.buffers(), *fast.kept))
    again = winnow.accelerate(fast, rows=4, cache=False)
    assert torch.allclose(again(x), expected, atol=1e-5)


def test_layers_tell_their_shape_to_the_dispatcher_without_expanding(monkeypatch):
    made, weight = linear()
    monkeypatch.setattr(PackedLinear, "dense", lambda self: pytest.fail("expanded"))
    seen = Layer("layer", made, LayerSpec(made), {1})
    assert seen.spec.shape == tuple(weight.shape) and isinstance(made.weight, LazyWeight)
