"""Layer by layer: every layer's statistics come from all pruned layers before it, and each layer runs once."""

import copy

import pytest
import torch

import families
from walked import close, reference
from winnow.calibrate.walk_units import one_stream
from winnow.calibrate.walker import Walker
from winnow.errors import InputError
from winnow.masks.scope import find_scope

NAMES = ["llama", "gpt2", "bert", "mixtral", "vit", "cnn", "mlp"]
CHOSEN = [f for f in families.FAMILIES if any(f.name.startswith(n) for n in NAMES)]


def halve(model, p):
    """Zeroes the smaller half of a matrix."""
    with torch.no_grad():
        weight = model.get_parameter(p.name)
        order = weight.abs().flatten().argsort(stable=True)
        weight.view(-1)[order[: weight.numel() // 2]] = 0


@pytest.mark.parametrize("family", CHOSEN, ids=lambda f: f.name)
def test_every_layer_sees_its_pruned_predecessors(family):
    if family.name not in families.TORCH:
        pytest.importorskip("transformers")
    model, batches = family.build(), family.batches()
    slow = copy.deepcopy(model)
    visited = []

    def visit(unit, stats):
        visited.append(
            (unit, {n: [(s.tokens, s.sum.clone(), s.gram.clone()) for s in parts] for n, parts in stats.items()})
        )
        for p in unit.prunables:
            halve(model, p)

    scope = find_scope(model)
    Walker(model, batches, scope, gram=True, by="layer").walk(visit)
    assert sorted(n for _, stats in visited for n in stats) == sorted(scope.prunables)
    for unit, stats in visited:
        expected = reference(family, slow, batches)
        for name, parts in stats.items():
            for (tokens, total, gram), (n, sums, _, grams) in zip(parts, expected[name], strict=True):
                assert tokens == n
                scale = float(grams.abs().max()) + 1e-12
                assert close(total, sums, max(scale, float(sums.abs().max()))) and close(gram, grams, scale)
        for p in unit.prunables:
            halve(slow, p)
    for (name, a), b in zip(model.state_dict().items(), slow.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["t5", "clip", "encoder_time_first"])
def test_models_of_several_streams_go_block_by_block(name):
    family = next(f for f in families.FAMILIES if f.name == name)
    if name not in families.TORCH:
        pytest.importorskip("transformers")
    model = family.build()
    assert not one_stream(model)
    with pytest.raises(InputError, match="block by block"):
        Walker(model, family.batches(), find_scope(model), gram=True, by="layer").units()
    assert all(one_stream(f.build()) for f in CHOSEN[:2])


def test_each_layer_runs_once_and_shared_inputs_are_counted_once():
    pytest.importorskip("transformers")
    family = next(f for f in families.FAMILIES if f.name == "llama")
    model, batches = family.build(), family.batches()
    runs = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            plain = module.forward
            module.forward = lambda x, plain=plain, name=name: runs.__setitem__(name, runs.get(name, 0) + 1) or plain(x)
    seen = {}
    walker = Walker(model, batches, find_scope(model), gram=True, by="layer")
    walker.units()
    runs.clear()  # the order was found by running one example
    walker.walk(lambda unit, stats: seen.update(stats))
    q, k, v = (seen[f"model.layers.0.self_attn.{x}_proj.weight"][0] for x in "qkv")
    assert q is k is v
    assert seen["model.layers.0.mlp.gate_proj.weight"][0] is seen["model.layers.0.mlp.up_proj.weight"][0]
    assert seen["model.layers.0.self_attn.o_proj.weight"][0] is not q
    inside = {n: c for n, c in runs.items() if "layers" in n}
    last = "model.layers.1.mlp.down_proj"
    assert all(count == len(batches) for name, count in inside.items() if name != last)
    assert last not in inside  # nobody needs what the last one puts out
