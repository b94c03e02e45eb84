"""Reconstruction: against least squares, never worse than the mask, exact counts, resumable, streamed as loaded."""

from __future__ import annotations

import contextlib
import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import families
from layers import CallsInMemory
from small import classifier, convnet, images, points, save_llama, sentences, trained
from winnow.calibrate.walker import Walker
from winnow.compression.hosts import Loaded, Streamed
from winnow.compression.methods import resolve, settle
from winnow.compression.prune import Pruner
from winnow.compression.recipe import Recipe
from winnow.compression.recovery import RECOVERIES, parse_recovery
from winnow.errors import InputError
from winnow.masks.prunable import Prunable
from winnow.masks.scope import find_scope
from winnow.models.source import open_model
from winnow.solve.calls import MiniBatches, held_out
from winnow.solve.reconstruct import Call, Reconstruction
from winnow.solve.settings import ReconstructSettings
from winnow.solve.statistics import Moments, correction


def linear_case(rows=12, cols=20, tokens=400, density=0.4, bias=True, shift=0.5):
    """A linear layer, a random mask, correlated inputs, noisy targets that no mask can reach."""
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(cols, rows, bias=bias)
    x = torch.randn(tokens, cols, generator=g) @ (torch.eye(cols) + 0.4 * torch.randn(cols, cols, generator=g)) + shift
    keep = torch.rand(rows, cols, generator=g) < density
    keep[:, 0] = True
    with torch.no_grad():
        y = layer(x) + 0.1 * torch.randn(tokens, rows, generator=g)
    prunable = Prunable("weight", "", "linear", (rows, cols))
    return layer, x, y, keep, prunable


def batched(x, y, size=50):
    return [Call((a,), {}, b) for a, b in zip(x.split(size), y.split(size))]


def fitting_rows(n, size=50):
    """Rows of the calls that are fitted to, and of those that judge."""
    calls = torch.arange(n).split(size)
    judging = held_out(len(calls))
    return torch.cat([c for i, c in enumerate(calls) if i not in judging]), torch.cat([calls[i] for i in judging])


def dense_moments(layer, x):
    moments = Moments()
    with torch.no_grad():
        moments.add(layer(x[fitting_rows(len(x))[0]]), None, conv=False)
    return {"weight": moments}


def best_error(x, y, keep, bias):
    """The least squared error on the mask over the power of the target, row by row in float64."""
    total = 0.0
    x, y = x.double().numpy(), y.double().numpy()
    for row, kept in enumerate(keep.numpy()):
        inputs = x[:, kept]
        if bias:
            inputs = np.concatenate([inputs, np.ones((len(x), 1))], 1)
        answer, *_ = np.linalg.lstsq(inputs, y[:, row], rcond=None)
        total += float(((inputs @ answer - y[:, row]) ** 2).sum())
    return total / float((y**2).sum())


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_approaches_least_squares_on_its_mask(bias):
    layer, x, y, keep, prunable = linear_case(bias=bias)
    before = copy.deepcopy(layer.state_dict())
    settings = ReconstructSettings(steps=600, batch=100, lr=0.05, bias_lr=0.02)
    fit = Reconstruction(layer, {"weight": (prunable, keep)}, CallsInMemory(batched(x, y)), settings).run()
    fitted, judged = fitting_rows(len(x))
    optimum = best_error(x[fitted], y[fitted], keep, bias)
    weight = fit.tensors["weight"]
    assert torch.equal(weight != 0, keep)
    out = F.linear(x, weight, fit.tensors.get("bias"))
    error = [float((out[r] - y[r]).square().sum() / y[r].square().sum()) for r in (fitted, judged)]
    assert optimum * (1 - 1e-6) <= error[0] <= 1.02 * optimum and fit.after < 0.8 * fit.before and fit.gained
    assert error[1] == pytest.approx(fit.after, rel=1e-4)
    assert all(torch.equal(before[n], t) for n, t in layer.state_dict().items())  # the module is left as it is


@pytest.mark.parametrize("lr", [1e-3, 0.1, 30.0])
@pytest.mark.parametrize("correct", [True, False])
def test_never_worse_than_the_mask(lr, correct):
    layer, x, y, keep, prunable = linear_case(density=0.9)
    calls = CallsInMemory(batched(x, y), dense_moments(layer, x))
    settings = ReconstructSettings(steps=5, lr=lr, bias_lr=lr, correct=correct)
    fit = Reconstruction(layer, {"weight": (prunable, keep)}, calls, settings).run()
    x, y = (t[fitting_rows(len(x))[1]] for t in (x, y))
    masked = F.linear(x, layer.weight * keep, layer.bias).detach()
    assert fit.before == pytest.approx(float((masked - y).square().sum() / y.square().sum()), rel=1e-5)
    assert fit.after <= fit.before
    if lr == 30.0 and not correct:
        assert not fit.gained and fit.after == fit.before and torch.equal(fit.tensors["weight"], layer.weight * keep)


def test_correction_by_hand():
    dense, pruned = Moments(), Moments()
    dense.add(torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 4.0]]), None, conv=False)  # means 2, 5, 3; deviations 1, 0, 1
    pruned.add(torch.tensor([[0.5, 7.0, 9.0], [1.0, 9.0, 9.0]]), None, conv=False)  # 0.75, 8, 9; 0.25, 1, 0
    scale, bias = correction(dense, pruned, torch.tensor([0.5, 1.0, 2.0]))
    # A constant channel cannot be scaled. bias' = mean_dense - scale * (mean_pruned - bias).
    assert scale.tolist() == [4.0, 0.0, 1.0]
    assert bias.tolist() == [2 - 4 * 0.25, 5.0, 3 - 7.0]
    assert correction(dense, pruned, None)[1] is None


def test_moments_of_convolutions_and_of_what_counts():
    x = torch.randn(3, 4, 5, 6)
    moments = Moments()
    for part in x.split(1):
        moments.add(part, None, conv=True)
    assert torch.allclose(moments.mean.float(), x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(moments.deviation.float(), x.std((0, 2, 3), correction=0), atol=1e-6)
    tokens, counts = torch.randn(2, 3, 4), torch.tensor([True, False, True, True, True, False])
    moments = Moments()
    moments.add(tokens, counts, conv=False)
    assert moments.count == 4
    assert torch.allclose(moments.mean.float(), tokens.reshape(6, 4)[counts].mean(0), atol=1e-6)


def test_bias_correction_makes_output_means_equal():
    """Almost no steps, inputs far from zero: what the mask took from the mean is put back by the correction alone."""
    layer, x, _, keep, prunable = linear_case(shift=3.0, density=0.9)
    with torch.no_grad():
        y = layer(x)
    settings = ReconstructSettings(steps=1, lr=1e-9, bias_lr=1e-9)
    calls = CallsInMemory(batched(x, y), dense_moments(layer, x))
    fit = Reconstruction(layer, {"weight": (prunable, keep)}, calls, settings).run()
    fitted = fitting_rows(len(x))[0]
    out = F.linear(x[fitted], fit.tensors["weight"], fit.tensors["bias"])
    masked, y = F.linear(x[fitted], layer.weight * keep, layer.bias), y[fitted]
    assert float((masked.mean(0) - y.mean(0)).abs().max()) > 0.1
    assert torch.allclose(out.mean(0), y.mean(0), atol=1e-4) and torch.allclose(out.std(0), y.std(0), rtol=1e-3)
    plain = ReconstructSettings(steps=1, lr=1e-9, bias_lr=1e-9, correct=False)
    assert Reconstruction(layer, {"weight": (prunable, keep)}, calls, plain).run().after > 2 * fit.after


def test_the_correction_leaves_the_zeros_of_a_pruned_bias():
    layer, x, _, keep, prunable = linear_case(shift=3.0, density=0.9)
    kept = torch.arange(12)[:, None] % 2 == 0
    layers = {"weight": (prunable, keep), "bias": (Prunable("bias", "", "linear", (12,)), kept)}
    calls = CallsInMemory(batched(x, layer(x).detach()), dense_moments(layer, x))
    settings = ReconstructSettings(steps=1, lr=1e-9, bias_lr=1e-9)
    free = Reconstruction(layer, {"weight": (prunable, keep)}, calls, settings).run()
    fit = Reconstruction(layer, layers, calls, settings).run()
    assert free.after < 0.3 * free.before and fit.after <= fit.before  # a free bias makes up for most of the loss
    assert torch.equal(fit.tensors["bias"] != 0, kept[:, 0])


def test_steps_end_early_below_the_loss():
    layer, x, _, keep, prunable = linear_case()
    y = F.linear(x, layer.weight * keep, layer.bias).detach()  # the mask alone is perfect
    fit = Reconstruction(layer, {"weight": (prunable, keep)}, CallsInMemory(batched(x, y)), ReconstructSettings()).run()
    assert fit.steps == 1 and fit.after < 1e-10


def test_what_judges_takes_no_part_in_the_fit():
    """Other targets in the calls held out change what is chosen, never what is fitted."""
    assert [held_out(n) for n in (1, 2, 4, 5, 11)] == [[], [1], [3], [4], [4, 9]]
    layer, x, y, keep, prunable = linear_case()
    found = []
    for change in (0.0, 0.01):
        other = y.clone()
        other[fitting_rows(len(x))[1]] += change
        calls = CallsInMemory(batched(x, other), dense_moments(layer, x))
        found.append(Reconstruction(layer, {"weight": (prunable, keep)}, calls, ReconstructSettings(steps=40)).run())
    a, b = found
    assert a.after != b.after and torch.equal(a.tensors["weight"], b.tensors["weight"])


@pytest.mark.parametrize("examples", [2, 6, 16, 40])
@pytest.mark.parametrize("make", ["conv", "mlp"])
def test_on_examples_it_never_saw_a_unit_is_no_worse_than_its_mask(make, examples):
    """Few examples, many weights, a high rate: what was fitted there alone would be far off elsewhere."""
    torch.manual_seed(1)
    if make == "conv":
        module, x = convnet().eval(), images(600)[0]
        prunables = find_scope(module, include=["conv1.weight", "fc.weight"]).prunables
    else:
        module, x = (
            nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)),
            points(600)[0],
        )
        prunables = find_scope(module, include=["0.weight", "4.weight"]).prunables
    with torch.no_grad():
        y = module(x)
    layers = {n: (p, torch.rand(p.rows, p.cols) < 0.6) for n, p in prunables.items()}
    calls = batched(x[:examples], y[:examples], size=4)
    fit = Reconstruction(module, layers, CallsInMemory(calls), ReconstructSettings(steps=60, lr=0.3, bias_lr=0.3)).run()
    assert fit.after <= fit.before
    masked = {n: module.get_parameter(n).detach() * p.restore(k) for n, (p, k) in layers.items()}
    new, target = x[300:], y[300:]
    with torch.no_grad():
        error = [
            float((torch.func.functional_call(module, state, (new,)) - target).square().sum() / target.square().sum())
            for state in (masked, {**masked, **fit.tensors})
        ]
    if not fit.gained:
        assert all(torch.equal(fit.tensors[n], t) for n, t in masked.items())
    # Held out are few, so that a choice may be unlucky, but what was only learnt by heart does not pass.
    assert error[1] <= 1.3 * error[0]


def test_a_single_call_is_cut_and_one_that_cannot_be_keeps_its_mask():
    layer, x, y, keep, prunable = linear_case()
    fit = Reconstruction(
        layer, {"weight": (prunable, keep)}, CallsInMemory([Call((x,), {}, y)]), ReconstructSettings(steps=50)
    ).run()
    judged = slice(len(x) - len(x) // 5, None)
    out = F.linear(x, fit.tensors["weight"], fit.tensors["bias"])
    assert fit.gained and fit.after == pytest.approx(
        float((out[judged] - y[judged]).square().sum() / y[judged].square().sum()), rel=1e-4
    )
    mixing = Mixing()
    prunable = Prunable("lin.weight", "lin", "linear", (6, 6))
    x, keep = torch.randn(8, 6), torch.rand(6, 6) < 0.5
    calls = CallsInMemory([Call((x,), {}, mixing(x).detach())])
    fit = Reconstruction(mixing, {"lin.weight": (prunable, keep)}, calls, ReconstructSettings(steps=5)).run()
    assert not fit.gained and fit.steps == 0 and torch.equal(fit.tensors["lin.weight"], mixing.lin.weight * keep)


def test_draws_take_every_example_once_an_epoch():
    for examples, size, cut in [
        ([10, 10, 10], 4, True),
        ([3, 3, 3, 3], 6, True),
        ([5, 7, 4], 8, False),
        ([2], 64, True),
    ]:
        draw = MiniBatches(examples, size, cut=cut, seed=3)
        first = [
            [(i, None if r is None else r.tolist()) for i, r in step] for step in itertools.islice(draw.steps(), 9)
        ]
        again = [
            [(i, None if r is None else r.tolist()) for i, r in step] for step in itertools.islice(draw.steps(), 9)
        ]
        assert first == again
    pieces = [p for step in itertools.islice(MiniBatches([8, 8], 4, cut=True, seed=0).steps(), 4) for p in step]
    assert sorted((i, row) for i, rows in pieces for row in rows.tolist()) == [(i, r) for i in (0, 1) for r in range(8)]


class Mixing(nn.Module):
    """Rows of a call see each other: the sequence lies along the first dimension."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x):
        return self.lin(x + x.flip(0))


@pytest.mark.parametrize(("module", "cut"), [(Mixing(), False), (nn.Sequential(nn.Linear(6, 6), nn.Tanh()), True)])
def test_calls_are_cut_only_where_rows_are_examples(module, cut):
    calls = []
    for seed in range(3):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        calls.append(Call((x,), {}, module(x).detach()))
    name = "lin.weight" if not cut else "0.weight"
    prunable = Prunable(name, name[:-7], "linear", (6, 6))
    fitted = Reconstruction(
        module, {name: (prunable, torch.rand(6, 6) < 0.5)}, CallsInMemory(calls), ReconstructSettings(steps=3)
    )
    fitted.run()
    assert fitted.cut is cut


# --- the walk that fits ---------------------------------------------------------------------------------------------


class Seen:
    """What a dense copy of the model puts out, and a pruned one takes in, by full forwards and hooks."""

    def __init__(self, model, path, batches):
        self.args, self.outputs = [], []
        module = model.get_submodule(path)
        before = module.register_forward_pre_hook(lambda m, a: self.args.append(a[0].detach().clone() if a else None))
        after = module.register_forward_hook(
            lambda m, a, o: self.outputs.append((o if torch.is_tensor(o) else o[0]).detach().clone())
        )
        from winnow.forward.batch import call

        with torch.no_grad():
            for batch in batches:
                call(model.eval(), batch)
        before.remove(), after.remove()


def zero_half(model, unit):
    with torch.no_grad():
        for p in unit.prunables:
            weight = model.get_parameter(p.name)
            weight.view(-1)[weight.abs().flatten().argsort(stable=True)[: weight.numel() // 2]] = 0


@pytest.mark.parametrize("name", ["llama", "t5", "vit", "encoder_time_first", "net"])
@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("spilled", [False, True])
def test_targets_are_the_dense_models_and_inputs_the_pruned_ones(name, follow, spilled, tmp_path):
    if name == "net":
        model, batches = classifier(), list(points(60)[0].split(20))
    else:
        family = next(f for f in families.FAMILIES if f.name == name)
        if name not in families.TORCH:
            pytest.importorskip("transformers")
        model, batches = family.build(), family.batches()
    dense, checked = copy.deepcopy(model).eval(), []
    scope = find_scope(model)

    def fit(unit, stats, calls):
        pruned = copy.deepcopy(model)
        for module in pruned.modules():
            module.__dict__.pop("forward", None)
        inside = Seen(pruned, unit.path, batches)
        wanted = Seen(dense if follow else pruned, unit.path, batches).outputs
        for i, (args, target) in enumerate(zip(inside.args, wanted, strict=True)):
            with calls.at(i) as call:
                got = call.args[0] if call.args else None
                assert got is None or torch.allclose(got, args, atol=1e-5)
                assert torch.allclose(call.target, target, atol=1e-5)
                mask = batches[i].get("attention_mask") if isinstance(batches[i], dict) else None
                if mask is not None and name == "llama" and not bool(mask.all()):
                    assert int(call.counts.sum()) == int(mask.sum())
        checked.append(unit.path)
        zero_half(model, unit)

    spill = tmp_path / "spill" if spilled else None
    Walker(model, batches, scope, gram=False, spill=spill).fit(fit, follow=follow)
    assert len(checked) == len({p.block or p.module for p in scope.prunables.values()})
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert spill is None or not list(tmp_path.rglob("*.bin"))


class Greedy(nn.Module):
    """Writes to its own input and puts it out."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        x += self.lin(x)
        return x


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Greedy() for _ in range(3))

    def forward(self, x):
        x = x * 1.0
        for block in self.blocks:
            x = torch.relu_(block(x))  # writes to what the block put out, too
        return x


@pytest.mark.parametrize("follow", [True, False])
def test_blocks_that_write_to_their_inputs(follow):
    torch.manual_seed(0)
    model, batches = Writing(), [torch.randn(4, 8) for _ in range(3)]
    dense = copy.deepcopy(model)
    found = []

    def fit(unit, stats, calls):
        zero_half(model, unit)
        for _ in range(2):  # opened twice, the same both times
            for i, batch in enumerate(batches):
                x, y = batch.clone(), batch.clone()
                for j, block in enumerate(model.blocks):
                    if model.blocks[j] is unit.module:
                        with calls.at(i) as call, torch.no_grad():
                            assert torch.allclose(call.args[0], x, atol=1e-6)
                            wanted = (y if follow else x) + dense.blocks[j].lin(y if follow else x)
                            assert torch.allclose(call.target, wanted, atol=1e-6)
                            block(call.args[0])  # spoils what was opened, and nothing else
                        break
                    with torch.no_grad():
                        x = torch.relu(x + block.lin(x))
                        y = torch.relu(y + dense.blocks[j].lin(y))
        found.append(unit.path)

    Walker(model, batches, find_scope(model), gram=False).fit(fit, follow=follow)
    assert found == [f"blocks.{i}" for i in range(3)]


def test_an_exception_in_a_fit_leaves_the_model_as_it_was():
    model = classifier().train()
    with pytest.raises(RuntimeError, match="stop here"):
        Walker(model, list(points(40)[0].split(20)), find_scope(model), gram=False).fit(_raise)
    assert model.training and all(m.training for m in model.modules())
    assert not any("forward" in m.__dict__ for m in model.modules())


def _raise(unit, stats, calls):
    raise RuntimeError("stop here")


# --- whole runs -----------------------------------------------------------------------------------------------------


def recipe(scope, sparsity=0.7, **changes):
    settings = {"steps": 25, "batch": 32, **changes.pop("settings", {})}
    options = dict(method="reconstruct", solver="reconstruct", sparsity=sparsity, zeros=round(sparsity * scope.numel))
    return Recipe(**{**options, **changes}, settings=settings)


def prune(model, batches, *, folder=None, spill=None, host=None, sparsity=0.7, keep_model=None, **changes):
    """One run of the Pruner; (host, what came out, recipe)."""
    from winnow.compression.counts import per_tensor

    host = host or Loaded(open_model(model))
    scope = find_scope(host.model)
    host.begin(scope)
    made = recipe(scope, sparsity, **changes)
    zeros = per_tensor(made, host, scope)
    if folder is not None:
        folder.mkdir(exist_ok=True)
    pruner = Pruner(host, scope, made, zeros, batches, folder=folder, spill=spill)
    return host, pruner.run(), scope


def answers(model, batches):
    with torch.no_grad():
        return torch.cat([model.eval()(b) for b in batches])


def cnn():
    x, y = images()
    return trained(convnet(), x, y), list(x.split(24))


def mlp():
    x, y = points()
    return trained(classifier(), x, y), list(x.split(40))


@pytest.mark.parametrize("by", ["block", "layer"])
@pytest.mark.parametrize("make", [cnn, mlp])
def test_exact_masks_and_less_error_than_masks_only(make, by):
    model, batches = make()
    want = answers(model, batches)
    _, masked, scope = prune(model, batches, solver="none", sequential=by)
    host, fitted, _ = prune(model, batches, sequential=by, settings={"steps": 100})
    assert fitted.zeros == masked.zeros == round(0.7 * scope.numel)
    for name in scope.prunables:
        a, b = masked.packed(name).unpack(), fitted.packed(name).unpack()
        assert torch.equal(a != 0, b != 0) and not torch.equal(a, b)
        inside = scope.prunables[name].matrix(host.model.get_parameter(name))
        assert torch.equal(inside, b)
    state = host.model.state_dict()
    assert bool(fitted.extra) is not (make is cnn and by == "layer")  # its convolutions have no biases
    assert all(torch.equal(state[n], t) for n, t in fitted.extra.items())
    assert all(t.ndim <= 1 for t in fitted.extra.values())
    with host.with_weights(_weights(host, fitted, scope), scope, fitted.extra) as again:
        error = float((answers(again, batches) - want).square().mean())
    with host.with_weights(_weights(host, masked, scope), scope, {}) as again:
        plain = float((answers(again, batches) - want).square().mean())
    assert error < 0.5 * plain
    # The next candidate starts from the dense model: biases, norms and statistics too.
    host.restore(scope)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in host.model.state_dict().items())


def _weights(host, pruned, scope):
    return lambda name: scope.prunables[name].restore(pruned.packed(name).unpack()).to(host.stored_dtype[name])


@pytest.mark.parametrize("target", ["dense", "own"])
@pytest.mark.parametrize(("make", "by"), [(cnn, "block"), (mlp, "layer"), (mlp, "block")])
def test_resumed_is_bit_for_bit_the_uninterrupted(make, by, target, tmp_path, monkeypatch):
    model, batches = make()
    options = dict(sequential=by, settings={"target": target, "steps": 8})
    host, whole, scope = prune(model, batches, folder=tmp_path / "whole", **options)
    calls, keep = itertools.count(), Pruner._keep

    def dies(self, *args):
        if next(calls) in (1, 3):
            raise KeyboardInterrupt
        return keep(self, *args)

    monkeypatch.setattr(Pruner, "_keep", dies)
    for _ in range(6):
        with contextlib.suppress(KeyboardInterrupt):
            other, resumed, _ = prune(model, batches, folder=tmp_path / "parts", **options)
            break
    assert next(calls) > 3 or make is cnn
    for name in scope.prunables:
        assert torch.equal(whole.packed(name).unpack(), resumed.packed(name).unpack())
    assert whole.extra.keys() == resumed.extra.keys()
    assert all(torch.equal(t, resumed.extra[n]) for n, t in whole.extra.items())
    assert [x.error for x in whole.layers] == [x.error for x in resumed.layers]
    assert all(torch.equal(a, b) for a, b in zip(host.model.state_dict().values(), other.model.state_dict().values()))


def token_batches(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for i in range(3):
        rows = [tokenizer(s)["input_ids"][:8] for s in sentences(40, seed=i) if len(s.split()) >= 8][:4]
        found.append({"input_ids": torch.tensor(rows), "attention_mask": torch.ones(4, 8, dtype=torch.long)})
    return found


@pytest.mark.hf
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_and_spilled_equal_loaded(dtype, tmp_path):
    pytest.importorskip("transformers")
    folder = save_llama(tmp_path / "model", shards=True, dtype=dtype)
    batches = token_batches(folder)
    _, loaded, scope = prune(None, batches, host=Loaded(open_model(folder)), settings={"steps": 6})
    host, streamed, _ = prune(
        None, batches, host=Streamed(open_model(folder)), folder=tmp_path / "units", spill=tmp_path / "spill",
        settings={"steps": 6},
    )  # fmt: skip
    assert loaded.extra and loaded.extra.keys() == streamed.extra.keys()
    for name in scope.prunables:
        assert torch.equal(loaded.packed(name).unpack(), streamed.packed(name).unpack())
    for name, tensor in loaded.extra.items():
        assert torch.equal(tensor, streamed.extra[name]) and tensor.dtype == dtype
    with host.with_weights(_weights(host, streamed, scope), scope, streamed.extra) as model:
        a = torch.cat([model(**b).logits for b in batches])
    whole = Loaded(open_model(folder))
    whole.begin(scope)
    with whole.with_weights(_weights(whole, loaded, scope), scope, loaded.extra) as model, torch.no_grad():
        assert torch.equal(a, torch.cat([model(**b).logits for b in batches]))


@pytest.mark.hf
def test_a_transformer_comes_nearer_to_the_dense_one(tmp_path):
    pytest.importorskip("transformers")
    folder = save_llama(tmp_path / "model")
    batches, dense = token_batches(folder), open_model(folder).load()

    def distance(host):
        with torch.no_grad():
            return sum(float((host.model(**b).logits - dense(**b).logits).square().sum()) for b in batches)

    masked = prune(None, batches, host=Loaded(open_model(folder)), solver="none", sparsity=0.5)[0]
    errors = {}
    for by in ("block", "layer"):
        host, pruned, scope = prune(
            None, batches, host=Loaded(open_model(folder)), sparsity=0.5, sequential=by, settings={"steps": 60}
        )
        assert pruned.zeros == round(0.5 * scope.numel)
        errors[by] = distance(host)
    assert errors["block"] < 0.5 * distance(masked) and errors["layer"] < 0.8 * distance(masked)


@pytest.mark.parametrize("values", ["int8", "int4", "bf16"])
def test_values_are_rounded_on_the_weights_that_stay(values):
    model, batches = mlp()
    _, pruned, scope = prune(model, batches, values=values, group_size=32)
    _, plain, _ = prune(model, batches)
    for name in scope.prunables:
        packed, fitted = pruned.packed(name), plain.packed(name).unpack()
        assert packed.zeros == plain.packed(name).zeros
        got = packed.unpack()
        assert not got[fitted == 0].any()
        if name in list(scope.prunables)[:2]:  # the first block: its inputs are the same
            step = float(fitted.abs().max()) * {"int8": 1 / 127, "int4": 1 / 7, "bf16": 1 / 128}[values]
            assert 0 < float((got - fitted).abs().max()) <= 1.5 * step


def test_after_another_solver_it_starts_from_there():
    model, batches = mlp()
    _, first, scope = prune(model, batches, solver="lsq")
    _, both, _ = prune(
        model, batches, solver="lsq+reconstruct", settings={"steps": 1, "lr": 1e-9, "bias_lr": 1e-9, "correct": False}
    )
    name = next(iter(scope.prunables))
    assert torch.allclose(first.packed(name).unpack(), both.packed(name).unpack(), atol=1e-6)
    assert first.zeros == both.zeros


@pytest.mark.parametrize("structure", ["2:4", "block:4x4"])
def test_structures_are_held(structure):
    model, batches = mlp()
    _, pruned, scope = prune(model, batches, structure=structure, sparsity=0.5)
    for name in scope.prunables:
        weight = pruned.packed(name).unpack()
        if structure == "2:4":
            assert bool(((weight.reshape(-1, 4) != 0).sum(1) == 2).all())
        assert pruned.packed(name).zeros == weight.numel() // 2


def test_solver_names():
    found = [parse_recovery(name) for name in ("reconstruct", "lsq+reconstruct", "alps", "distil")]
    assert [str(chain) for chain, _ in found] == ["none", "lsq", "alps", "none"]
    assert [recovery.by_block for _, recovery in found] == [True, True, False, False]
    assert [recovery.trains for _, recovery in found] == [False, False, False, True]
    for text, message in (("reconstruct+lsq", "put it last"), ("lsq+distil", "only solver"), ("gptq", "choose from")):
        with pytest.raises(InputError, match=message):
            parse_recovery(text)
    assert recipe(find_scope(classifier())).needs_data
    for name, recovery in RECOVERIES.items():
        assert recovery.by_block != recovery.trains and hasattr(recovery, "fit_block" if recovery.by_block else "train")
        assert {"steps", "batch"} <= settle(name, resolve("magnitude", solver=name), {}, None, None).keys()


def test_bad_input():
    model, batches = mlp()
    with pytest.raises(InputError, match=r"no setting 'rate'.*steps"):
        prune(model, batches, settings={"rate": 1})
    with pytest.raises(InputError, match='settings "steps" must be'):
        prune(model, batches, settings={"steps": 0})
    with pytest.raises(InputError, match="give data"):
        prune(model, [])
    with pytest.raises(InputError, match="choose another solver"):
        prune(model, batches, structure="neuron")
    with pytest.raises(InputError, match=r"not finite|NaN"):
        prune(model, [torch.full((4, 12), float("nan"))])
    with pytest.raises(InputError, match="lower the rate"):
        prune(model, batches, settings={"lr": 1e30, "bias_lr": 1e30})


def test_compress_with_changed_biases_saves_what_it_measured(tmp_path):
    import winnow

    model, _ = mlp()
    options = dict(eval=points(seed=5), sparsity=0.7, baselines="none", speed=False, sequential="block")
    result = winnow.compress(
        model, points(), method="reconstruct", settings={"steps": 20}, out=tmp_path / "out", **options
    )
    plain = winnow.compress(model, points(), method="magnitude", allocation="l2", **options)
    found, dense = result.model.state_dict(), model.state_dict()
    assert sum(int((found[layer.name] == 0).sum()) for layer in result.layers) == round(0.7 * 6912)
    assert any(not torch.equal(found[n], t) for n, t in dense.items() if n.endswith("bias"))
    stored = winnow.load(tmp_path / "out", classifier).state_dict()
    assert all(torch.equal(stored[n], t) for n, t in found.items())
    x = points(seed=5)[0]
    error = [float((m.eval()(x) - model(x)).square().mean()) for m in (result.model, plain.model)]
    assert error[0] < 0.5 * error[1]


@pytest.mark.hf
def test_compress_within_a_memory_limit_equals_loaded(tmp_path):
    pytest.importorskip("transformers")
    import winnow
    from small import write_lines

    folder = save_llama(tmp_path / "model", shards=True)
    data = str(write_lines(tmp_path / "data.txt", sentences(120)))
    options = dict(
        eval=str(write_lines(tmp_path / "eval.txt", sentences(30, seed=1))), sparsity=0.5, method="reconstruct",
        settings={"steps": 6, "batch": 8}, samples=16, length=16, baselines="none", sequential="block", dtype="float32",
    )  # fmt: skip
    whole = winnow.compress(folder, data, out=tmp_path / "whole", **options)
    streamed = winnow.compress(folder, data, out=tmp_path / "streamed", ram="20GB", **options)
    a, b = winnow.load(tmp_path / "whole").state_dict(), winnow.load(tmp_path / "streamed").state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    quality = [r.report.candidates[0].quality for r in (whole, streamed)]
    assert quality[0] == pytest.approx(quality[1], rel=1e-6)
    original = open_model(folder).load().state_dict()
    assert any(not torch.equal(a[n], t) for n, t in original.items() if n.endswith("layernorm.weight"))


def test_auto_takes_whole_blocks():
    from winnow.compression.job import Job
    from winnow.compression.setup import set_up

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(3)), nn.Linear(16, 4)).eval()
    data = torch.randn(32, 16)
    recipes = {
        m: set_up(Job(model, data, sparsity=0.5, method=m, task="none")).recipes[0]
        for m in ("reconstruct", "sparsegpt")
    }
    assert {m: r.sequential for m, r in recipes.items()} == {"reconstruct": "block", "sparsegpt": "layer"}
