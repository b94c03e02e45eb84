"""What every solver promises, for each name in the registry and for chains of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from layers import CallsInMemory, make_layer, stats_of
from patterns import realized
from winnow.masks.prunable import Prunable
from winnow.masks.structure import NM
from winnow.quantize import Grid
from winnow.scores import score
from winnow.solve import NAMES, Problem, Solution, solve, solve_group
from winnow.solve.calls import Call
from winnow.solve.reconstruct import Reconstruction
from winnow.solve.settings import ReconstructSettings

OF_UNITS = ("reconstruct",)  # fit whole blocks to their calls
LAYERWISE = [name for name in NAMES if name not in OF_UNITS]
CHAINS = [*LAYERWISE, "swap+lsq", "sparsegpt+lsq", "sparsegpt+swap+lsq", "none+sparsegpt"]


def solved(name, weight, inputs, stats, keep):
    """(solution on the mask ``keep``, error of the mask alone, error of the solution), each by the solver's own measure."""
    zeros = int((~keep).sum())
    if name not in OF_UNITS:
        problem = Problem(weight, stats, zeros, keep=keep)
        found = solve(problem, name)
        return found, solve(problem, "none").error, found.error
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    layers = {"weight": (Prunable("weight", "", "linear", tuple(weight.shape)), keep)}
    calls = CallsInMemory([Call((x,), {}, x @ weight.T) for x in inputs.split(60)])
    fit = Reconstruction(layer, layers, calls, ReconstructSettings(steps=20)).run()
    assert torch.equal(layer.weight, weight)
    return Solution(fit.tensors["weight"], keep, None, fit.after), fit.before, fit.after


@pytest.mark.parametrize("name", NAMES)
def test_a_given_mask_is_held_refined_and_the_same_again(name):
    weight, inputs, stats = make_layer(8, 40)
    keep = torch.rand(8, 40, generator=torch.Generator().manual_seed(2)) < 0.5
    found, before, after = solved(name, weight, inputs.float(), stats, keep)
    if name == "swap":  # exchanges kept weights for pruned ones, row by row
        assert torch.equal(found.keep.sum(1), keep.sum(1))
    else:
        assert torch.equal(found.keep, keep)
    assert (found.weight[~found.keep] == 0).all() and torch.isfinite(found.weight).all()
    assert after == before if name == "none" else after < before
    again, *_ = solved(name, weight, inputs.float(), stats, keep)
    assert torch.equal(found.weight, again.weight) and torch.equal(found.keep, again.keep)


@pytest.mark.parametrize("name", LAYERWISE)
def test_documented(name):
    assert f"``{name}``" in solve_group.__doc__


@settings(deadline=None, max_examples=60)
@given(
    chain=st.sampled_from(CHAINS),
    rows=st.integers(1, 7),
    cols=st.integers(1, 40),
    share=st.floats(0, 1),
    group=st.sampled_from(["layer", "row"]),
    holes=st.floats(0, 0.6),
    dead=st.integers(0, 3),
    grid=st.sampled_from([None, Grid(4, 16), Grid(8)]),
    seed=st.integers(0, 10**6),
)
def test_exactly_the_zeros_asked_for_and_those_that_are_there_first(
    chain, rows, cols, share, group, holes, dead, grid, seed
):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    weight[torch.rand(rows, cols, generator=generator) < holes] = 0
    inputs = make_layer(1, cols, seed, tokens=30)[1]
    inputs[:, :dead] = 0
    stats, zeros = stats_of(inputs), round(share * weight.numel())
    problem = Problem(weight, stats, zeros, group=group, scores=score("wanda", weight, stats), grid=grid)
    found = solve(problem, chain)
    gone = ~found.keep
    assert int(gone.sum()) == zeros
    assert (found.weight[gone] == 0).all() and torch.isfinite(found.weight).all()
    if group == "row":
        assert gone.sum(1).tolist() == [zeros // rows + (i < zeros % rows) for i in range(rows)]
    if "swap" not in chain:  # exchanges may give a zero weight its place back: it costs nothing either way
        empty = weight == 0
        if group == "layer":
            assert int((gone & empty).sum()) == min(zeros, int(empty.sum()))
        else:
            assert torch.equal((gone & empty).sum(1), torch.minimum(gone.sum(1), empty.sum(1)))
    if grid is not None:
        assert torch.equal(found.weight, found.quantized.dequantize())
        assert (found.quantized.codes[gone] == 0).all()
        assert found.quantized.codes.min() >= grid.low and found.quantized.codes.max() <= grid.high


@pytest.mark.parametrize("chain", [*LAYERWISE, "swap+lsq", "sparsegpt+lsq"])
@pytest.mark.parametrize("structure", [NM(2, 4), NM(1, 8)])
@pytest.mark.parametrize("grid", [None, Grid(4, 16), Grid(4)])
def test_n_of_m_in_every_group_of_every_chain(chain, structure, grid):
    weight, _, stats = make_layer(8, 48)
    weight[:, ::3] = 0
    zeros = weight.numel() // structure.m * (structure.m - structure.n)
    problem = Problem(weight, stats, zeros, structure, scores=score("wanda", weight, stats), grid=grid)
    found = solve(problem, chain)
    assert realized(structure, found.keep) and (found.weight[~found.keep] == 0).all()


def test_the_callers_tensors_are_left_alone():
    weight, _, stats = make_layer(8, 40)
    keep, scores = torch.rand(8, 40) < 0.5, weight.abs()
    copies = [t.clone() for t in (weight, keep, scores, stats.gram)]
    for chain in CHAINS:
        for mask in (None, keep):
            for grid in (None, Grid(4)):
                solve(Problem(weight, stats, int((~keep).sum()), scores=scores, keep=mask, grid=grid), chain)
    assert all(torch.equal(a, b) for a, b in zip(copies, (weight, keep, scores, stats.gram), strict=True))
