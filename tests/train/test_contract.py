"""What every training method keeps, in every loop. A new one is found by its line in ``winnow.train.methods``.

Arguments go by the names that the methods share (``OFFERED``). Methods of the tests come along: one that grows weights back, one
that trains factors in the weights' places, and ways of training weights around methods that change the masks.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from functools import reduce
from operator import add
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small import Classifier, classifier, points
from sparse_methods import Grow, Product, random_keeps
from winnow.masks.mask import MaskSet
from winnow.masks.scope import find_scope
from winnow.train import ACDC, HAM, STR, Attached, Gradual, RigL, SignIn, attach, read_state, write_state
from winnow.train.examples import Examples
from winnow.train.methods import METHODS
from winnow.train.methods.by_name import fields_of, make
from winnow.train.task import run as run_module
from winnow.train.task.run import Run
from winnow.train.task.training import Training

X, Y = points()
Y = torch.as_tensor(Y)
OFFERED: dict[str, Any] = {
    "masks": random_keeps(find_scope(classifier())), "sparsity": 0.7, "begin": 1, "end": 9, "every": 2, "seed": 0,
    "batches": [(X[:48], Y[:48]), (X[48:96], Y[48:96])], "structure": "1:4",
}  # fmt: skip
STEPS = 10


def acdc_sign_in(sparsity: float, begin: int, end: int, every: int) -> Any:
    """Peste et al. 2021 with Gadhikar et al. 2025."""
    return SignIn(ACDC(sparsity, begin=begin, end=end, every=every), every=3)


def gradual_sign_in(sparsity: float, begin: int, end: int, every: int) -> Any:
    """Zhu and Gupta 2017 with Gadhikar et al. 2025."""
    return SignIn(Gradual(sparsity, begin=begin, end=end, every=every), every=3)


def rigl_sign_in(sparsity: float, end: int, every: int) -> Any:
    """Evci et al. 2020 with Gadhikar et al. 2025."""
    return SignIn(RigL(sparsity, end=end, every=every), every=3)


def rigl_ham(sparsity: float, end: int, every: int) -> Any:
    """Evci et al. 2020 with Jacobs et al. 2025."""
    return HAM(RigL(sparsity, end=end, every=every), alpha=20)


def str_ham(sparsity: float, begin: int, end: int, every: int) -> Any:
    """Kusupati et al. 2020 with Jacobs et al. 2025."""
    return HAM(STR(sparsity, begin=begin, end=end, every=every), alpha=20)


COMBINED: tuple[Any, ...] = (acdc_sign_in, gradual_sign_in, rigl_sign_in, rigl_ham, str_ham)
TRIED = {**METHODS, "grow": Grow, "product": Product, **{make.__name__: make for make in COMBINED}}
each = pytest.mark.parametrize("name", TRIED)


def method(name: str) -> Any:
    accepted = inspect.signature(TRIED[name]).parameters
    return TRIED[name](**{n: v for n, v in OFFERED.items() if n in accepted})


def begun(name: str, **options: Any) -> Attached:
    model = classifier()
    return attach(model, torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1), method(name), **options)


def train(attached: Attached, first: int = 0, last: int = STEPS) -> Attached:
    for step in range(first, last):
        rows = slice(32 * step, 32 * step + 32)
        attached.optimizer.zero_grad()
        F.cross_entropy(attached.model(X[rows]), Y[rows]).backward()
        attached.optimizer.step()
        require_zeros(attached)
    return attached


def require_zeros(attached: Attached) -> None:
    """Weights, gradients and moments are zero wherever the masks say so."""
    for name, weight in attached.weights.items():
        keep = attached.scope.prunables[name].restore(attached.keeps[name])
        state = [t for t in attached.optimizer.state[weight].values() if t.ndim]
        assert len(state) == 2
        if getattr(attached.method, "trains_pruned", False):  # in factors and moments of whole tensors
            assert {t.shape[1:] for t in (*state, attached.factors.tensors[name])} == {weight.shape}
            assert not weight.detach()[~keep].count_nonzero(), name
            continue
        if name in attached.factors:  # they and their moments exist of what stays only
            laid = weight.shape if bool(keep.all()) else (int(keep.sum()),)
            assert {t.shape[1:] for t in (*state, attached.factors.tensors[name])} == {laid}
            state = []
        for tensor in (weight.detach(), *([] if weight.grad is None else [weight.grad]), *state):
            assert not tensor[~keep].count_nonzero(), name
    assert attached.zeros == attached.masks.zeros


def require_same(one: nn.Module, other: nn.Module) -> None:
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def require_end(name: str, masks: MaskSet) -> None:
    accepted = inspect.signature(TRIED[name]).parameters
    if "sparsity" in accepted:
        assert masks.zeros == round(OFFERED["sparsity"] * masks.numel)
    if "masks" in accepted:
        assert masks == MaskSet(OFFERED["masks"])
    if "structure" in accepted:
        groups = torch.cat([m.unpack().reshape(-1, 4) for m in masks.values()])
        assert bool((groups.sum(1) == 1).all())
    assert 0 < masks.zeros < masks.numel


@each
def test_exact_zeros_and_the_same_masks_again(name):
    one, two = train(begun(name), last=STEPS - 1), train(begun(name))
    before = dict(one.keeps)
    train(one, STEPS - 1)
    require_end(name, one.masks)
    assert one.masks == two.masks
    require_same(one.model, two.model)
    one.detach()
    for n, weight in one.matrices().items():
        kept = one.keeps[n] & before[n]  # what has just come back is zero too
        assert not weight[~one.keeps[n]].count_nonzero() and weight[kept].count_nonzero() == kept.sum()
    assert float((one.model.head.weight - classifier().head.weight).detach().abs().max()) > 1e-3  # it was trained


@each
@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("torch_save", [True, False])
def test_a_loop_resumed(name, attach_first, torch_save, tmp_path):
    """Bit for bit what was not interrupted, with the state from a file of winnow's or of torch's."""
    whole, first = train(begun(name)), train(begun(name), 0, 5)
    if torch_save:
        torch.save(first.state_dict(), tmp_path / "state")
        saved = torch.load(tmp_path / "state", weights_only=True)
    else:
        write_state(tmp_path / "state", first.state_dict())
        saved = read_state(tmp_path / "state")
    moments = copy.deepcopy(first.optimizer.state_dict())
    if attach_first:
        second = begun(name)
        second.model.load_state_dict(first.model.state_dict())
        second.optimizer.load_state_dict(moments)
        second.load_state_dict(saved)
    else:
        model = classifier()
        model.load_state_dict(first.model.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
        optimizer.load_state_dict(moments)
        second = attach(model, optimizer, method(name), state=saved)
    assert second.step == 5 and second.masks == first.masks
    train(second, 5)
    require_same(whole.model, second.model)
    assert second.masks == whole.masks


@each
def test_a_run_interrupted(name, tmp_path, monkeypatch):
    """After every step: weights, masks, losses and cost are those of a run in one go; density counts as it was."""

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    given = Training(classifier(), Examples([(X, Y)], 32), loss, STEPS, lr=1e-2, weight_decay=0.1)
    densities: list[float] = []
    whole = Run(given, method=method(name))
    whole.attached.optimizer.register_step_pre_hook(lambda *_: densities.append(whole.density))
    whole.advance_to(STEPS)
    require_zeros(whole.attached)
    require_end(name, whole.attached.masks)
    assert whole.cost.weighted == reduce(add, densities) and len(densities) == STEPS
    monkeypatch.setattr(run_module, "SAVE_EVERY", 0.0)
    for stop in range(1, STEPS + 1):
        again = Run(given, method=method(name), folder=tmp_path)
        assert again.step == again.attached.step == stop - 1
        again.advance_to(again.step + 1)
    require_same(whole.model, again.model)
    assert again.attached.masks == whole.attached.masks
    assert (again.losses, again.cost.weighted) == (whole.losses, whole.cost.weighted)


@pytest.mark.hf
@each
def test_the_trainer_resumed(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from winnow.train import WinnowCallback

    class Model(Classifier):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            logits = super().forward(x)
            return logits if labels is None else {"loss": F.cross_entropy(logits, labels)}

    def trainer(*callbacks: Any) -> Any:
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=16, learning_rate=1e-2, save_steps=5,
            weight_decay=0.1, report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, seed=3,
        )  # fmt: skip
        data = [{"x": x, "labels": y} for x, y in zip(X, Y)]
        torch.manual_seed(1)
        return transformers.Trainer(model=Model(), args=args, train_dataset=data, callbacks=list(callbacks))

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            require_zeros(callbacks[-1].attached)

    callbacks, models = [], []
    for resumed in (None, str(tmp_path / "checkpoint-5")):
        callbacks.append(WinnowCallback(method(name)))
        run = trainer(callbacks[-1], Watch())
        run.train(resume_from_checkpoint=resumed)
        require_end(name, callbacks[-1].masks)
        models.append(run.model)
    require_same(*models)
    assert callbacks[0].masks == callbacks[1].masks


GIVEN: dict[str, Any] = {"seed": 0, "batches": [(X[:32], Y[:32])], "loss": lambda m, b: F.cross_entropy(m(b[0]), b[1])}


@pytest.mark.parametrize("name", METHODS)
def test_by_name_as_by_class(name):
    """What a recipe can say of it - plain values, the rest by the number of steps - trains as the class does."""
    offered = {n: OFFERED[n] for n in fields_of(name) if n in OFFERED and n not in ("begin", "masks")}
    model = classifier()
    if "sparsity" not in offered:  # it takes the model's zeros
        with torch.no_grad():
            for n, p in model.named_parameters():
                p[p.abs() < 0.1] = 0.0 if n.startswith("blocks") else 0.1
    made = make(name, offered, steps=STEPS, **GIVEN)
    assert type(made) is METHODS[name]
    attached = train(attach(model, torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1), made))
    assert 0 < attached.zeros < attached.numel
    if "sparsity" in offered:
        assert attached.zeros == round(OFFERED["sparsity"] * attached.numel)
    defaults = make(name, {n: v for n, v in offered.items() if n in ("sparsity", "structure")}, steps=STEPS, **GIVEN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is worked out from the steps fits into them
        model = classifier()
        train(attach(model, torch.optim.AdamW(model.parameters(), 1e-2), defaults)).detach()


@each
def test_the_docstring_names_its_source(name):
    text = TRIED[name].__doc__ or ""
    assert re.search(r"[A-Z]\w+( et al\.| and [A-Z]\w+)? \d{4}", text), f"{name}: name authors and year of its source"
