"""The one training function: masks in every forward, randomness of its own, look-aheads that leave no trace."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from baseline_samples import task
from isp_samples import cross_entropy, mlp, noisy, rows, sgd, training
from winnow.errors import InputError
from winnow.masks import ranking
from winnow.masks.global_ranking import global_magnitude
from winnow.masks.mask import MaskSet
from winnow.run.executor import Local
from winnow.seeding import seed_of, seeded
from winnow.tickets.methods.isp.candidates import gather
from winnow.tickets.methods.isp.look_ahead import Protocol, look_ahead, protocols
from winnow.train import Gradual
from winnow.train.task.run import Position, Run


def pruned(run: Run, share: float = 0.5) -> Run:
    run.prune(global_magnitude(run.attached.matrices(), run.keeps, round(share * run.attached.numel)))
    return run


class Attention(nn.Module):
    """MultiheadAttention reads out_proj.weight itself and never calls out_proj."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 6)).reshape(len(x), 2, 8)
        for block in self.blocks:
            x = x + block(x, x, x)[0]
        return self.head(x.mean(1))


class Mixing(torch.optim.Optimizer):
    """An update that is not zero where gradient and moments are."""

    def __init__(self, parameters, lr):
        super().__init__(list(parameters), {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * (p.grad + 0.1))


@pytest.mark.parametrize("model", [Attention, mlp])
@pytest.mark.parametrize("optimizer", [sgd, lambda p, lr, wd: Mixing(p, lr)])
def test_every_forward_uses_masked_weights(model, optimizer):
    """In the run and in its candidates, under momentum, weight decay and updates that mix entries."""
    seen = []

    def loss(given, batch):
        seen.extend(
            float(p.matrix(given.get_parameter(n))[~run.keeps[n]].abs().sum().detach())
            for n, p in run.scope.prunables.items()
        )
        return cross_entropy(given, batch)

    run = Run(training(model(), steps=8, loss=loss, optimizer=optimizer, lr=0.05))
    assert len(run.scope.prunables) == (4 if model is Attention else 2)
    run.advance_to(run.step + 2)
    pruned(run)
    run.advance_to(run.step + 2)
    look_ahead(run, Protocol(0, 0.1, 0.1), 2, round(0.7 * run.attached.numel))
    run.advance_to(run.step + 2)
    assert len(seen) == 8 * len(run.scope.prunables) and not any(seen)
    run.finish()
    assert run.attached.detach() is run.model
    assert sum(int((m == 0).sum()) for m in run.attached.matrices().values()) == run.attached.zeros


def everything(run: Run) -> dict:
    found = {f"p.{n}": p for n, p in run.model.named_parameters()} | {f"b.{n}": b for n, b in run.model.named_buffers()}
    for i, state in run.optimizer.state_dict()["state"].items():
        found |= {f"o.{i}.{k}": v for k, v in state.items() if torch.is_tensor(v)}
    return {n: t.detach().clone() for n, t in found.items()}


@pytest.mark.parametrize("optimizer", [None, sgd])
def test_a_look_ahead_leaves_no_trace(optimizer):
    """Weights, batch norms, other buffers, moments, mode, generators: all as they were."""
    model = mlp()
    model.register_buffer("hidden", torch.zeros(3), persistent=False)

    def count(module, _):
        module.hidden += float(module.training)

    model.register_forward_pre_hook(count)
    for p in model[6].parameters():
        p.requires_grad_(False)
    options = {} if optimizer is None else {"optimizer": optimizer}
    run = pruned(Run(training(model, loss=noisy, **options)))
    run.advance_to(run.step + 3)
    before, generators = everything(run), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    losses, step, keeps = list(run.losses), run.step, dict(run.keeps)
    found = look_ahead(run, Protocol(1, 0.05, 0.1, 0.5), 4, 200, sums=True)
    after = everything(run)
    assert list(after) == list(before) and all(torch.equal(before[n], t) for n, t in after.items())
    assert found.masks.zeros == 200 and (run.cost.look_ahead, run.cost.main, found.cost.look_ahead) == (4, 3, 4)
    assert run.cost.weighted == pytest.approx(7 * run.density)
    assert run.losses == losses and run.step == step and run.keeps == keeps and not run.model.training
    assert torch.equal(torch.get_rng_state(), generators[0]) and random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])
    assert any(not torch.equal(found.scores[n], m.abs()) for n, m in run.attached.matrices().items())
    for p in run.model[6].parameters():
        assert not p.requires_grad


def test_what_comes_after_does_not_depend_on_candidates():
    plain, busy = Run(training(loss=noisy)), Run(training(loss=noisy))
    plain.advance_to(plain.step + 6)
    busy.advance_to(busy.step + 2)
    for number in range(3):
        look_ahead(busy, Protocol(number, 0.1, 0.0), 2, 50)
    busy.advance_to(busy.step + 4)
    a, b = everything(plain), everything(busy)
    assert all(torch.equal(a[n], b[n]) for n in a) and plain.losses == busy.losses


def test_a_candidate_that_fails_leaves_the_run_whole():
    def loss(model, batch):
        value = cross_entropy(model, batch)
        return value * float("inf") if model.training and blow else value

    blow = False
    run = Run(training(loss=loss))
    run.advance_to(run.step + 2)
    before, blow = everything(run), True
    with pytest.raises(InputError, match=r"candidate 3 diverged at a learning rate of 0\.7 .*multipliers"):
        look_ahead(run, Protocol(2, 0.7, 0.0), 2, 50)
    blow, after = False, everything(run)
    assert all(torch.equal(before[n], t) for n, t in after.items())
    run.advance_to(run.step + 1)


def test_candidates_differ_by_number_step_and_protocol():
    run = Run(training())
    run.advance_to(run.step + 2)
    masks = [
        look_ahead(run, p, 3, 130).masks
        for p in (Protocol(0, 0.05, 0.0), Protocol(1, 0.05, 0.0), Protocol(0, 0.1, 0.0))
    ]
    assert masks[0] == look_ahead(run, Protocol(0, 0.05, 0.0), 3, 130).masks
    assert masks[0] != masks[1] and masks[0] != masks[2]


def test_a_share_of_the_data_is_that_share():
    run = Run(training(size=10))  # 16 mini-batches
    drawn = [run._draw(step, "x", 0.25) for step in range(12)]
    assert len({int(i) for index in drawn for i in index}) == 40
    assert all(torch.equal(drawn[k], drawn[k + 4]) for k in range(8))
    whole = [run._draw(step, "x") for step in range(32)]
    assert sorted(int(i) for index in whole[:16] for i in index) == list(range(160))
    assert sorted(int(i) for index in whole[16:] for i in index) == list(range(160))
    assert not torch.equal(torch.cat(whole[:16]), torch.cat(whole[16:]))


def test_seeded_is_its_own_and_gives_back():
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = (float(torch.rand(1)), random.random(), float(np.random.rand()))
    found = []
    for start in (4, 5):
        torch.manual_seed(start), random.seed(start), np.random.seed(start)
        with seeded(1, "a", 2):
            found.append((float(torch.rand(1)), random.random(), float(np.random.rand())))
    with pytest.raises(KeyError), seeded(1):
        raise KeyError
    assert found[0] == found[1]
    assert (float(torch.rand(1)), random.random(), float(np.random.rand())) == expected
    assert len({seed_of(1, "main", step) for step in range(2000)}) == 2000
    assert all(0 <= seed_of(1, "main", step) < 1 << 64 for step in range(50))


@pytest.mark.parametrize("optimizer", [None, sgd])
def test_a_run_is_ordinary_training(optimizer):
    """Against torch's own loop over the same batches: schedule, clipping, decay."""
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    given = training(model, steps=9, clip=0.5, **({} if optimizer is None else {"optimizer": optimizer}))
    run = Run(given)
    run.advance_to(9)
    x, y = rows()
    if optimizer is None:
        other = torch.optim.AdamW(
            [{"params": [model[0].weight, model[2].weight], "weight_decay": 0.01},
             {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0}], lr=0.01)  # fmt: skip
    else:
        other = sgd(model.parameters(), 0.01, 0.01)
    losses = []
    for step in range(9):
        for group in other.param_groups:
            group["lr"] = 0.01 * (1 - step / 9)
        index = run._draw(step, "main")
        other.zero_grad()
        loss = F.cross_entropy(model(x[index]), y[index])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        other.step()
        losses.append(float(loss.detach()))
    assert run.losses == pytest.approx(losses, rel=1e-5)
    for ours, theirs in zip(run.model.parameters(), model.parameters()):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert run.lr == 0.0 and Run(given, first_step=3).lr == pytest.approx(0.01 * 6 / 9)


def test_masks_only_lose_weights():
    run = pruned(Run(training()))
    back = {n: torch.ones_like(k) for n, k in run.keeps.items()}
    with pytest.raises(InputError, match="only lose weights"):
        run.prune(back)
    with pytest.raises(InputError, match="brings weights back"):
        run.prune(MaskSet(back))
    with pytest.raises(InputError, match="bool"):
        run.prune({n: k[:, :1] for n, k in run.keeps.items()})
    fewer = MaskSet(global_magnitude(run.attached.matrices(), run.keeps, 200))
    run.prune(fewer)
    assert run.attached.masks == fewer and run.density == pytest.approx(1 - 200 / 264)


def test_a_position_is_where_another_run_starts():
    given = training()
    run = pruned(Run(given))
    run.advance_to(run.step + 3)
    position = run.position()
    kept = {n: t.clone() for n, t in position.state.items()}
    other = Run(given, start=position, first_step=run.step, steps=run.total)
    assert other.attached.masks == run.attached.masks and other.step == 3
    run.advance_to(run.step + 2)
    assert all(torch.equal(kept[n], t) for n, t in position.state.items())
    assert all(torch.equal(kept[n], t) for n, t in other.model.state_dict().items())
    assert Run(given, start=Position(keeps=position.keeps)).attached.masks == other.attached.masks
    rising = Run(given, method=Gradual(0.8, end=4), start=Position(keeps=position.keeps), first_step=3)
    assert rising.attached.masks == other.attached.masks
    rising.advance_to(rising.step + 1)
    assert rising.attached.zeros == round(0.8 * rising.attached.numel)


def test_losses_without_gradient_and_schedules_too_short():
    with pytest.raises(InputError, match="one number with a gradient"):
        Run(training(loss=lambda m, b: cross_entropy(m, b).detach())).advance_to(1)
    with pytest.raises(InputError, match="one number with a gradient"):
        Run(training(loss=lambda m, b: m(b[0]))).advance_to(1)
    run = Run(training(steps=3))
    with pytest.raises(InputError, match="give more steps"):
        run.advance_to(4)
    frozen = mlp().requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        Run(training(frozen))


def test_bfloat16_products_keep_float32_weights():
    run = Run(training(precision="bfloat16"))
    run.advance_to(run.step + 2)
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert run.losses != Run(training()).losses and all(math.isfinite(v) for v in run.losses)


def test_protocols_cycle_rates_and_draw_decays():
    found = protocols(5, 0.1, multipliers=(0.5, 1.0), decays=(0.0, 0.3), share=0.5, seed=3)
    assert [p.lr for p in found] == pytest.approx([0.05, 0.1, 0.05, 0.1, 0.05])
    assert [p.number for p in found] == list(range(5)) and all(p.share == 0.5 for p in found)
    decays = [
        p.weight_decay
        for s in range(8)
        for p in protocols(5, 0.1, multipliers=(1.0,), decays=(0.0, 0.3), share=1.0, seed=s)
    ]
    assert 5 < decays.count(0.3) < 35 and set(decays) == {0.0, 0.3}
    assert found == protocols(5, 0.1, multipliers=(0.5, 1.0), decays=(0.0, 0.3), share=0.5, seed=3)


class Living(TorchDispatchMode):
    """Bytes of tensors made inside that are alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        from torch.multiprocessing.reductions import StorageWeakRef
        from torch.utils._pytree import tree_leaves

        found = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        for tensor in tree_leaves(found):
            if torch.is_tensor(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return found


def wide() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 800), nn.ReLU(), nn.Linear(800, 800), nn.ReLU(), nn.Linear(800, 4))


def test_memory_of_a_look_ahead(monkeypatch):
    """Beside what a training step takes: one copy of the weights, one optimizer state, one byte a weight."""

    monkeypatch.setattr(ranking, "_CHUNK", 1 << 16)

    def peak(work) -> int:
        with Living() as living:
            work()
        return living.peak

    def fresh() -> Run:
        run = pruned(Run(training(wide(), size=4)))
        run.advance_to(run.step + 2)
        return run

    def pool(count: int, **wanted: bool) -> int:
        run = fresh()
        drawn = protocols(count, 0.01, multipliers=(1.0,), decays=(0.0,), share=1.0, seed=0)
        zeros = round(0.6 * run.attached.numel)
        return peak(lambda: gather(run, drawn, steps=2, zeros=zeros, folder=None, executor=Local(), **wanted))

    run = fresh()
    numel, every = run.attached.numel, sum(p.numel() for p in run.model.parameters())
    small = (1 << 16) + 40 * 4 * 800 + 7 * 8 * ranking._BINS  # activations, histograms, chunks: the same for any model
    step, one, four, scored = peak(lambda: run.advance_to(run.step + 2)), pool(1), pool(4), pool(4, sums=True)
    assert step > 4 * every  # the gradients at least: the counter counts
    assert 11 * every < one - step <= 4 * every + 8 * every + numel + small
    assert four - one <= 3 * numel / 8 + small
    assert scored - four <= 4 * numel + small  # one float tensor, and not four of them
    assert pool(4, weights=True) - four <= 2 * 4 * every + small  # their sum, and the one that is being added


class Normed(nn.Module):
    """Batch norms in each of the ways an owner may leave them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.blocks = nn.ModuleList(nn.Linear(10, 10) for _ in range(4))
        self.frozen, self.trained, self.partly = (nn.BatchNorm1d(10) for _ in range(3))
        self.plain = nn.BatchNorm1d(10, affine=False)
        self.head = nn.Linear(10, 4)
        for norm in (self.frozen, self.trained, self.partly, self.plain):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
        self.frozen.requires_grad_(False)
        self.partly.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, norm in zip(self.blocks, (self.frozen, self.trained, self.partly, self.plain)):
            x = x + norm(block(x)).tanh()
        return self.head(x)


def test_frozen_batch_norms_keep_their_statistics():
    """In the run, in its candidates and after them: normalized by what is stored, as the owner's own loop would."""
    seen, modes = [], []

    def loss(model, batch):
        modes.append([m.training for m in (model.frozen, model.trained, model.partly, model.plain)])
        model.frozen.register_forward_hook(lambda m, i, o: seen.append((i[0].detach(), o.detach())), always_call=True)
        try:
            return F.cross_entropy(model(batch[0]), batch[1])
        finally:
            model.frozen._forward_hooks.clear()

    model = Normed()
    run = Run(task(model, steps=6).replaced(loss=loss))
    before = {n: t.clone() for n, t in run.model.state_dict().items() if "running" in n}
    run.advance_to(run.step + 2)
    look_ahead(run, Protocol(0, 0.1, 0.1), 2, 10)
    run.advance_to(run.step + 2)
    # The first call, in eval mode, is the look at which layers make the output.
    assert modes == [[False] * 4] + [[False, True, True, True]] * 6 and len(seen) == 7
    for name, now in run.model.state_dict().items():
        if "running" in name:
            assert torch.equal(now, before[name]) == name.startswith("frozen"), name
    norm = model.frozen
    for given, out in seen:
        mean, var = norm.running_mean.numpy(), norm.running_var.numpy()
        wanted = (given.numpy() - mean) / np.sqrt(var + 1e-5) * norm.weight.numpy() + norm.bias.numpy()
        np.testing.assert_allclose(out.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_state_dict_of_more_than_tensors_is_refused_before_any_step():
    class Extra(nn.Module):
        def __init__(self, state) -> None:
            super().__init__()
            self.inner, self.state = mlp(), state

        def forward(self, x):
            return self.inner(x)

        def get_extra_state(self):
            return self.state

        def set_extra_state(self, state):
            self.state = state

    with pytest.raises(InputError, match="_extra_state in the model's state dict is a dict: let get_extra_state"):
        Run(training(Extra({"a": 1}), steps=2))
    run = Run(training(Extra(torch.tensor([3])), steps=2))
    run.advance_to(run.step + 2)
    assert run.position().state["_extra_state"].tolist() == [3]
