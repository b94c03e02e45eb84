"""What a scope accepts can be pruned, written, read, run packed and shrunk - for every kind of module and of tensor."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import winnow
from winnow.calibrate.windows import update_windows
from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.masks.scope import find_scope

ROWS, WIDE, TOKENS = torch.randn(24, 16), torch.randn(24, 6, 16), torch.randint(0, 20, (24, 6))
SPACE = {1: torch.randn(12, 4, 12), 2: torch.randn(12, 4, 7, 7), 3: torch.randn(12, 4, 5, 5, 5)}


class Chain(nn.Module):
    """A module under test between two layers, by a function that calls it."""

    def __init__(self, inner, width, use, first=None):
        super().__init__()
        self.first = nn.Linear(16, 16) if first is None else first
        self.inner, self.last, self.use = inner, nn.Linear(width, 3), use

    def forward(self, x):
        return self.last(torch.relu(self.use(self.inner, self.first(x))))


class Raw(nn.Module):
    """Parameters that belong to no layer: a matrix, a cube, a number, nothing, and complex ones."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(16, 16) / 4)
        self.cube = nn.Parameter(torch.randn(3, 4, 5))
        self.number, self.nothing = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 4))
        self.turn = nn.Parameter(torch.randn(16, 16, dtype=torch.cfloat) / 4)
        self.hidden, self.out = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.hidden(x @ self.matrix)) * self.number + self.cube.sum() + self.nothing.sum()
        return self.out((x.to(torch.cfloat) @ self.turn).real)


def convolutions(kind, **settings):
    return nn.Sequential(kind(4, 8, 3, **settings), nn.ReLU(), kind(8, 12, 3, **settings), nn.ReLU(), kind(12, 4, 1))


CASES = {
    "conv1d": (lambda: convolutions(nn.Conv1d, padding=1), SPACE[1], ()),
    "conv2d in groups": (lambda: convolutions(nn.Conv2d, groups=4, padding=1, padding_mode="reflect"), SPACE[2], ()),
    "conv2d around": (
        lambda: convolutions(nn.Conv2d, dilation=2, padding="same", padding_mode="circular"),
        SPACE[2],
        (),
    ),
    "conv3d": (lambda: convolutions(nn.Conv3d, padding=1), SPACE[3], ()),
    "transposed 1d in groups": (lambda: convolutions(nn.ConvTranspose1d, groups=2), SPACE[1], ("0.weight", "2.weight")),
    "transposed 2d": (
        lambda: convolutions(nn.ConvTranspose2d, stride=2, padding=1),
        SPACE[2],
        ("0.weight", "2.weight"),
    ),
    "transposed 3d": (lambda: convolutions(nn.ConvTranspose3d, dilation=2), SPACE[3], ("0.weight", "2.weight")),
    "bilinear": (lambda: Chain(nn.Bilinear(16, 16, 12), 12, lambda m, x: m(x, x)), ROWS, ("inner.weight",)),
    "embedding": (
        lambda: Chain(nn.Linear(16, 16), 16, lambda m, x: m(x.mean(1)), first=nn.Embedding(20, 16)),
        TOKENS,
        ("first.weight",),
    ),
    "embedding bag": (
        lambda: Chain(nn.Linear(16, 16), 16, lambda m, x: m(x), first=nn.EmbeddingBag(20, 16)),
        TOKENS,
        ("first.weight",),
    ),
    "lstm": (lambda: Chain(nn.LSTM(16, 12, batch_first=True), 12, lambda m, x: m(x)[0][:, -1]), WIDE, ("inner",)),
    "gru": (lambda: Chain(nn.GRU(16, 12, batch_first=True), 12, lambda m, x: m(x)[0][:, -1]), WIDE, ("inner",)),
    "attention": (
        lambda: Chain(nn.MultiheadAttention(16, 2, batch_first=True), 16, lambda m, x: m(x, x, x)[0].mean(1)),
        WIDE,
        (),
    ),
    "a norm and a bias": (lambda: Chain(nn.LayerNorm(16), 16, lambda m, x: m(x)), ROWS, ("inner.weight", "first.bias")),
    "raw matrix": (Raw, ROWS, ("matrix",)),
    "raw cube": (Raw, ROWS, ("cube", "number", "nothing", "turn")),
}


def made(case):
    torch.manual_seed(1)
    return CASES[case][0]().eval()


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt", "reconstruct"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_accepted_comes_back_the_same_from_everywhere(case, method, tmp_path):
    _, data, include = CASES[case]
    model = made(case)
    settings = {"settings": {"steps": 20}} if method == "reconstruct" else {}
    result = winnow.compress(
        model, data, sparsity=0.5, method=method, include=include, task="none", baselines="none", speed=False, **settings
    )  # fmt: skip
    result.save(tmp_path / "out")
    loaded = winnow.load(tmp_path / "out", factory=lambda: made(case)).eval()
    packed = winnow.load(tmp_path / "out", factory=lambda: made(case), packed=True).eval()
    with torch.no_grad():
        wanted = result.model(data)
        assert torch.equal(loaded(data), wanted)
        assert torch.allclose(packed(data), wanted, atol=1e-4)
    before, after = made(case).state_dict(), loaded.state_dict()
    pruned = {layer.name: layer.zeros for layer in result.layers}
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        if name in pruned:
            assert int((tensor == 0).sum()) == pruned[name]
        elif method != "reconstruct" or tensor.ndim > 1:  # which fits biases, norms and single numbers too
            assert torch.equal(tensor, before[name]), name
        assert torch.equal(model.state_dict()[name], before[name])  # what was given stays
    winnow.shrink(loaded, data[:2])


def test_no_weight_to_remove_is_said_and_not_taken():
    scope = find_scope(Raw(), include=["number", "nothing", "turn"])
    assert not {"number", "nothing", "turn"} & scope.prunables.keys()
    assert [note.partition(" ")[0] for note in scope.notes[:3]] == ["number", "nothing", "turn"]


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "new weight_norm", "orthogonal"])
def test_a_recomputed_weight_stays_dense_with_the_reason(wrap, tmp_path):
    def build():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            {
                "weight_norm": nn.utils.weight_norm,
                "spectral_norm": nn.utils.spectral_norm,
                "new weight_norm": nn.utils.parametrizations.weight_norm,
                "orthogonal": nn.utils.parametrizations.orthogonal,
            }[wrap](model[0])
        return model.eval()

    model = build()
    with torch.no_grad():
        model(ROWS)
    result = winnow.compress(model, ROWS, sparsity=0.5, method="wanda", task="none", baselines="none", speed=False)
    assert [layer.name for layer in result.layers] == ["2.weight"]
    reasons = {s.name: s.reason for s in find_scope(model, include=["0.*"]).skipped if s.name.startswith("0.")}
    assert any(reason.startswith("recomputed at each call") for reason in reasons.values())
    result.save(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(winnow.load(tmp_path / "out", factory=build).eval()(ROWS), result.model(ROWS))
    alone = nn.Sequential(build()[0])
    with pytest.raises(InputError, match="make them permanent first"):
        find_scope(alone)


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize(
    "dims, settings, larger",
    [
        (1, dict(stride=2, padding=1, output_padding=1, groups=2), 0),
        (2, dict(stride=3, padding=2, dilation=2, groups=3), 0),
        (2, dict(stride=2), 1),
        (3, dict(stride=2, dilation=1, groups=6), 0),
        (2, dict(padding=2), 0),
    ],
)
def test_the_windows_of_a_transposed_convolution_are_what_it_multiplies(dims, settings, larger, gram):
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    layer = kind(6, 12, 3, bias=False, **settings).double()
    x = torch.randn(2, 6, *(5, 4, 3)[:dims], dtype=torch.float64)
    size = [n + larger for n in layer(x).shape[2:]] if larger else None
    y = layer(x, output_size=size).transpose(0, 1).flatten(1)
    p = find_scope(nn.Sequential(layer), include=["0.weight"]).prunables["0.weight"]
    weight = p.matrix(layer.weight.detach())
    assert torch.equal(p.restore(weight), layer.weight)
    stats = InputStats.stacked(p.parts, p.cols, gram=gram, device="cpu")
    update_windows(stats, layer, x, size)
    rows = p.rows // p.parts
    for g, found in enumerate(stats):
        band, out = weight[g * rows : (g + 1) * rows], y[g * rows : (g + 1) * rows]
        assert found.tokens == y.shape[1]
        assert torch.allclose(band @ found.sum, out.sum(1))
        if gram:
            assert torch.allclose((band @ found.gram.double() * band).sum(1), out.square().sum(1), rtol=1e-4)


def test_dead_channels_around_a_transposed_convolution_go():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 10, 3), nn.ReLU(), nn.Conv2d(10, 2, 1))
    with torch.no_grad():
        for rows in (model[0].weight[:3], model[2].weight[:, 4:6]):
            rows.zero_()
        model[0].bias[:3], model[2].bias[4:6] = 0, 0
    x = torch.randn(2, 3, 9, 9)
    small = winnow.shrink(model, x)
    assert (small.model[0].out_channels, small.model[2].in_channels, small.model[2].out_channels) == (5, 5, 8)
    with torch.no_grad():
        assert torch.allclose(small.model(x), model(x), atol=1e-5)


@pytest.mark.parametrize("name", ["a/b", "x" * 300, "größe", "A b|c", "-", "a[0]"])
def test_modules_of_any_name(name, tmp_path):
    def build():
        torch.manual_seed(1)
        model = nn.Sequential()
        model.add_module(name, nn.Linear(16, 16))
        model.add_module("mid", nn.Linear(16, 16))
        model.add_module("out", nn.Linear(16, 3))
        return model

    result = winnow.compress(
        build(), ROWS, sparsity=0.5, method="wanda", include=(f"{name}.weight",), task="none", baselines="none",
        speed=False, out=tmp_path / "out",
    )  # fmt: skip
    assert {layer.name for layer in result.layers} == {f"{name}.weight", "mid.weight"}
    assert int((winnow.load(tmp_path / "out", factory=build).state_dict()[f"{name}.weight"] == 0).sum()) == 128
