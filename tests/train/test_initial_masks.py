"""Masks that training from scratch starts from, against numpy; and what is left of the initialisation under them."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from small import classifier, convnet, images, points
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.train import SET, SNIP, Attached, Fixed, Gradual, GraSP, RandomMasks, RigL, SignIn, SynFlow, attach

X, Y = points()
Y = torch.as_tensor(Y)
BATCHES = [(X[:32].double(), Y[:32]), (X[32:64].double(), Y[32:64])]


def begun(model: nn.Module, method: Any, **options: Any) -> Attached:
    return attach(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), method, **options)


def plain(sizes=(12, 9, 8, 3), dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).to(dtype)


def lowest_go(scores: dict[str, np.ndarray], zeros: int) -> dict[str, np.ndarray]:
    """One ranking of float32 scores over all tensors; the first of equals goes first."""
    flat = np.concatenate([s.ravel() for s in scores.values()]).astype(np.float32)
    keep = np.ones(len(flat), dtype=bool)
    keep[np.argsort(flat, kind="stable")[:zeros]] = False
    parts = np.split(keep, np.cumsum([s.size for s in scores.values()])[:-1])
    return {n: k.reshape(len(s), -1) for (n, s), k in zip(scores.items(), parts)}


def require_masks(attached: Attached, expected: dict[str, np.ndarray]) -> None:
    assert all(np.array_equal(attached.keeps[n].numpy(), k) for n, k in expected.items())
    assert attached.zeros == sum(int((~k).sum()) for k in expected.values())


@pytest.mark.parametrize("kind", ["no norm", "batch norm"])
def test_snip_is_the_top_of_weight_times_gradient(kind):
    """Over two batches, and where batch norms normalize by the one batch, in the mode of training."""
    if kind == "no norm":
        model, batches = plain(), BATCHES
    else:
        x, y = images()
        model, batches = convnet().double(), [(x[:40].double(), torch.as_tensor(y[:40]))]
    weights = dict(find_scope(model).prunables)
    before = copy.deepcopy(model)
    twin = copy.deepcopy(model).train()
    loss = sum(F.cross_entropy(twin(x), y) for x, y in batches) / len(batches)
    scores = {
        n: (twin.get_parameter(n) * g).abs()
        for n, g in zip(weights, torch.autograd.grad(loss, [twin.get_parameter(n) for n in weights]))
    }
    model.train()
    attached = begun(model, SNIP(0.6, batches, max_rate=1.0))
    zeros = round(0.6 * attached.numel)
    require_masks(attached, lowest_go({n: s.detach().numpy() for n, s in scores.items()}, zeros))
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(b, before.get_buffer(n)) for n, b in model.named_buffers())


def test_snip_breaks_ties_by_place_and_leaves_something_of_every_tensor():
    model = plain((4, 4, 4, 3))
    for p in model.parameters():
        nn.init.zeros_(p)  # all scores are zero
    attached = begun(model, SNIP(0.5, [(torch.ones(2, 4).double(), torch.zeros(2).long())], max_rate=1.0))
    gone = torch.cat([~k.flatten() for k in attached.keeps.values()])
    assert gone[: len(gone) // 2].all() and not gone[len(gone) // 2 :].any()
    attached.detach()
    spread = begun(plain(), SNIP(0.9, BATCHES, max_rate=0.92))
    assert spread.zeros == round(0.9 * spread.numel)
    assert all(int((~k).sum()) <= 0.92 * k.numel() for k in spread.keeps.values())


def test_grasp_is_the_ranking_by_an_explicit_hessian():
    model = plain((6, 5, 4, 3))
    batches = [(x[:, :6], y) for x, y in BATCHES]
    names = list(find_scope(model).prunables)
    shapes = [model.get_parameter(n).shape for n in names]
    flat = torch.cat([model.get_parameter(n).detach().flatten() for n in names])
    x, y = (torch.cat(parts) for parts in zip(*batches))

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes)}
        return F.cross_entropy(functional_call(model, weights, (x,)) / 200, y)

    gradient = torch.autograd.functional.jacobian(loss, flat)
    found = (flat * (torch.autograd.functional.hessian(loss, flat) @ gradient)).numpy()
    parts = np.split(found, np.cumsum([s.numel() for s in shapes])[:-1])
    scores = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes)}
    attached = begun(model, GraSP("70%", batches, max_rate=1.0))
    require_masks(attached, lowest_go(scores, round(0.7 * attached.numel)))


def test_synflow_is_a_hundred_rounds_of_products():
    model = plain((10, 9, 8, 7, 3))
    names = list(find_scope(model).prunables)
    weights = [np.abs(m.weight.detach().numpy()) for m in model if isinstance(m, nn.Linear)]
    masks = [np.ones_like(w, dtype=bool) for w in weights]
    prunable = [f"{i}.weight" in names for i, m in enumerate(model) if isinstance(m, nn.Linear)]
    numel = sum(w.size for w, p in zip(weights, prunable) if p)
    zeros = round(0.9 * numel)
    for k in range(1, 101):
        now = [w * m for w, m in zip(weights, masks)]
        flows = []
        for i, w in enumerate(now):  # what comes in from inputs of one, times what goes on to the outputs
            into, out = np.ones(now[0].shape[1]), np.ones(now[-1].shape[0])
            for before in now[:i]:
                into = before @ into
            for after in reversed(now[i + 1 :]):
                out = after.T @ out
            flows.append(np.where(masks[i], out[:, None] * w * into[None, :], -1.0))
        target = zeros if k == 100 else numel - round(numel * (1 - zeros / numel) ** (k / 100))
        scores = {n: f / max(f.max() for f in flows) for n, f in zip(names, [f for f, p in zip(flows, prunable) if p])}
        found = iter(lowest_go(scores, target).values())
        masks = [next(found) if p else m for m, p in zip(masks, prunable)]
    attached = begun(model, SynFlow(0.9, BATCHES_OF_TEN, max_rate=1.0))
    require_masks(attached, {n: m for n, m in zip(names, [m for m, p in zip(masks, prunable) if p])})
    require_masks(
        begun(plain((10, 9, 8, 7, 3)), SynFlow(0.9, [(torch.full((2, 10), 7.0), Y[:2])], max_rate=1.0)),
        {n: k.numpy() for n, k in attached.keeps.items()},
    )


BATCHES_OF_TEN = [(x[:, :10], y) for x, y in BATCHES]


@pytest.mark.parametrize("make", [SNIP, GraSP, SynFlow])
def test_sign_in_on_top_keeps_the_masks_and_the_weights(make):
    def trained() -> Attached:
        model = classifier()
        method = SignIn.of(10, make("80%", [(X[:64], Y[:64])], rescale=True))
        attached = begun(model, method)
        first, weights = attached.masks, {n: w.detach().clone() for n, w in attached.weights.items()}
        assert attached.zeros == round(0.8 * attached.numel)
        for name, (m, w) in attached.factors.tensors.items():
            torch.testing.assert_close((m * w).detach(), weights[name][attached.keeps[name]])
        for step in range(10):
            attached.optimizer.zero_grad()
            F.cross_entropy(model(X[32 * step : 32 * step + 32]), Y[32 * step : 32 * step + 32]).backward()
            attached.optimizer.step()
        assert attached.masks == first
        model = attached.detach()
        zeros = sum(int((model.get_parameter(n) == 0).sum()) for n in weights)
        assert zeros == attached.zeros
        return attached

    one, two = trained(), trained()
    assert one.masks == two.masks
    assert all(torch.equal(w, two.weights[n]) for n, w in one.weights.items())


METHODS = {
    "random": lambda **o: RandomMasks(0.9, **o), "balanced": lambda **o: RandomMasks(0.9, distribution="balanced", **o),
    "rigl": lambda **o: RigL(0.9, end=9, every=3, **o), "set": lambda **o: SET(0.9, end=9, every=3, **o),
    "snip": lambda **o: SNIP(0.9, BATCHES, **o), "grasp": lambda **o: GraSP(0.9, BATCHES, **o),
    "synflow": lambda **o: SynFlow(0.9, BATCHES, iterations=5, **o),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_what_is_left_of_a_unit_has_the_norm_that_it_had(name):
    before = {n: p.detach().numpy().copy() for n, p in plain((12, 40, 30, 3)).named_parameters()}
    for options, scaled in (({"rescale": True}, True), ({}, True), ({"rescale": False}, False)):
        attached = begun(plain((12, 40, 30, 3)), METHODS[name](**options))
        for n, weight in attached.weights.items():
            keep, found = attached.keeps[n].numpy(), weight.detach().numpy()
            for row, kept, old in zip(found, keep, before[n]):
                left = np.sqrt((old[kept] ** 2).sum())
                factor = np.sqrt((old**2).sum()) / left if scaled and kept.any() else 1.0
                np.testing.assert_allclose(row, np.where(kept, old * factor, 0.0), rtol=1e-12)
        others = {n: p for n, p in attached.model.named_parameters() if n not in attached.weights}
        assert others and all(np.array_equal(p.detach().numpy(), before[n]) for n, p in others.items())


def test_by_default_networks_with_batch_norms_are_not_rescaled():
    x, y = images()
    for model, batch, same in ((classifier(), (X, Y), False), (convnet(), (x, torch.as_tensor(y)), True)):
        before = copy.deepcopy(model)
        attached = begun(model, SNIP(0.8, [batch]))
        for n, weight in attached.weights.items():
            keep = attached.scope.prunables[n].restore(attached.keeps[n])
            assert torch.equal(weight[keep], before.get_parameter(n)[keep]) == same
        attached.detach()


def test_weights_that_are_trained_or_pruned_already_keep_their_values():
    keeps = {n: torch.rand(p.rows, p.cols) < 0.3 for n, p in find_scope(plain()).prunables.items()}
    for method in (Fixed(keeps), SignIn(keeps, every=5), Gradual(0.5, end=1, every=1)):
        model = plain()
        before = copy.deepcopy(model)
        attached = begun(model, method)
        attached.optimizer.step()  # without gradients it moves nothing
        assert attached.zeros > 0
        for n, weight in attached.weights.items():
            torch.testing.assert_close(weight[attached.keeps[n]], before.get_parameter(n)[attached.keeps[n]])


def test_a_resumed_training_is_not_rescaled_again():
    attached = begun(plain(), RandomMasks(0.8))
    model, state = copy.deepcopy(attached.model), attached.state_dict()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    resumed = begun(model, RandomMasks(0.8), state=state)
    assert all(torch.equal(p, before[n]) for n, p in resumed.model.named_parameters())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SNIP(0.5, []), r"give it in a list, such as \[next"),
        (lambda: SNIP(0.5, BATCHES[0]), r"a single one: give it in a list"),
        (lambda: SNIP(0.5, {"x": X, "labels": Y}), r"a single one: give it in a list"),
        (lambda: SNIP(0.5, BATCHES, loss=lambda model, batch: model(batch[0])), "return the mean over the batch"),
        (lambda: SNIP(0.5, BATCHES, max_rate=0), "such as 0.99"),
        (lambda: GraSP(0.5, BATCHES, temperature=0), "200 as in the paper"),
        (lambda: SynFlow(0.5, BATCHES, iterations=0), "iterations of 1 or more"),
        (lambda: RandomMasks(0.5, distribution="even"), "erk, uniform, balanced"),
    ],
)
def test_bad_input_leaves_the_model_as_it_was(make, words):
    model = plain()
    with pytest.raises(InputError, match=words):
        begun(model, make())
    assert all(torch.equal(p, plain().get_parameter(n)) for n, p in model.named_parameters())
    begun(model, Fixed()).detach()  # and free


def _worker(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    attached = begun(
        nn.parallel.DistributedDataParallel(classifier()),
        SNIP(0.7, [(X[64 * rank : 64 * rank + 64], Y[64 * rank : 64 * rank + 64])]),
    )
    torch.save((dict(attached.keeps), attached.model.state_dict()), f"{folder}/{rank}")
    dist.destroy_process_group()


def test_two_processes_have_the_masks_of_the_first(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    (one, first), (two, second) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    alone = begun(classifier(), SNIP(0.7, [(X[:64], Y[:64])]))
    other = begun(classifier(), SNIP(0.7, [(X[64:128], Y[64:128])]))
    assert all(torch.equal(one[n], two[n]) and torch.equal(one[n], k) for n, k in alone.keeps.items())
    assert all(torch.equal(t, second[n]) for n, t in first.items()) and alone.masks != other.masks
