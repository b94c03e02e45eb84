"""Tensors that no float16 scale holds keep their type: named, counted, stored as they are, and budgeted so."""

from __future__ import annotations

import pytest
import torch

import winnow
from small import Classifier, points

ODD = "blocks.1.up.weight"  # feeds a layer whose output its consumer would take at any scale


def odd_model(factor, row=None):
    torch.manual_seed(1)
    model = Classifier().eval()
    with torch.no_grad():
        weight = model.get_parameter(ODD)
        (weight if row is None else weight[row]).mul_(factor)
    return model


def compressed(model, x, **options):
    return winnow.compress(model, x, task="none", baselines="none", speed=False, **options)


CASES = [
    (1e-5, None, dict(method="magnitude")),
    (1e-5, None, dict(method="sparsegpt")),
    (1e-5, None, dict(method="alps")),
    (1e-5, None, dict(method="reconstruct", allocation="uniform", settings={"steps": 5})),
    (1e-9, 3, dict(method="wanda")),  # rows lose equally many: what is left of the row needs a scale
    (1e-9, 3, dict(method="swap+lsq")),
    (1e12, None, dict(method="magnitude")),
    (1e12, 3, dict(method="sparsegpt", group="row")),
]


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("factor, row, options", CASES)
def test_a_tensor_that_scales_do_not_hold_keeps_its_type(factor, row, options, values, tmp_path):
    x, model = points(64)[0], odd_model(factor, row)
    result = compressed(model, x, sparsity=0.5, values=values, out=tmp_path / "out", **options)
    (note,) = [n for n in result.report.notes if "keep their type" in n]
    assert f"1 of 6 tensors keep their type and are not {values}" in note and f"{ODD} (float32)" in note
    (chosen,) = [c for c in result.report.candidates if c.chosen]
    assert chosen.note == "1 of 6 tensors keep their type"
    bits = {layer.name: layer.bits_per_weight for layer in result.report.layers}
    assert bits[ODD] > 16 and all(b < 9 for name, b in bits.items() if name != ODD)
    got, was = result.model.get_parameter(ODD).detach(), model.get_parameter(ODD).detach()
    kept = got != 0
    assert int((~kept).sum()) == got.numel() // 2
    if options["method"] in ("magnitude", "wanda"):
        assert torch.equal(got[kept], was[kept])
    loaded = winnow.load(tmp_path / "out", factory=Classifier)
    assert torch.equal(loaded.get_parameter(ODD), got) and torch.equal(loaded(x), result.model(x))
    packed = sum(y.bits_per_weight * y.rows * y.cols for y in result.report.layers) / 8
    sizes = result.report.sizes
    assert sizes.packed_values + sizes.masks + sizes.scales == pytest.approx(packed)


def test_the_budget_knows_of_it():
    x = points(64)[0]
    results = [
        compressed(odd_model(factor), x, method="magnitude", values="int8", bits_per_weight=5.0)
        for factor in (1.0, 1e-7)
    ]
    for result in results:
        numel = sum(y.rows * y.cols for y in result.report.layers)
        stored = sum(y.bits_per_weight * y.rows * y.cols for y in result.report.layers) / numel
        assert 4.9 < stored <= 5.01
    usual, other = (r.report.requested.zeros_reached for r in results)
    assert other > usual


def test_scales_that_hold_change_nothing():
    result = compressed(odd_model(1e-2), points(64)[0], sparsity=0.5, method="magnitude", values="int8")
    assert not any("keep their type" in n for n in result.report.notes)
    assert all(layer.bits_per_weight < 9 for layer in result.report.layers)
