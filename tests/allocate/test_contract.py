"""What every allocation promises, for each name in the registry."""

import inspect
import re
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.allocate import ALLOCATIONS, EXISTING, NAMES, LayerInfo, allocate
from winnow.errors import InputError
from winnow.masks.ranking import limits

OWN = ("uniform", "global", "table", "zeros")  # of nobody's paper


def make(shapes, seed=0, blocks=True, ties=False, zeros=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for i, (rows, cols) in enumerate(shapes):
        weight = torch.ones(rows, cols) if ties else torch.randn(rows, cols, generator=generator) * (1 + i)
        weight.view(-1)[: max(0, min(zeros, weight.numel()))] = 0
        zeros -= weight.numel()
        layers.append(LayerInfo(f"l{i}", rows, cols, f"b{i // 2}" if blocks else None, (), weight, weight.abs()))
    return layers


def total(layers):
    return sum(layer.numel for layer in layers)


def options(name):
    return {"table": {"l0": 0.5}} if name == "table" else {}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_exact_within_limits_repeatable_and_monotone(name, data):
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=4, max_size=6))
    kind = {"seed": data.draw(st.integers(0, 9)), "blocks": data.draw(st.booleans()), "ties": data.draw(st.booleans())}
    low, high = 0, total(make(shapes))
    if name == "table":  # which fixes the count of l0
        first = shapes[0][0] * shapes[0][1]
        low, high = round(0.5 * first), high - first + round(0.5 * first)
    previous = None
    for zeros in sorted((data.draw(st.integers(low, high)), data.draw(st.integers(low, high)))):
        layers = make(shapes, **kind, zeros=zeros if name == "zeros" else 0)
        copies = [(v.weight.clone(), v.scores.clone()) for v in layers]
        counts = allocate(name, layers, zeros, **options(name))
        assert all(torch.equal(v.weight, w) and torch.equal(v.scores, s) for v, (w, s) in zip(layers, copies))
        assert list(counts) == [layer.name for layer in layers] and sum(counts.values()) == zeros
        caps = limits([layer.numel for layer in layers], zeros, 0.99)
        for layer, cap in zip(layers, caps):
            assert 0 <= counts[layer.name] <= (layer.numel if name in ("table", "zeros") else cap)
        assert counts == allocate(name, layers, zeros, **options(name))
        if previous is not None and zeros < 0.99 * total(layers) - len(layers):  # above, the limits give way
            assert all(counts[n] >= previous[n] - 1 for n in counts)
        previous = counts


@pytest.mark.parametrize("name", NAMES)
def test_documented_with_source_and_with_what_it_needs(name):
    module = {**ALLOCATIONS, **EXISTING}[name]
    text = inspect.getdoc(getattr(import_module(f"winnow.allocate.{module}"), module))
    assert name in OWN or re.search(r"\b(19|20)\d\d\b", text)
    for field in ("weight", "scores"):
        layers = [
            LayerInfo(v.name, v.rows, v.cols, v.block, (), **{"weight": v.weight, "scores": v.scores, field: None})
            for v in make([(4, 4)] * 4, zeros=24 if name == "zeros" else 0)
        ]
        if f"Needs ``{field}``" in text:
            with pytest.raises(InputError, match=f"needs the {field} of l0"):
                allocate(name, layers, 24, **options(name))
        else:
            allocate(name, layers, 24, **options(name))
