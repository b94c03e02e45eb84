"""Scope and walker on every family, against plain hooks and padding removed by other means."""

from __future__ import annotations

import copy

import pytest
import torch

import families
from walked import close, reference, same
from winnow.calibrate.walker import Walker
from winnow.forward.batch import call as call_model
from winnow.masks.blocks import find_blocks
from winnow.masks.scope import find_scope

PARAMS = [
    pytest.param(f, id=f.name, marks=[] if f.name in families.TORCH else pytest.mark.hf) for f in families.FAMILIES
]


@pytest.fixture(params=PARAMS)
def family(request):
    if request.param.name not in families.TORCH:
        pytest.importorskip("transformers")
    return request.param


def test_scope_counts(family):
    model = family.build()
    scope = find_scope(model)
    assert scope.numel == family.weights
    assert [b.path for b in find_blocks(model)] == family.blocks
    assert scope.numel + sum(s.numel for s in scope.skipped) == sum(p.numel() for p in model.parameters())
    assert all(s.reason for s in scope.skipped)
    for name, p in scope.prunables.items():
        weight = model.get_parameter(name)
        assert p.rows * p.cols == weight.numel()
        assert torch.equal(p.restore(p.matrix(weight)), weight)
    with torch.device("meta"):
        skeleton = find_scope(copy.deepcopy(model).to("meta"))
    assert skeleton.prunables == scope.prunables


def test_statistics_are_those_of_plain_hooks(family):
    model, batches = family.build(), family.batches()
    expected = reference(family, copy.deepcopy(model), batches)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    scope = find_scope(model)
    walker = Walker(model, batches, scope, gram=True)
    found = {}
    walker.walk(lambda unit, stats: found.update(stats))
    assert found.keys() == scope.prunables.keys() and not walker.unreached and not walker.notes
    for name, parts in found.items():
        assert len(parts) == scope.prunables[name].parts
        for stats, (tokens, total, squares, gram) in zip(parts, expected[name]):
            assert stats.tokens == tokens, name
            scale = max(float(gram.abs().max()), 1e-6)
            assert close(stats.sum, total, max(scale, float(total.abs().max()))), name
            assert close(stats.sum_sq, squares, scale), name
            assert close(stats.gram, gram, scale), name
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_norms_without_gram_agree(family):
    model, batches = family.build(), family.batches()
    scope = find_scope(model)
    with_gram, without = {}, {}
    Walker(model, batches, scope, gram=True).walk(lambda unit, stats: with_gram.update(stats))
    Walker(model, batches, scope, gram=False).walk(lambda unit, stats: without.update(stats))
    for name, parts in without.items():
        for a, b in zip(parts, with_gram[name]):
            assert a.gram is None and a.tokens == b.tokens
            torch.testing.assert_close(a.sum_sq, b.sum_sq, rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(a.sum, b.sum, rtol=1e-4, atol=1e-4)


def flat(values):
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [t for v in values for t in flat(v)] if isinstance(values, (tuple, list)) else []


def test_blocks_see_the_inputs_of_a_plain_forward(family):
    model, batches = family.build(), family.batches()
    paths = family.blocks or [""]
    plain: dict[str, list] = {path: [] for path in paths}
    walked: dict[str, list] = {path: [] for path in paths}

    def record(store, path, forward):
        def recording(*args, **kwargs):
            store[path].append([t.clone() for t in flat((args, kwargs))])
            return forward(*args, **kwargs)

        return recording

    for store in (plain, walked):
        for path in paths:
            module = model.get_submodule(path)
            module.forward = record(store, path, type(module).forward.__get__(module))
        if store is plain:
            with torch.no_grad():
                for batch in batches:
                    call_model(model, batch)
        else:
            Walker(model, batches, find_scope(model), gram=False).walk(lambda unit, stats: None)
    for path in paths:
        for inputs in plain[path]:
            assert any(same(inputs, call) for call in walked[path]), path
    # every block but the last runs twice on every batch, and the probe comes on top
    assert sum(len(calls) for calls in walked.values()) >= len(batches) * (2 * len(paths) - 1)


SHARED = {
    "llama": [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]],
    "bert": [["attention.self.query", "attention.self.key", "attention.self.value"]],
    "t5": [["layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"]],
    "clip": [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]],
    "phi": [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"]],
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.hf
def test_layers_that_read_one_input_share_statistics(name):
    pytest.importorskip("transformers")
    family = next(f for f in families.FAMILIES if f.name == name)
    model = family.build()
    found = {}
    Walker(model, family.batches(), find_scope(model), gram=True).walk(lambda unit, stats: found.update(stats))
    for block in family.blocks:
        for group in SHARED[name]:
            assert len({id(found[f"{block}.{layer}.weight"][0]) for layer in group}) == 1
    distinct = {id(s) for parts in found.values() for s in parts}
    assert len(distinct) < len(found)
