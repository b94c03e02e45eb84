"""The methods' published order, on one layer whose inputs have what makes them differ: correlation and outliers."""

import pytest
import torch

from layers import stats_of
from winnow.masks.structure import NM
from winnow.scores import score
from winnow.solve import Problem, solve

ROWS, COLS, TOKENS = 64, 96, 1024


@pytest.fixture(scope="module")
def layer():
    """Correlated inputs with log-normal scales, three outlier channels eight times as large; rows of unequal size."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = normal(TOKENS, COLS) @ normal(COLS, COLS) / COLS**0.5
    inputs *= normal(COLS).exp()
    inputs[:, torch.randperm(COLS, generator=generator)[:3]] *= 8
    weight = normal(ROWS, COLS) * (0.5 * normal(ROWS, 1)).exp()
    return weight.float(), stats_of(inputs)


def error(layer, sparsity, chain, name="wanda", group="layer", **kwargs):
    weight, stats = layer
    zeros = round(sparsity * weight.numel())
    problem = Problem(weight, stats, zeros, group=group, scores=score(name, weight, stats), **kwargs)
    found = solve(problem, chain)
    assert int((~found.keep).sum()) == zeros
    return found.error


@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7, 0.8])
def test_the_order_of_methods(layer, sparsity):
    ascending = [
        error(layer, sparsity, "alps"),
        error(layer, sparsity, "sparsegpt+lsq"),
        error(layer, sparsity, "sparsegpt"),
        error(layer, sparsity, "swap", group="row"),
        error(layer, sparsity, "none", group="row"),
        error(layer, sparsity, "none", name="magnitude"),
    ]
    assert ascending == sorted(ascending) and len(set(ascending)) == len(ascending)


def test_n_of_m_costs_more_than_anywhere(layer):
    for chain in ("none", "sparsegpt", "alps"):
        assert error(layer, 0.5, chain, structure=NM(2, 4)) > error(layer, 0.5, chain)
        assert error(layer, 0.5, chain, structure=NM(2, 4)) > error(layer, 0.5, chain, structure=NM(4, 8))


def test_on_white_inputs_wanda_is_magnitude_and_no_update_helps():
    orthogonal = torch.linalg.qr(torch.randn(200, 40, dtype=torch.float64)).Q * 3
    weight, stats = torch.randn(20, 40), stats_of(orthogonal)
    zeros = weight.numel() // 2
    masks, errors = [], []
    for name in ("wanda", "magnitude"):
        for chain in ("none", "lsq", "swap", "swap+lsq"):
            found = solve(Problem(weight, stats, zeros, group="row", scores=score(name, weight, stats)), chain)
            masks.append(found.keep)
            errors.append(found.error)
    for chain in ("sparsegpt", "sparsegpt+lsq"):
        found = solve(Problem(weight, stats, zeros, group="row"), chain)
        masks.append(found.keep)
        errors.append(found.error)
        assert torch.allclose(found.weight, weight * found.keep, atol=1e-4)
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert errors == pytest.approx([errors[0]] * len(errors), rel=1e-4)
    # ADMM may end a little off the best mask, which here is the plain ranking.
    found = solve(Problem(weight, stats, zeros, group="row"), "alps")
    assert errors[0] <= found.error * (1 + 1e-4) and found.error < 1.05 * errors[0]
    assert torch.allclose(found.weight, weight * found.keep, atol=1e-4)
