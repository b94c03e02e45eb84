"""Whatever is compared is what it is called: the dense row is the dense model's, at every verb and after every candidate."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import winnow
from small import Classifier, classifier, convnet, images, points, save_llama, sentences, trained, write_lines
from winnow.compression.hosts import Loaded
from winnow.errors import WinnowError
from winnow.masks.scope import find_scope
from winnow.measure.identity import Identity, digest
from winnow.models.source import open_model
from winnow.verbs.evaluate import evaluate

QUICK = dict(speed=False, samples=64)


class Counting(nn.Module):
    """A forward that changes buffers of its own, one of them in no state dict, one with two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Classifier()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2, 3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        self.seen += 1
        self.last.copy_(out[:2].detach() if len(out) > 1 else out.detach().expand(2, 3))
        return out + 0 * self.seen


def accuracy(model: nn.Module, x: torch.Tensor, y: np.ndarray) -> float:
    with torch.no_grad():
        return 100 * float((copy.deepcopy(model).eval()(x).argmax(-1).numpy() == y).mean())


def made(kind: str) -> tuple[nn.Module, tuple, tuple]:
    """A model whose accuracy is neither perfect nor chance, data, and evaluation data."""
    if kind == "cnn":
        (x, y), (ex, ey) = images(300, 1), images(300, 2)
        return trained(convnet(), x, y, 12), (x, y), (ex, ey)
    (x, y), (ex, ey) = points(600, seed=1), points(500, seed=2)
    model = Counting() if kind == "counting" else classifier()
    if kind == "half":
        return trained(model, x, y, 12).to(torch.bfloat16), (x, y), (ex, ey)
    return trained(model, x, y, 12), (x, y), (ex, ey)


BUDGETS = {
    "one": dict(sparsity=0.8, baselines="rtn"),
    "several": dict(sparsity=[0.95, 0.5], baselines="all"),
    "goal": dict(max_drop=30.0),
    "fitted": dict(sparsity=0.9, method="distil", settings={"steps": 3, "batch": 16}, baselines="rtn"),
    "reconstructed": dict(sparsity=0.9, method="reconstruct", settings={"steps": 3}, baselines="rtn"),
}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", ["mlp", "cnn", "counting", "half"])
def test_the_dense_row_is_the_dense_model_whatever_was_tried_before(kind, budget):
    if kind == "half" and budget == "fitted":
        pytest.skip("training is in float32")
    model, data, (x, y) = made(kind)
    before = {n: digest(t) for n, t in model.state_dict().items()}
    options = dict(dtype="float32") if kind == "half" else {}
    result = winnow.compress(model, data, eval=(x, y), **{**QUICK, **BUDGETS[budget], **options})
    own = accuracy(copy.deepcopy(model).float() if kind == "half" else model, x, y)
    row = next(c for c in result.report.candidates if c.kind == "dense")
    assert row.quality == pytest.approx(own, abs=1e-6)
    chosen = result.report.picked
    taken = copy.deepcopy(result.model).float() if kind == "half" else result.model
    assert chosen.quality == pytest.approx(accuracy(taken, x, y), abs=1e-6)
    assert chosen.drop == pytest.approx(own - chosen.quality, abs=1e-6)
    assert {n: digest(t) for n, t in model.state_dict().items()} == before  # what was given is as it was


def test_the_goal_is_kept_against_the_dense_model():
    model, data, (x, y) = made("mlp")
    for limit in (3.0, 12.0):
        result = winnow.compress(model, data, eval=(x, y), max_drop=limit, method="magnitude", **QUICK)
        assert accuracy(model, x, y) - accuracy(result.model, x, y) <= limit


def test_a_model_that_is_not_the_dense_one_is_never_measured_as_it(monkeypatch):
    model, data, evaluation = made("mlp")
    monkeypatch.setattr(Loaded, "restore", lambda self, scope: None)
    with pytest.raises(WinnowError, match="fault of winnow"):
        winnow.compress(model, data, eval=evaluation, max_drop=50.0, method="magnitude", **QUICK)


@pytest.mark.parametrize("name", ["inner.embed.weight", "inner.blocks.1.up.weight", "inner.head.bias", "seen", "last"])
def test_every_tensor_counts_for_the_identity(name):
    model = Counting()
    identity = Identity(model)
    assert identity.changed(model) == []
    tensor = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name]
    with torch.no_grad():
        tensor.view(-1)[-1] += 1e-7
    assert identity.changed(model) == [name] and identity.changed(model, apart=[name]) == []
    with pytest.raises(WinnowError, match=name):
        identity.check(model, "the dense model")


def test_tied_tensors_are_spared_under_all_their_names():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    identity = Identity(model)
    with torch.no_grad():
        model[0].weight.zero_()
    assert identity.changed(model, apart=["0.weight"]) == [] and len(identity.changed(model)) == 2


def test_restored_is_the_given_model_to_the_bit_buffers_too():
    model, (x, _), _ = made("counting")
    host = Loaded(open_model(model))
    scope = find_scope(host.model)
    with torch.no_grad():
        host.model(x)
        for t in (*host.model.parameters(), *host.model.buffers()):
            if t.ndim <= 1 or t is host.model.last:
                t.add_(1)
    with host.dense(scope) as dense:
        assert host.identity.changed(dense) == []
        assert all(torch.equal(a, b) for a, b in zip(dense.state_dict().values(), model.state_dict().values()))


def test_evaluation_leaves_a_model_in_memory_as_it_is():
    model, _, (x, y) = made("mlp")
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = evaluate(half, (x, y), reference=model)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    assert found.reference_value == pytest.approx(accuracy(model, x, y), abs=1e-6)


@pytest.mark.hf
def test_a_reference_that_is_not_the_parent_is_said(tmp_path):
    pytest.importorskip("transformers")
    parent = save_llama(tmp_path / "parent")
    other = save_llama(tmp_path / "other", layers=2)
    text = str(write_lines(tmp_path / "a.txt", sentences(60)))
    winnow.compress(parent, sparsity=0.5, method="magnitude", baselines="none", speed=False, out=tmp_path / "small")
    for reference, said in ((parent, False), (other, True)):
        notes = evaluate(tmp_path / "small", text, length=16, reference=reference).notes
        assert any("is not the model that" in n for n in notes) is said
