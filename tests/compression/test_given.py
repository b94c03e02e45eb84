"""A module handed over in memory: wrappers, masks, copies, types - the same for every verb; and data that does not fit."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import winnow
from winnow.errors import InputError
from winnow.masks.outputs import output_weights
from winnow.masks.scope import find_scope
from winnow.masks.unwrap import plain_module, unwrap, working_copy

X, Y = torch.randn(64, 20), torch.randint(0, 5, (64,))
PLAIN = {"baselines": "none", "speed": False}


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)).eval()


class Keeper(nn.Module):
    """Keeps what cannot be copied: its last output, deep in containers, a lock, a generator, an open file."""

    def __init__(self):
        super().__init__()
        self.body, self.seen, self.lock = mlp(), [], threading.RLock()
        self.numbers, self.file = (i for i in range(3)), open(__file__)  # noqa: SIM115

    def forward(self, x):
        out = self.body(x)
        self.seen.append({"out": (out, self.body[0].weight)})
        return out


def kept():
    model = Keeper()
    model(X[:2])
    return model


def masked():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[2], "bias", 0.25)
    prune.ln_structured(model[2], "weight", 0.25, 2, 0)
    prune.l1_unstructured(model[2], "weight", 0.25)
    return model


WRAPPERS = {
    "parallel": lambda: nn.DataParallel(mlp()),
    "compiled": lambda: torch.compile(mlp(), backend="eager"),
    "compiled parallel": lambda: torch.compile(nn.DataParallel(mlp()), backend="eager"),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(nn.DataParallel(mlp())),
    "traced": lambda: torch.fx.symbolic_trace(mlp()),
    "kept": kept,
    "masked": masked,
    "training": lambda: mlp().train(),
}
VERBS = {
    "compress": lambda m: {x.name for x in winnow.compress(m, X, sparsity=0.5, method="wanda", task="none", **PLAIN).layers},
    "find_ticket": lambda m: set(winnow.find_ticket(m, (X, Y), sparsity=0.5, steps=2, lr=1e-2).masks),
    "shrink": lambda m: {n for n, p in winnow.shrink(m, X[:2]).model.named_parameters() if p.ndim > 1},
    "accelerate": lambda m: {d.name + ".weight" for d in winnow.accelerate(m, cache=False).winnow_dispatch},
    "inspect": lambda m: {x.name for x in winnow.inspect(m).layers if x.prunable},
    "evaluate": lambda m: winnow.evaluate(m, (X, Y)).n and set(),
    "find_scope": lambda m: set(find_scope(m).prunables),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_verb_sees_the_bare_model_and_leaves_the_given_one(wrapper, verb):
    model = WRAPPERS[wrapper]()
    if (wrapper, verb) == ("training", "accelerate"):
        with pytest.raises(winnow.InputError, match="eval"):
            VERBS[verb](model)
        return
    before, training = {n: t.clone() for n, t in model.state_dict().items()}, model.training
    start = "body." if wrapper == "kept" else ""
    names = {n.removeprefix(start) for n in VERBS[verb](model)}
    assert names <= {"0.weight", "2.weight", "4.weight"} and (names >= {"0.weight", "2.weight"} or verb == "evaluate")
    assert model.training == training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("what", ["parallel", "compiled", "averaged", "masked"])
def test_a_folder_of_a_wrapped_model_fits_the_bare_factory(what, tmp_path):
    model = WRAPPERS[what]()
    winnow.compress(model, sparsity=0.6, method="magnitude", **PLAIN).save(tmp_path / "out")
    winnow.load(tmp_path / "out", factory=mlp)


def test_masks_of_torch_are_zeros_of_the_weight():
    model = masked()
    with torch.no_grad():
        wanted = model(X)
    plain = plain_module(model)
    assert torch.equal(plain(X), wanted) and set(plain.state_dict()) == set(mlp().state_dict())
    zeros = sum(int((plain[i].weight == 0).sum()) for i in (0, 2))
    result = winnow.compress(model, method="zeros", **PLAIN)
    assert sum(layer.zeros for layer in result.layers) == zeros
    assert torch.equal(result.model(X), wanted)
    with pytest.raises(InputError, match=r"prune\.remove"):
        winnow.train.attach(model, torch.optim.SGD(model.parameters(), 0.1), winnow.train.Fixed({}))


def test_a_copy_of_what_cannot_be_copied_runs_apart():
    model = kept()
    copy = working_copy(model)
    assert copy.lock is model.lock and copy.seen is not model.seen and copy.body[0].weight is not model.body[0].weight
    with torch.no_grad():
        assert torch.equal(copy(X), model(X))
        copy.body[0].weight.zero_()
    assert bool(model.body[0].weight.any())


def test_a_compiled_part_is_called_by_its_plain_name():
    model = kept()
    model.body = torch.compile(model.body, backend="eager")
    assert set(find_scope(model).prunables) == {"body.0.weight", "body.2.weight"}
    assert hasattr(model.body, "_orig_mod") and unwrap(model) is model


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: torch.jit.trace(mlp(), X[:2]), "TorchScript"),
        (lambda: _sparse(), "to_dense"),
        (lambda: _like("FullyShardedDataParallel", "torch.distributed.fsdp"), "gather its state dict"),
        (lambda: _like("LoraLayer", "peft.tuners"), "winnow.train.merge"),
        (lambda: torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, torch.qint8), "quantized already"),
    ],
)
def test_what_cannot_be_worked_on_is_said_in_one_sentence(make, word):
    for verb in ("compress", "find_ticket", "find_scope"):
        with pytest.raises(InputError, match=word):
            VERBS[verb](make())


def _sparse():
    model = mlp()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    return model


def _like(name, module):
    """A model around a class that is called so: the package itself need not be here."""
    made = type(name, (nn.Module,), {"__module__": module})()
    made.inner = mlp()
    return nn.Sequential(made)


def test_lazy_modules_are_refused_and_not_filled_in():
    for verb in ("compress", "find_ticket", "shrink", "evaluate"):
        model = nn.Sequential(nn.LazyLinear(32), nn.Linear(32, 32), nn.Linear(32, 5))
        with pytest.raises(InputError, match=r"0\.weight is not initialised"):
            VERBS[verb](model)
        assert torch.nn.parameter.is_lazy(model[0].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_follows_the_arithmetic_and_types_come_back(dtype):
    model, x = mlp().to(dtype), X.to(dtype)
    for given in (x, (x, Y), (X, Y)):
        winnow.compress(model, given, sparsity=0.5, method="wanda", **PLAIN)
    ticket = winnow.find_ticket(model, (x, Y), sparsity=[0.3, 0.5], method="imp", steps=2, lr=1e-2)
    for found in (
        ticket.model,
        winnow.shrink(model, x[:2]).model,
        winnow.accelerate(model, example=x[:2], cache=False),
    ):
        assert {p.dtype for p in found.parameters()} == {dtype}
        assert found(x[:2]).dtype == dtype
    zeros = sum(int((ticket.model.get_parameter(n) == 0).sum()) for n in ticket.masks)
    assert zeros == ticket.ticket.zeros
    winnow.evaluate(model, (x, Y))
    assert {p.dtype for p in model.parameters()} == {dtype}  # not even the given one's


def test_a_forward_that_casts_by_itself_runs_in_its_own_type():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp().half()

        def forward(self, x):
            return self.body(x.half()).float()

    result = winnow.compress(Casts(), (X, Y), sparsity=0.5, method="wanda", **PLAIN)
    assert result.model(X).dtype == torch.float32
    assert winnow.evaluate(Casts(), (X, Y)).n == 64


def test_float64_is_not_rounded_on_the_way(tmp_path):
    model = mlp().double()
    winnow.compress(model, X.double(), sparsity=0.5, method="magnitude", task="none", **PLAIN).save(tmp_path / "out")
    loaded = winnow.load(tmp_path / "out", factory=lambda: mlp().double())
    assert torch.equal(loaded[4].weight, model[4].weight) and loaded[0].weight.dtype == torch.float64
    kept_ones = loaded[0].weight != 0
    assert torch.equal(loaded[0].weight[kept_ones], model[0].weight[kept_ones])


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.mid, self.out = nn.Linear(20, 32), nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, features, side):
        return self.out(torch.relu(self.mid(torch.relu(self.a(features) + self.b(side)))))


SIDE = torch.randn(64, 8)
FORMS = {
    "named": {"features": X, "side": SIDE},
    "named and labels": {"features": X, "side": SIDE, "labels": Y},
    "positional": (X, SIDE),
    "positional and labels": (X, SIDE, Y),
    "nested": ((X, SIDE), Y),
    "nested named": ({"side": SIDE, "features": X}, Y),
    "items": [((a, b), int(c)) for a, b, c in zip(X, SIDE, Y)],
    "loader": torch.utils.data.DataLoader([((a, b), int(c)) for a, b, c in zip(X, SIDE, Y)], batch_size=8),
}


@pytest.mark.parametrize("form", FORMS)
def test_several_inputs_reach_the_arguments_they_are_for(form):
    result = winnow.compress(Two(), FORMS[form], sparsity=0.5, method="wanda", **PLAIN)
    measured = "agreement" if form in ("named", "positional") else "accuracy"
    assert result.chosen.evaluation.metric == measured


def test_several_inputs_in_a_file(tmp_path):
    import numpy as np

    np.savez(tmp_path / "two.npz", features=X.numpy(), side=SIDE.numpy(), labels=Y.numpy())
    found = winnow.evaluate(Two(), str(tmp_path / "two.npz"))
    assert (found.metric, found.n) == ("accuracy", 64)


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        raise LookupError("my own error")


@pytest.mark.parametrize(
    "model, data, word",
    [
        (mlp, torch.randn(64, 21), r"\[8, 21\] float32"),
        (mlp, torch.randint(0, 9, (64, 20)), "int64"),
        (Raises, X, "my own error"),
        (Two, {"features": X, "other": SIDE}, "column"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_any_work(model, data, word, tmp_path):
    for task in ("none", "auto"):
        with pytest.raises(InputError, match=word):
            winnow.compress(model(), data, sparsity=0.5, method="wanda", task=task, out=tmp_path / "out", **PLAIN)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError):
        winnow.evaluate(model(), data)


@pytest.mark.parametrize("name", ["0.bias", "1.weight", "2.weight", "1.running_mean"])
def test_nan_anywhere_is_named_before_any_work(name):
    model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.Linear(32, 5), nn.Linear(5, 5)).eval()
    model.state_dict()[name][0] = float("nan")
    for call in (
        lambda: winnow.compress(model, sparsity=0.5, method="magnitude", **PLAIN),
        lambda: winnow.compress(model, (X, Y), sparsity=0.5, method="magnitude", **PLAIN),
        lambda: winnow.find_ticket(model, (X, Y), sparsity=0.5, steps=2),
        lambda: winnow.evaluate(model, (X, Y)),
    ):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            call()


def test_a_mask_of_minus_infinity_is_no_fault_and_an_answer_of_nan_is():
    class Model(nn.Module):
        def __init__(self, bad):
            super().__init__()
            self.body, self.bad = mlp(), bad
            self.register_buffer("mask", torch.full((5,), float("-inf")))

        def forward(self, x):
            out = self.body(x)
            return out + self.mask - self.mask if self.bad else torch.where(out > 99, self.mask, out)

    winnow.compress(Model(False), (X, Y), sparsity=0.5, method="magnitude", **PLAIN)
    winnow.find_ticket(Model(False), (X, Y), sparsity=0.5, steps=2)
    with pytest.raises(InputError, match="answers the calibration data with NaN"):
        winnow.compress(Model(True), (X, Y), sparsity=0.5, method="magnitude", **PLAIN)


class First(nn.Module):
    """The output layer is defined first."""

    def __init__(self):
        super().__init__()
        self.classifier, self.a, self.b = nn.Linear(32, 5), nn.Linear(20, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.classifier(torch.relu(self.b(torch.relu(self.a(x)))))


def test_the_output_layer_is_the_one_whose_output_leaves_the_model():
    for found in (
        {x.name for x in winnow.compress(First(), X, sparsity=0.5, method="wanda", task="none", **PLAIN).layers},
        set(winnow.find_ticket(First(), (X, Y), sparsity=0.5, steps=2).masks),
    ):
        assert found == {"a.weight", "b.weight"}
    guessed = find_scope(First())
    assert set(guessed.prunables) == {"classifier.weight", "a.weight"}
    assert guessed.notes[0].startswith("b.weight was taken for the output layer")
    assert guessed.notes == winnow.inspect(First()).notes
    assert find_scope(First(), include=["b"], exclude=["classifier"]).prunables.keys() == {"a.weight", "b.weight"}


class Flow(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c, self.how = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), how
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(torch.ones(1, 8))

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.how == "residual":
            return self.norm(h + self.b(h))
        if self.how == "scaled":
            return torch.softmax(self.norm(self.b(h)).view(-1, 2, 4).flatten(1) * self.scale + x, -1)
        if self.how == "summed":
            return self.b(x) + self.c(h)
        if self.how == "beside":
            return torch.cat([self.b(h), self.c(h)], -1)
        if self.how == "features":
            return {"features": h, "logits": self.c(self.b(h))}
        if self.how == "raw":
            return torch.nn.functional.linear(h, self.c.weight)
        with torch.no_grad():
            return self.c(h)


@pytest.mark.parametrize(
    "how, wanted",
    [
        ("residual", []),
        ("scaled", ["b.weight"]),
        ("summed", ["b.weight", "c.weight"]),
        ("beside", ["b.weight", "c.weight"]),
        ("features", ["c.weight"]),
        ("raw", ["c.weight"]),
        ("without gradients", None),
    ],
)
def test_outputs_are_followed_back_to_their_products(how, wanted):
    model, x = Flow(how), torch.randn(3, 8)
    model.a.weight.requires_grad_(False)
    model.train()
    assert output_weights(model, lambda: model(x)) == wanted
    assert model.training and not model.a.weight.requires_grad and model.b.weight.grad is None


def test_what_a_layer_is_decides_and_not_what_it_is_called():
    class Embedder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding_net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
            self.token_embed, self.o = nn.Linear(288, 16), nn.Linear(16, 4)

    assert set(find_scope(Embedder()).prunables) == {
        "embedding_net.0.weight",
        "embedding_net.2.weight",
        "token_embed.weight",
    }

    class Coincidence(nn.Module):  # three numbers of a shape, and a matrix with as many rows: no experts, no router
        def __init__(self, inner):
            super().__init__()
            self.inner, self.beside, self.last = inner, nn.Linear(10, 12), nn.Linear(12, 12)

    for inner in (nn.Bilinear(4, 5, 12), nn.Conv1d(6, 12, 3), nn.ConvTranspose1d(12, 6, 3)):
        scope = find_scope(Coincidence(inner))
        assert "beside.weight" in scope.prunables
        assert all(p.kind != "experts" for p in scope.prunables.values())


def test_names_with_brackets():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model.add_module("odd[1]", nn.Linear(4, 4))
    model.last = nn.Linear(4, 4)
    for pattern, gone in (
        ("layers[0].weight", {"layers.0.weight"}),
        ("layers[1]", {"layers.1.weight"}),
        ("layers.[01]", {"layers.0.weight", "layers.1.weight"}),
        ("odd[1]", {"odd[1].weight"}),
        ("odd[1].w*", {"odd[1].weight"}),
    ):
        every = {"layers.0.weight", "layers.1.weight", "odd[1].weight"}
        assert set(find_scope(model, exclude=[pattern]).prunables) == every - gone
