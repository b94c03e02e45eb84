"""Zeros that a model has before it is pruned: they stay, none is stored as a value, and what is counted is what is there."""

from __future__ import annotations

import random

import pytest
import torch

import winnow
from small import classifier, points, trained
from winnow.compression.counts import at_least, zeros_note
from winnow.formats.packed import PackedTensor
from winnow.masks.structure import NM, Unstructured

QUICK = dict(baselines="none", speed=False, task="none", samples=32)


def sparse(shares: tuple[float, ...] = (0.7,)):
    """A model with so large a share of zeros in its matrices, taken by magnitude, in turn."""
    x, y = points()
    model = trained(classifier(), x, y, 20)
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for w in (block.up.weight, block.down.weight):
                share = shares[i % len(shares)]
                if share:
                    w[w.abs() <= w.abs().flatten().kthvalue(int(share * w.numel())).values] = 0
    return model, x


def values_that_are_zero(packed: PackedTensor) -> int:
    """Of floats: codes may be zero by rounding."""
    return int((packed.data == 0).sum()) if packed.data.is_floating_point() else 0


METHODS = (
    dict(method="magnitude"), dict(method="lamp"), dict(method="wanda"), dict(method="sparsegpt"), dict(method="alps"),
    dict(method="magnitude", values="int4", group_size=32), dict(method="wanda", values="int8"), dict(method="reconstruct", settings={"steps": 2}),
    dict(method="distil", settings={"steps": 2, "batch": 16}), dict(structure="neuron", method="magnitude"),
)  # fmt: skip


@pytest.mark.parametrize("options", METHODS, ids=lambda o: "-".join(str(v) for v in o.values()))
@pytest.mark.parametrize(("shares", "asked"), [((0.7,), 0.5), ((0.9, 0.0, 0.3), 0.5), ((0.7,), 0.8)])
def test_counted_zeros_are_the_zeros_there(shares, asked, options, tmp_path):
    model, x = sparse(shares)
    own = {n: p == 0 for n, p in model.named_parameters()}
    result = winnow.compress(model, x, sparsity=asked, out=tmp_path / "out", **{**QUICK, **options})
    before = sum(int(own[layer.name].sum()) for layer in result.layers)
    for layer in result.layers:
        weight = result.model.get_parameter(layer.name)
        packed = result.chosen.pruned.packed(layer.name)
        if options.get("values") in (None, "keep"):
            assert layer.zeros == packed.zeros == int((weight == 0).sum())
            assert values_that_are_zero(packed) == 0
        else:  # codes that round to zero are values, but never those of a weight that was zero
            assert layer.zeros == packed.zeros and not (packed.keep() & own[layer.name] & (weight == 0)).any()
    zeros, numel = sum(layer.zeros for layer in result.layers), sum(layer.numel for layer in result.layers)
    if "structure" not in options:
        assert max(before, round(asked * numel)) <= zeros <= max(before, round(asked * numel)) + 0.02 * numel
        row = result.report.picked
        assert row.sparsity == zeros / numel and result.report.requested.zeros_reached == zeros
        if before > asked * numel:
            assert any("more than the 50% requested" in n for n in result.report.notes)
            assert result.chosen.candidate.recipe.sparsity == pytest.approx(before / numel, abs=1e-4)
    from winnow.formats.artifact import read_artifact

    assert read_artifact(tmp_path / "out").manifest["zeros"] == zeros


def test_a_tensor_is_asked_for_no_fewer_than_it_has_and_the_sum_stays_where_it_can():
    rng = random.Random(1)
    for _ in range(500):
        names = [str(i) for i in range(rng.randint(1, 6))]
        own = {n: rng.choice([0, 0, rng.randint(0, 100)]) for n in names}
        counts = {n: rng.randint(0, 100) for n in names}
        found = at_least(counts, own)
        assert all(found[n] >= own[n] for n in names)
        assert sum(found.values()) == max(sum(counts.values()), sum(own.values()))
        if all(counts[n] >= own[n] for n in names):
            assert found == counts


def test_what_a_pattern_keeps_is_said():
    assert "stored as values" in zeros_note(700, 1000, NM(2, 4), requested=None)[0]
    assert zeros_note(3, 1000, Unstructured(), requested=0.5) == []


def test_two_rates_below_what_is_there_are_one_candidate():
    model, x = sparse()
    result = winnow.compress(model, x, sparsity=[0.3, 0.5, 0.9], method="magnitude", **QUICK)
    assert len(result.outcomes) == 2


def test_a_model_without_zeros_is_as_before():
    x, y = points()
    model = trained(classifier(), x, y, 5)
    result = winnow.compress(model, x, sparsity=0.37, method="wanda", **QUICK)
    numel = sum(layer.numel for layer in result.layers)
    assert sum(layer.zeros for layer in result.layers) == round(0.37 * numel)
    assert not any("already" in n for n in result.report.notes)
