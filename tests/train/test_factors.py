"""Weights trained through factors, theta = m * w, in every loop: against loops written by hand with autograd through both."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from small import Classifier, classifier, points
from sparse_methods import Product, magnitude_keeps
from winnow.errors import FormatError, InputError
from winnow.train import Attached, Fixed, attach
from winnow.train.examples import Examples
from winnow.train.task.run import Run
from winnow.train.task.training import Training

X, Y = points()
X, Y = X.double(), torch.as_tensor(Y)
OPTIMIZERS: dict[str, Any] = {
    "momentum, coupled decay": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
}
sgd, adamw = OPTIMIZERS["momentum, coupled decay"], OPTIMIZERS["adamw"]


def loss_on(rows: Any, model: Any) -> torch.Tensor:
    return F.cross_entropy(model(X[rows]), Y[rows])


def losses(steps: int) -> list[Any]:
    """Of a step each, functions of the model."""
    return [partial(loss_on, slice(32 * s, 32 * s + 32)) for s in range(steps)]


class ByHand:
    """m and w are tensors of their own; the model is run on M * m * w. Nothing of winnow's training is in it."""

    def __init__(self, model: nn.Module, make: Any, masks: dict[str, torch.Tensor]) -> None:
        self.model, self.masks, self.steps = copy.deepcopy(model), masks, 0
        self.plain = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if n not in masks}
        self.m = {n: torch.empty_like(model.get_parameter(n)).requires_grad_() for n in masks}
        self.w = {n: torch.empty_like(model.get_parameter(n)).requires_grad_() for n in masks}
        self._split({n: model.get_parameter(n).detach() * masks[n] for n in masks})
        self.optimizer = make([*self.plain.values(), *self.m.values(), *self.w.values()])

    def weights(self) -> dict[str, torch.Tensor]:
        return {**self.plain, **{n: self.m[n] * self.w[n] * mask for n, mask in self.masks.items()}}

    @torch.no_grad()
    def _split(self, theta: dict[str, torch.Tensor]) -> None:
        for n, t in theta.items():
            self.m[n].copy_(((1 + torch.sqrt(1 + 4 * t * t)) / 2).sqrt())
            self.w[n].copy_(t / self.m[n])

    def step(self, loss: Any, clip: float | None = None) -> None:
        self.optimizer.zero_grad()
        weights = {n: t.detach().requires_grad_() for n, t in self.weights().items()}
        loss(lambda *x, **named: functional_call(self.model, weights, x, named)).backward()
        gradients = {n: w.grad * self.masks.get(n, 1) for n, w in weights.items()}
        if clip is not None:
            norm = sum(float((g**2).sum()) for g in gradients.values()) ** 0.5
            gradients = {n: g * min(1.0, clip / (norm + 1e-6)) for n, g in gradients.items()}
        torch.autograd.backward(list(self.weights().values()), list(gradients.values()))
        self.optimizer.step()
        self.steps += 1
        if self.steps % 3 == 0:
            self._split({n: (self.m[n] * self.w[n] * mask).detach() for n, mask in self.masks.items()})

    def require_same(self, model: nn.Module) -> None:
        for n, w in self.weights().items():
            torch.testing.assert_close(model.get_parameter(n), w, rtol=1e-8, atol=1e-10, msg=n)
            moved = (w.detach() - self.model.get_parameter(n).detach())[self.masks.get(n, ...)]
            assert float(moved.abs().max()) > 1e-4, n  # it was trained


def begun(make: Any, hands_make: Any = None) -> tuple[Attached, ByHand]:
    model = classifier().double()
    masks = magnitude_keeps(model)
    hand = ByHand(model, hands_make or make, masks)
    return attach(model, make(list(model.parameters())), Product(masks)), hand


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loop(name, clip):
    """Outside of the steps model and optimizer are as with plain weights, and after detach they are plain."""
    attached, hand = begun(OPTIMIZERS[name])
    model, optimizer = attached.model, attached.optimizer
    for loss in losses(8):
        optimizer.zero_grad()
        for _ in range(2):  # accumulated
            (loss(model) / 2).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        hand.step(loss, clip)
    hand.require_same(model)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert list(model.state_dict()) == list(hand.model.state_dict())
    assert attached.detach() is model and not attached.factors.tensors
    hand.require_same(model)
    losses(1)[0](model).backward()
    optimizer.step()
    state = [(w.shape, t.shape) for w in attached.weights.values() for t in optimizer.state[w].values() if t.ndim]
    assert state and all(a == b for a, b in state)


def test_several_optimizers():
    model = classifier().double()
    masks = magnitude_keeps(model)
    hand = ByHand(model, sgd, masks)
    matrices = [b.up.weight for b in model.blocks]
    two = [sgd(matrices), sgd([p for p in model.parameters() if all(p is not m for m in matrices)])]
    attached = attach(model, two, Product(masks))
    for loss in losses(6):
        model.zero_grad()
        loss(model).backward()
        for optimizer in two:
            optimizer.step()
        hand.step(loss)
    hand.require_same(model)
    assert attached.step == 6


def test_closures():
    attached, hand = begun(sgd)
    for step, loss in enumerate(losses(6)):

        def closure(loss: Any = loss) -> torch.Tensor:
            attached.optimizer.zero_grad()
            found = loss(attached.model)
            found.backward()
            return found

        expected = float(loss(attached.model).detach())
        found = attached.optimizer.step(closure) if step % 2 else attached.optimizer.step(closure=closure)
        assert float(found.detach()) == expected
        hand.step(loss)
    hand.require_same(attached.model)


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling(fused):
    """With and without a clip in between; the step with an infinite gradient is skipped."""
    attached, hand = begun(OPTIMIZERS["adamw fused" if fused else "adamw"])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    for step, loss in enumerate(losses(6)):
        attached.optimizer.zero_grad()
        scaler.scale(loss(attached.model)).backward()
        if step == 3:
            next(iter(attached.weights.values())).grad.fill_(torch.inf)
        else:
            hand.step(loss, 0.1 if step % 2 else None)
        if step % 2:
            scaler.unscale_(attached.optimizer)
            nn.utils.clip_grad_norm_(attached.model.parameters(), 0.1)
        scaler.step(attached.optimizer)
        scaler.update()
    assert attached.step == hand.steps == 5
    hand.require_same(attached.model)


def test_weights_that_come_back_or_that_somebody_writes_are_split_anew():
    attached, _ = begun(adamw)
    attached.method.reset = 100
    for loss in losses(4):
        attached.optimizer.zero_grad()
        loss(attached.model).backward()
        attached.optimizer.step()
    name, weight = next(iter(attached.weights.items()))
    back, moments = ~attached.keeps[name], attached.optimizer.state[weight]
    kept, moved = attached.factors.tensors[name].detach().clone(), moments["exp_avg"].clone()
    assert kept.shape == moved.shape == (2, int((~back).sum()))  # of what stays, no more
    attached.set({name: torch.ones_like(back)})
    factors = attached.factors.tensors[name].detach()
    assert bool((factors[0][back] == 1).all()) and not factors[1][back].count_nonzero()
    assert torch.equal(factors[:, ~back], kept) and not weight[back].count_nonzero()
    assert torch.equal(moments["exp_avg"][:, ~back], moved) and not moments["exp_avg"][:, back].count_nonzero()
    loss(attached.model).backward()
    attached.optimizer.step()
    assert weight[back].count_nonzero() == back.sum()
    others = factors[:, 1:].clone()
    with torch.no_grad():
        weight[0] = 7.0
    torch.testing.assert_close(attached.factors.state()[name].prod(0)[0], torch.full_like(weight[0], 7.0).detach())
    assert torch.equal(factors[:, 1:], others)
    attached.set({name: ~back})  # and gone again
    assert attached.factors.tensors[name].shape == moments["exp_avg"].shape == (2, int((~back).sum()))
    assert torch.equal(attached.factors.tensors[name].prod(0), weight[~back])


def test_an_error_inside_a_step_leaves_no_factors_behind():
    attached, _ = begun(sgd)
    with pytest.raises(ZeroDivisionError):
        attached.optimizer.step(lambda: 1 / 0)
    held = attached.optimizer.param_groups[0]["params"]
    attached.release()
    assert list(map(id, held)) == list(map(id, attached.model.parameters()))


def test_factors_of_another_shape_type_or_method_are_refused():
    attached, _ = begun(sgd)
    for wrong in (lambda w: w, lambda w: torch.stack([w, w]).float()):
        model, method = classifier().double(), Product({})
        method.split = lambda name, weight, wrong=wrong: wrong(weight)
        with pytest.raises(InputError, match=r"give torch\.float64 \[k, 48, 24\]"):
            attach(model, sgd(model.parameters()), method)
    with pytest.raises(InputError, match="of another method, Product, and this is Fixed"):
        attach(model, sgd(model.parameters()), Fixed(), state=attached.state_dict())


def test_a_run(tmp_path):
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    given = Training(
        classifier().double(), Examples([(X, Y)], 32), loss, 8, clip=0.1, schedule=lambda progress: 1.0, lr=0.05,
        optimizer=lambda p, lr, decay: sgd(p),
    )  # fmt: skip
    masks = magnitude_keeps(given.model)
    run, hand = Run(given, method=Product(masks), folder=tmp_path), ByHand(given.model, sgd, masks)
    run.advance_to(8)
    for step in range(8):
        hand.step(partial(loss_on, run._draw(step, "main")), 0.1)
    hand.require_same(run.model)
    run.save()
    with pytest.raises(FormatError, match="of another training"):
        Run(given, method=Fixed(masks), folder=tmp_path)


@pytest.mark.hf
def test_the_trainer(tmp_path):
    """With its own accumulation and clipping."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from winnow.train import WinnowCallback

    class Model(Classifier):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": F.cross_entropy(super().forward(x), labels)}

    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=16, gradient_accumulation_steps=2, seed=3,
        max_grad_norm=0.1, optim="sgd", optim_args="momentum=0.9", learning_rate=0.05, lr_scheduler_type="constant",
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    torch.manual_seed(1)
    model = Model().double()
    masks = magnitude_keeps(model)
    hand = ByHand(model, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), masks)
    data = [{"x": x, "labels": y} for x, y in zip(X[:384], Y)]
    run = transformers.Trainer(model=model, args=args, train_dataset=data, callbacks=[WinnowCallback(Product(masks))])
    transformers.set_seed(3)
    drawn = list(run.get_train_dataloader())
    run.train()
    for step in range(8):
        hand.step(lambda call, step=step: sum(call(**b)["loss"] for b in drawn[2 * step : 2 * step + 2]) / 2, 0.1)
    hand.require_same(run.model)
