"""What a training costs: FLOPs against torch's own counter and sums by hand, bytes by hand, and where it is told."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from small import Classifier, classifier, points
from sparse_methods import random_keeps
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.scope import find_scope
from winnow.train import Fixed, Gradual, SignIn, attach, read_state, write_state

X, Y = points()
Y = torch.as_tensor(Y)


def begun(method=None, model=None, **options):
    model = model or classifier()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return attach(model, optimizer, method or Fixed(random_keeps(find_scope(model))), **options)


def train(attached, steps, micro=1):
    for number in range(steps):
        attached.optimizer.zero_grad()
        for _ in range(micro):
            F.cross_entropy(attached.model(X[:32] + number / 1e3), Y[:32]).backward()
        attached.optimizer.step()
    return attached


class Images(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=groups)
        self.back = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.body, self.head = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.back(self.grouped(self.first(x)).relu()).relu()
        return self.head(self.body(x.flatten(2).transpose(1, 2)).relu()).mean(1)


@pytest.mark.parametrize("micro, groups", [(1, 1), (2, 1), (1, 4)])
def test_flops_are_those_of_torchs_counter(micro, groups):
    """A gradient of the input is asked for, so that the backward is twice the forward in the first layer too. (torch's
    formula takes the backward of a grouped convolution for that of a dense one.)"""
    model = Images(groups)
    attached = begun(model=model)
    x = torch.randn(5, 4, 12, 12, requires_grad=True)
    for step in range(3):
        attached.optimizer.zero_grad()
        with FlopCounterMode(display=False) as counter:
            for _ in range(micro):
                with FlopCounterMode(display=False) as forward:
                    loss = model(x).square().mean()
                loss.backward()
        attached.optimizer.step()
        with torch.no_grad():
            model.eval()(x)  # an evaluation is no part of a step
            model.train()
        if step == 0:
            assert attached.cost().dense is None and "not counted before" in str(attached)
    cost = attached.cost()
    assert cost.dense == 3 * micro * forward.get_total_flops() and cost.dense_total == 3 * cost.dense
    if groups == 1:
        assert cost.dense == counter.get_total_flops()
    assert all(not m._forward_hooks for m in model.modules())
    share = {n: float(k.double().mean()) for n, k in attached.keeps.items()}
    places = {"first": 36, "grouped": 16, "back": 16, "body": 64, "head": 64}
    weights = {n: model.get_parameter(f"{n}.weight").numel() for n in places}
    by_hand = sum(weights[n] * p * share.get(f"{n}.weight", 1.0) for n, p in places.items())
    assert cost.sparse == pytest.approx(3 * 2 * 5 * micro * by_hand, rel=1e-12)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6)
        self.same = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, ids: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.attention(self.table(ids), context, value=context)[0]
        return self.lstm(self.same(x, x, x, need_weights=False)[0])[0]


def test_flops_of_attention_and_recurrent_layers_by_hand():
    model = Sequences()
    attached = begun(Fixed(), model, include=["table.weight"])
    ids, context = torch.randint(11, (3, 7)), torch.randn(3, 4, 6)
    for _ in range(2):
        model(ids, context).square().mean().backward()
        attached.optimizer.step()
    tokens, others = 3 * 7, 3 * 4
    attention = (8 * 8 + 8 * 8) * tokens + 2 * 8 * 6 * others + 4 * 8 * 8 * tokens
    recurrent = sum(w.numel() for w in model.lstm.parameters() if w.ndim == 2) * tokens
    assert attached.cost().dense == 3 * 2 * (attention + recurrent)
    assert attached.cost().unseen == ()


def test_gpt2s_linear_layers():
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(Conv1D(5, 7))
    scope = Scope({"0.weight": Prunable("0.weight", "0", "conv1d", (7, 5), transposed=True)})
    attached = begun(Fixed(), model, scope=scope)
    for _ in range(2):
        model(torch.randn(2, 3, 7)).sum().backward()
        attached.optimizer.step()
    assert attached.cost().dense == 3 * 2 * 7 * 5 * 6


def test_what_cannot_be_counted_is_called_unknown():
    model = nn.Sequential(nn.Linear(12, 24), nn.Linear(24, 3))
    model[0].forward = None  # never called: the loop multiplies by itself
    attached = begun(Fixed(random_keeps(find_scope(model, include=["1.weight"]))), model, include=["1.weight"])
    for _ in range(3):
        attached.optimizer.zero_grad()
        F.cross_entropy(model[1](F.linear(X[:32], model[0].weight)), Y[:32]).backward()
        attached.optimizer.step()
    cost = attached.cost()
    assert (cost.dense, cost.dense_total, cost.unseen) == (None, None, ("0.weight",))
    assert "training FLOPs: unknown" in str(cost) and "0.weight" in str(cost)
    assert "winnow_dense_flops" not in cost.metrics()


def test_what_is_computed_again_in_the_backward_is_not_counted_again():
    from torch.utils.checkpoint import checkpoint

    plain, again = classifier(), classifier()
    block = again.blocks[0].forward
    costs = [train(begun(model=plain), 2).cost().dense]
    again.blocks[0].forward = lambda x: checkpoint(block, x, use_reentrant=False)
    costs.append(train(begun(model=again), 2).cost().dense)
    assert costs[0] == costs[1] is not None


def test_sums_follow_the_masks_and_a_checkpoint(tmp_path):
    def method():
        return Gradual(0.8, end=6, every=2)

    whole, first = begun(method()), begun(method())
    densities = []
    whole.optimizer.register_step_pre_hook(
        lambda *_: densities.append({n: float(k.double().mean()) for n, k in whole.keeps.items()})
    )
    train(whole, 9)
    cost = whole.cost()
    rest = 6 * 32 * (whole.model.head.weight.numel() + whole.model.embed.weight.numel())
    per_tensor = {n: 6 * 32 * w.numel() for n, w in whole.weights.items()}
    by_hand = sum(rest + sum(per_tensor[n] * share for n, share in step.items()) for step in densities)
    assert cost.sparse_total == pytest.approx(by_hand, rel=1e-6) and cost.dense_total == 9 * cost.dense
    assert cost.changes == 3 and cost.change > 0  # after steps 2, 4 and 6
    train(first, 4)
    write_state(tmp_path / "state", first.state_dict())
    second = begun(method(), copy.deepcopy(first.model), state=read_state(tmp_path / "state"))
    train(second, 5)
    assert second.cost().sparse_total == pytest.approx(cost.sparse_total, rel=1e-6)
    assert second.cost().dense_total == cost.dense_total


@pytest.mark.parametrize("make, moments", [(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 1), (torch.optim.Adam, 2)])
@pytest.mark.parametrize("sign_in", [False, True])
def test_bytes_by_hand(make, moments, sign_in):
    model = classifier()
    keeps = random_keeps(find_scope(model), 0.1)
    method = SignIn(Fixed(keeps), every=100) if sign_in else Fixed(keeps)
    attached = attach(model, make(model.parameters()), method)
    assert attached.cost().plain is None
    train(attached, 1)
    numel, prunable = sum(p.numel() for p in model.parameters()), attached.numel
    kept, tensors = prunable - attached.zeros, len(list(model.parameters()))
    steps = 4 * tensors * (moments == 2)  # Adam's counts, a float each
    cost = attached.cost()
    assert cost.parameters == 4 * numel and cost.plain == 4 * numel * (1 + moments) + steps
    stepped = numel - prunable + 2 * kept if sign_in else numel
    assert cost.optimizer == 4 * stepped * moments + steps
    assert cost.factors == (4 * 2 * kept if sign_in else 0)
    assert cost.masks == prunable + (8 * kept if sign_in else 0)  # a byte a weight, and places
    assert f"{cost.memory / cost.plain:.2f}× that of plain training" in str(cost)
    if sign_in:  # the promise for 90%
        assert cost.memory < 1.3 * begun_bytes(make, keeps)


def begun_bytes(make, keeps):
    model = classifier()
    return train(attach(model, make(model.parameters()), Fixed(keeps)), 1).cost().memory


def test_it_is_logged_once_with_times(caplog):
    with caplog.at_level(logging.INFO, logger="winnow"):
        attached = train(begun(), 19)
        assert not caplog.records
        train(attached, 25)
    (record,) = caplog.records
    assert record.levelno == logging.INFO and record.getMessage().startswith("Fixed: memory ")
    assert "of a step's" in record.getMessage() and "in theory sparse" in record.getMessage()
    cost = attached.cost()
    assert 0 < cost.hooks < cost.step
    assert repr(attached) in str(attached) and str(cost) in str(attached)


def test_copies_made_while_layers_are_watched_are_plain():
    attached = train(begun(), 1)
    for other in (copy.deepcopy(attached.model), pickle.loads(pickle.dumps(attached.model))):
        F.cross_entropy(other(X[:32]), Y[:32]).backward()
    assert b"winnow.train" not in pickle.dumps(nn.Sequential(*attached.model.blocks[0].children()))
    train(attached, 2)
    assert attached.cost().dense == 3 * 2 * 32 * sum(p.numel() for p in attached.model.parameters() if p.ndim == 2)
    attached = train(begun(), 1)
    attached.release()
    assert all(not m._forward_hooks for m in attached.model.modules())


@pytest.mark.hf
def test_the_trainers_log(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from winnow.train import WinnowCallback

    class Model(Classifier):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": F.cross_entropy(super().forward(x), labels)}

    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, logging_steps=3, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=16, dataloader_pin_memory=False,
    )  # fmt: skip
    model = Model()
    data = [{"x": x, "labels": y} for x, y in zip(X[:96], Y)]
    callback = WinnowCallback(Fixed(random_keeps(find_scope(model))))
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data, callbacks=[callback])
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert [entry["winnow_dense_flops"] for entry in steps] == [s * 3 * 2 * 16 * weights for s in (3, 6)]
    for entry in steps:
        assert 0 < entry["winnow_sparse_flops"] < entry["winnow_dense_flops"] and entry["winnow_memory_ratio"] > 1
        assert 0 < entry["winnow_hook_seconds"] < entry["winnow_step_seconds"]
