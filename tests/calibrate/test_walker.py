"""The walker's promises: pruned predecessors feed successors, resume and spill change nothing, models are left as found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import families
from winnow.calibrate.spill import Spill
from winnow.calibrate.walker import Walker
from winnow.calibrate.windows import update_windows
from winnow.errors import InputError, WinnowError
from winnow.forward.batch import call as call_model
from winnow.inputs import InputStats
from winnow.masks.scope import find_scope


class Layer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Embedding, three blocks, head; counts how often the head runs."""

    def __init__(self, width=8, repeat=1):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(3))
        self.head = nn.Linear(width, 20)
        self.repeat = repeat

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for _ in range(self.repeat):
            for layer in self.layers:
                x = layer(x)
        return self.head(x)


def net(**options):
    torch.manual_seed(0)
    return Net(**options)


def token_batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 20, (2, 5), generator=generator)} for _ in range(count)]


def wanda(model, masks=None):
    """A visit that zeroes the half of every row with the smallest |w| * norm."""

    def visit(unit, stats):
        for p in unit.prunables:
            weight = model.get_parameter(p.name)
            matrix = p.matrix(weight.data).clone()
            for band, part in zip(matrix.chunk(p.parts), stats[p.name]):
                drop = (band.abs() * part.norm.float()).argsort(dim=1, stable=True)[:, : p.cols // 2]
                band.scatter_(1, drop, 0.0)
            weight.data.copy_(p.restore(matrix))
            if masks is not None:
                masks[p.name] = matrix != 0

    return visit


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def collect(rows):
    return lambda module, args: rows.append(args[0].reshape(-1, args[0].shape[-1]))


def prune_with_full_forwards(model, batches, paths):
    """The slow way: for each block, full forwards of the model so far, hooks on the block's linear layers, prune."""
    scope = find_scope(model)
    for path in paths:
        block = [p for p in scope.prunables.values() if p.block == path]
        inputs = {p.name: [] for p in block}
        handles = []
        for p in block:
            handles.append(model.get_submodule(p.module).register_forward_pre_hook(collect(inputs[p.name])))
        with torch.no_grad():
            for batch in batches:
                call_model(model, batch)
        for handle in handles:
            handle.remove()
        for p in block:
            x = torch.cat(inputs[p.name]).double()
            weight = model.get_parameter(p.name).data
            matrix = p.matrix(weight).clone()
            score = matrix.abs() * x.square().sum(0).sqrt().float()
            matrix.scatter_(1, score.argsort(dim=1, stable=True)[:, : p.cols // 2], 0.0)
            weight.copy_(p.restore(matrix))


@pytest.mark.parametrize("name", ["net", "llama", "gpt2", "vit"])
def test_pruned_predecessors_feed_successors(name):
    if name == "net":
        model, batches, paths = net(), token_batches(), [f"layers.{i}" for i in range(3)]
    else:
        pytest.importorskip("transformers")
        family = next(f for f in families.FAMILIES if f.name == name)
        model, batches, paths = family.build(), family.batches(), family.blocks
        batches = [{k: v for k, v in b.items() if k != "attention_mask"} for b in batches]
    slow = copy.deepcopy(model)
    dense = copy.deepcopy(model)
    prune_with_full_forwards(slow, batches, paths)
    Walker(model, batches, find_scope(model), gram=False).walk(wanda(model))
    last = find_scope(model).prunables
    assert same_weights(model, slow)
    # It matters: with the dense model's own inputs the last block is pruned otherwise.
    found = {}
    Walker(dense, batches, find_scope(dense), gram=False).walk(lambda unit, stats: found.update(stats))
    unfed = copy.deepcopy(dense)
    for p in last.values():
        weight = unfed.get_parameter(p.name).data
        matrix = p.matrix(weight).clone()
        drop = (matrix.abs() * found[p.name][0].norm.float()).argsort(dim=1, stable=True)[:, : p.cols // 2]
        weight.copy_(p.restore(matrix.scatter_(1, drop, 0.0)))
    assert not same_weights(model, unfed)


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_skipping_finished_units_ends_the_same(done):
    model, batches = net(), token_batches()
    whole = copy.deepcopy(model)
    Walker(whole, batches, find_scope(whole), gram=True).walk(wanda(whole))
    finished = [f"layers.{i}" for i in range(done)]
    visited = []

    def enter(unit):  # as a resumed run does: what was pruned before is loaded
        if unit.path in finished:
            unit.module.load_state_dict(whole.get_submodule(unit.path).state_dict())

    visit = wanda(model)
    walker = Walker(model, batches, find_scope(model), gram=True, enter=enter)
    walker.walk(
        lambda unit, stats: (visited.append(unit.path), visit(unit, stats)), skip=lambda unit: unit.path in finished
    )
    assert visited == [f"layers.{i}" for i in range(done, 3)]
    assert same_weights(model, whole)


def test_enter_and_leave_frame_each_unit_and_progress_ends_full():
    model, batches, events, steps = net(), token_batches(2), [], []
    Walker(
        model,
        batches,
        find_scope(model),
        gram=False,
        enter=lambda unit: events.append(("enter", unit.path)),
        leave=lambda unit: events.append(("leave", unit.path)),
        progress=lambda done, total, path: steps.append((done, total)),
    ).walk(lambda unit, stats: events.append(("visit", unit.path)))
    assert events == [(e, f"layers.{i}") for i in range(3) for e in ("enter", "visit", "leave")]
    assert steps == sorted(steps) and steps[-1] == (12, 12)


def test_a_skeleton_is_walked_with_weights_present_only_while_needed():
    full, batches = net(), token_batches()
    reference = copy.deepcopy(full)
    Walker(reference, batches, find_scope(reference), gram=False).walk(wanda(reference))
    model = copy.deepcopy(full)
    weights = {path: copy.deepcopy(full.get_submodule(path)) for path in ("layers.0", "layers.1", "layers.2")}
    for layer in model.layers:
        layer.to("meta")
    pruned, alive = {}, []

    def enter(unit):
        alive.append(unit.path)
        assert len(alive) == 1
        unit.module.load_state_dict(weights[unit.path].state_dict(), assign=True)

    def leave(unit):
        alive.remove(unit.path)
        pruned[unit.path] = {k: v.clone() for k, v in unit.module.state_dict().items()}
        unit.module.to("meta")

    walker = Walker(model, batches, find_scope(model), gram=False, enter=enter, leave=leave)
    walker.walk(wanda(model))
    for path, state in pruned.items():
        for key, value in reference.get_submodule(path).state_dict().items():
            assert torch.equal(state[key], value)
    assert len(pruned) == 3 and not alive


def test_the_head_is_never_computed():
    model, calls = net(), []
    model.head.register_forward_pre_hook(lambda *a: calls.append(1))
    walker = Walker(model, token_batches(), find_scope(model), gram=False)
    walker.units()
    probed = len(calls)
    walker.walk(lambda unit, stats: None)
    assert len(calls) == probed <= 1


class Boom(Exception):
    pass


class Failing(Net):
    fail: BaseException | None = None

    def forward(self, input_ids, attention_mask=None):
        x = self.layers[0](self.embed(input_ids))
        if self.fail is not None:
            raise self.fail
        return self.head(self.layers[2](self.layers[1](x)))


def untouched(model):
    return all("forward" not in m.__dict__ and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("error", [Boom("here"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["model", "visit", "block"])
def test_errors_surface_and_leave_the_model_as_it_was(error, where):
    model = Failing()
    model.train()
    model.layers[1].eval()
    batches = token_batches()
    walker = Walker(model, batches, find_scope(model), gram=False)
    walker.units()
    if where == "model":
        model.fail = error
    if where == "block":
        model.layers[1].up.register_forward_hook(lambda *a: (_ for _ in ()).throw(error))

    def visit(unit, stats):
        if where == "visit" and unit.path == "layers.1":
            raise error

    import threading

    before = threading.active_count()
    with pytest.raises(type(error)) as caught:
        walker.walk(visit)
    if where == "model":  # the traceback leads into the model
        assert any(entry.name == "forward" for entry in caught.traceback)
    assert threading.active_count() == before
    assert untouched(model)
    assert model.training and model.head.training and not model.layers[1].training
    assert torch.backends.mha.get_fastpath_enabled()
    model.fail = None
    model.layers[1].up._forward_hooks.clear()
    Walker(model, batches, find_scope(model), gram=False).walk(lambda unit, stats: None)


def test_gradients_modes_and_hooks_are_restored():
    model = net()
    model.train()
    model.layers[0].forward = model.layers[0].forward  # an instance attribute of the caller's own
    own = model.layers[0].forward
    Walker(model, token_batches(), find_scope(model), gram=False).walk(lambda unit, stats: None)
    assert model.training and torch.is_grad_enabled() and model.layers[0].forward is own
    assert model(torch.zeros(1, 2, dtype=torch.long)).requires_grad


@pytest.mark.hf
def test_caches_and_fused_experts_are_off_while_walking_and_back_afterwards():
    pytest.importorskip("transformers")
    family = next(f for f in families.FAMILIES if f.name == "mixtral")
    model = family.build()
    before = (model.config.use_cache, model.config._experts_implementation)
    during = []
    Walker(model, family.batches(), find_scope(model), gram=False).walk(
        lambda unit, stats: during.append((model.config.use_cache, model.config._experts_implementation))
    )
    assert during == [(False, "eager")] * 2
    assert (model.config.use_cache, model.config._experts_implementation) == before != during[0]


def test_a_block_that_runs_twice_makes_the_model_one_unit():
    model, batches = net(repeat=2), token_batches()
    walker = Walker(model, batches, find_scope(model), gram=False)
    found = {}
    walker.walk(lambda unit, stats: found.update({unit.path: stats}))
    assert list(found) == [""] and "more than once" in walker.notes[0]
    assert found[""]["layers.0.up.weight"][0].tokens == 2 * 3 * 10  # both rounds, all batches


@pytest.mark.hf
def test_albert_is_one_unit_with_all_its_rounds():
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(**families.SMALL, embedding_size=16)
    model = transformers.AlbertModel(config).eval()
    walker = Walker(model, families.ragged(), find_scope(model), gram=False)
    found = {}
    walker.walk(lambda unit, stats: found.update(stats))
    tokens = 9 + 5 + 2 + 3 + 7 + 6 + 6
    name = next(n for n in found if n.endswith("query.weight"))
    assert [u.path for u in walker.units()] == [""] and found[name][0].tokens == 2 * tokens


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(Layer(), Layer())
        self.right = nn.Sequential(Layer(), Layer())

    def forward(self, a=None, b=None):
        return [tower(x) for tower, x in ((self.right, b), (self.left, a)) if x is not None]


def test_units_come_in_call_order_and_unreached_ones_are_reported():
    model = Towers()
    both = Walker(model, [{"a": torch.randn(2, 8), "b": torch.randn(2, 8)}], find_scope(model), gram=False)
    assert [u.path for u in both.units()] == ["right.0", "right.1", "left.0", "left.1"]
    walker = Walker(model, [{"a": torch.randn(2, 8)}], find_scope(model), gram=False)
    seen = {}
    walker.walk(lambda unit, stats: seen.update({unit.path: stats}))
    assert list(seen) == ["left.0", "left.1", "right.0", "right.1"]
    assert {p.name for p in walker.unreached} == {n for n in find_scope(model).prunables if n.startswith("right")}
    assert all(s[0].tokens == 0 and not s[0].norm.any() for n, s in seen["right.0"].items())
    assert all(s[0].tokens == 2 for s in seen["left.0"].values())


def test_batches_may_reach_different_units():
    model = Towers()
    batches = [{"a": torch.randn(2, 8)}, {"b": torch.randn(3, 8)}, {"a": torch.randn(4, 8), "b": torch.randn(5, 8)}]
    walker = Walker(model, batches, find_scope(model), gram=False)
    seen = {}
    walker.walk(lambda unit, stats: seen.update(stats))
    assert not walker.unreached and not walker.notes
    assert seen["left.0.up.weight"][0].tokens == 6 and seen["right.1.down.weight"][0].tokens == 8


@pytest.mark.parametrize("name", ["net", "llama", "t5", "cnn"])
def test_spilling_changes_nothing_and_frees_memory(name, tmp_path, monkeypatch):
    if name == "net":
        build, batches = lambda: net(width=32), [{"input_ids": torch.arange(20).repeat(4, 5)} for _ in range(3)]
    else:
        if name != "cnn":
            pytest.importorskip("transformers")
        family = next(f for f in families.FAMILIES if f.name == name)
        build, batches = family.build, family.batches()
    monkeypatch.setattr("winnow.calibrate.spill.SMALLEST", 1)
    plain, spilled = build(), build()
    Walker(plain, batches, find_scope(plain), gram=True).walk(wanda(plain))
    parked = []
    park = Spill.park

    def recorded(self, key, call):
        parked.append((call, park(self, key, call)))

    monkeypatch.setattr(Spill, "park", recorded)
    sizes = []

    def visit(unit, stats):
        hidden = [t for call, _ in parked[-len(batches) :] for t in call[0] if isinstance(t, torch.Tensor)]
        sizes.extend(t.untyped_storage().nbytes() for t in hidden if t.dim() == 3 and t.is_floating_point())
        wanda(spilled)(unit, stats)

    Walker(spilled, batches, find_scope(spilled), gram=True, spill=tmp_path / "spill").walk(visit)
    assert same_weights(plain, spilled)
    assert sum(freed for _, freed in parked) > 0
    assert name == "cnn" or (sizes and not any(sizes))
    assert not (tmp_path / "spill").exists()


def test_spill_keeps_every_reference_alive(tmp_path):
    base = torch.randn(64, 64)
    view, copy_of = base[:, 1:5], base.clone()
    owned = torch.randn(64, 64)
    spill = Spill(tmp_path / "s", [owned])
    assert spill.park(0, ((base, view, owned), {"x": base})) == base.numel() * 4
    assert base.untyped_storage().nbytes() == 0 and owned.untyped_storage().nbytes() > 0
    spill.fetch(0)
    assert torch.equal(base, copy_of) and torch.equal(view, copy_of[:, 1:5])
    spill.drop(0)
    spill.fetch(0)
    spill.release(0)
    assert torch.equal(base, copy_of) and not list((tmp_path / "s").iterdir())
    # held by the model at a later stop, though no longer an argument of the block
    assert spill.park(0, ((torch.randn(64, 64),), {})) == 2 * base.numel() * 4
    assert base.untyped_storage().nbytes() == 0
    spill.fetch(0)
    assert torch.equal(base, copy_of)
    spill.close()
    assert not (tmp_path / "s").exists()


def test_spill_says_when_the_disk_refuses(tmp_path):
    spill = Spill(tmp_path / "s", [])
    (tmp_path / "s").rmdir()
    with pytest.raises(WinnowError, match="free disk space"):
        spill.park(0, (torch.randn(64, 64),))


def test_bad_activations_name_the_layer():
    model = net()
    with torch.no_grad():
        model.layers[1].up.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layers\.1\.down"):
        Walker(model, token_batches(), find_scope(model), gram=False).walk(lambda unit, stats: None)
    with pytest.raises(InputError, match="calibration data"):
        Walker(model, [], find_scope(model), gram=False)


def test_half_precision_inputs_are_summed_in_float32():
    x = torch.randn(3000, 7).bfloat16()
    stats = InputStats.zeros(7, gram=True)
    for chunk in x.split(700):
        stats.update(chunk)
    exact = x.double()
    torch.testing.assert_close(stats.sum_sq, exact.square().sum(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(stats.gram.double(), exact.t() @ exact, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(stats.variance, exact.var(0, unbiased=False), rtol=1e-5, atol=1e-7)
    assert stats.tokens == 3000 and stats.sum.dtype == torch.float64


def test_gram_can_be_asked_for_layer_by_layer():
    model = net()
    found = {}
    Walker(model, token_batches(), find_scope(model), gram=lambda p: p.name.endswith("down.weight")).walk(
        lambda unit, stats: found.update(stats)
    )
    assert all((stats[0].gram is not None) == name.endswith("down.weight") for name, stats in found.items())


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_runs_with_the_pruned_weights(batch_first):
    torch.manual_seed(0)
    model = families.Encoder(batch_first).eval()
    batches = families.encoder_batches()
    with torch.no_grad():
        dense = [call_model(model, b) for b in batches]
    masks = {}
    Walker(model, batches, find_scope(model), gram=False).walk(wanda(model, masks))
    assert {n.rpartition(".")[2] for n in masks} == {"in_proj_weight", "weight"}
    for name, keep in masks.items():
        zeros = (model.get_parameter(name) == 0).float().mean()
        assert 0.49 < zeros < 0.51 and 0.49 < keep.float().mean() < 0.51
    # Attention written out with explicitly masked weights gives the model's own output.
    x, pad = batches[0]["x"], batches[0]["src_key_padding_mask"]
    with torch.no_grad():
        got = call_model(model, batches[0])
        h = x if batch_first else x.transpose(0, 1)
        for layer in model.encoder.layers:
            h = written_out(layer, h, pad, batch_first)
        torch.testing.assert_close(got, model.head(h), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, dense[0], atol=1e-3)


def written_out(layer, x, pad, batch_first):
    attention = layer.self_attn
    y = x if batch_first else x.transpose(0, 1)
    q, k, v = (y @ attention.in_proj_weight.t() + attention.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / 2.0).masked_fill(pad[:, None, None], float("-inf"))
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    y = y @ attention.out_proj.weight.t() + attention.out_proj.bias
    x = layer.norm1(x + (y if batch_first else y.transpose(0, 1)))
    return layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))


def test_experts_the_wrong_way_round_are_refused():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 8, 8))
            self.down = nn.Parameter(torch.randn(4, 8, 8))

        def forward(self, x):
            return sum(torch.relu(x @ self.up[e]) @ self.down[e] for e in range(4))

    class MoE(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(8, 4)
            self.experts = Experts()

        def forward(self, x):
            return self.experts(x) * self.router(x).sum(-1, keepdim=True)

    model = nn.Sequential(MoE(), MoE())
    with pytest.raises(InputError, match="exclude"):
        Walker(model, [torch.randn(5, 8)], find_scope(model), gram=False).walk(lambda unit, stats: None)


@pytest.mark.parametrize("chunk", [1, 700, 1 << 24])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_windows_of_convolutions_give_the_output(dims, chunk, monkeypatch):
    """w G w^T is the energy of the convolution's output: no second unfold is needed to check the column order."""
    monkeypatch.setattr("winnow.calibrate.windows.CHUNK", chunk)
    make = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    conv = make(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)
    x = torch.randn(2, 4, *[7, 6, 9][:dims])
    y = conv(x).detach().double()
    weight = conv.weight.detach().double().reshape(2, 3, -1)
    for gram in (True, False):
        stats = InputStats.stacked(2, weight.shape[-1], gram=gram)
        update_windows(stats, conv, x)
        assert all(s.tokens == y.numel() // 6 for s in stats)
        totals = torch.cat([w @ s.sum for w, s in zip(weight, stats)])
        torch.testing.assert_close(totals, y.transpose(0, 1).flatten(1).sum(1), rtol=1e-4, atol=1e-4)
        if gram:
            energy = torch.cat([((w @ s.gram.double()) * w).sum(1) for w, s in zip(weight, stats)])
            torch.testing.assert_close(energy, y.transpose(0, 1).flatten(1).square().sum(1), rtol=1e-5, atol=1e-5)
            norms = [s.gram.diagonal().double() for s in stats]
        else:
            for s, diagonal in zip(stats, norms):
                torch.testing.assert_close(s.sum_sq, diagonal, rtol=1e-5, atol=1e-6)
