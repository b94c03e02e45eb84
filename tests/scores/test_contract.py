"""What every score promises, for each name in the registry."""

import inspect
import re

import pytest
import torch

import winnow.scores
from layers import stats_of
from winnow.errors import InputError
from winnow.scores import NAMES, needs_data, score

WEIGHT, INPUTS = (
    torch.randn(6, 4, generator=torch.Generator().manual_seed(1)),
    torch.tensor([[3.0, 0, 1, 2], [4, 2, 0, 1]]),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_float32_of_the_weights_shape_finite_with_empty_rows_and_columns(name, dtype):
    weight = WEIGHT.to(dtype, copy=True)
    weight[1] = 0
    weight[:, 2] = 0
    found = score(name, weight, stats_of(INPUTS * torch.tensor([1.0, 0, 1, 1])))
    assert found.dtype == torch.float32 and found.shape == weight.shape and torch.isfinite(found).all()
    assert (found >= 0).all()
    assert name == "random" or ((found[1] == 0).all() and (found[:, 2] == 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_pure_and_the_same_for_the_same_seed(name):
    weight, stats = WEIGHT.clone(), stats_of(INPUTS)
    state, sums = torch.get_rng_state(), stats.sum_sq.clone()
    first = score(name, weight, stats, seed=5)
    assert torch.equal(first, score(name, weight, stats, seed=5))
    assert torch.equal(weight, WEIGHT) and torch.equal(stats.sum_sq, sums) and not stats.cache
    assert torch.equal(state, torch.get_rng_state())  # the caller's generator is left alone
    assert torch.equal(first, score(name, weight, stats, seed=6)) == (name != "random")


@pytest.mark.parametrize("name", NAMES)
def test_needs_data_is_what_it_reads(name):
    found, other = score(name, WEIGHT, stats_of(INPUTS)), stats_of(INPUTS.flip(1))
    assert torch.equal(found, score(name, WEIGHT, other)) != needs_data(name)
    if not needs_data(name):
        assert torch.equal(found, score(name, WEIGHT, None))
        return
    with pytest.raises(InputError, match="calibration data"):
        score(name, WEIGHT, None)
    with pytest.raises(InputError, match="2 inputs"):
        score(name, WEIGHT, stats_of(INPUTS[:, :2]))


@pytest.mark.parametrize("name", NAMES)
def test_documented_with_shape_and_source(name):
    text = inspect.getdoc(getattr(winnow.scores, name))
    assert "float32 [R, C]" in text and re.search(r"\b(19|20)\d\d\b|baseline", text)
