"""No tensor is emptied: how much of one may go at most, in every way to find a ticket."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baseline_samples import find, network, task
from winnow.errors import InputError
from winnow.masks.global_ranking import global_magnitude
from winnow.masks.mask import MaskSet
from winnow.tickets.methods.isp.candidates import Pool
from winnow.tickets.methods.isp.denoise import denoise
from winnow.tickets.methods.registry import METHODS
from winnow.train.attach import attach
from winnow.train.methods.gradual import Gradual

FIRST, SECOND = 10 * 12, 12 * 12


def uneven():
    """A ranking over both tensors takes the first whole before any weight of the second."""
    model = network(batch_norm=False)
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
        model[0].bias.mul_(1e-6)
    return model


def gone_of_first(method: str, sparsity: float, **more) -> int:
    [ticket] = find(method, task(uneven(), steps=8, lr=1e-7), [sparsity], **more)
    assert ticket.zeros == round(sparsity * (FIRST + SECOND)) == ticket.masks.zeros
    return ticket.masks["0.weight"].zeros


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("dense", "sparse-training")]
)  # its methods have their own
def test_a_tensor_keeps_its_share(method):
    """Rankings by magnitude empty the first tensor where they may; random ones need not be told."""
    assert gone_of_first(method, 0.7, max_rate=0.75) <= 0.75 * FIRST
    if method in ("snip", "grasp", "synflow", "random"):
        return
    assert gone_of_first(method, 0.7, max_rate=1) == FIRST
    assert gone_of_first(method, 0.7) == int(0.99 * FIRST)  # unless told otherwise, as in winnow.allocate


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_scores_alone_would_pass_it(method):
    """So that the test before this one can fail for them too."""
    free = [gone_of_first(method, s, max_rate=1) / FIRST for s in (0.5, 0.7, 0.9)]
    capped = [gone_of_first(method, s, max_rate=s + 0.01) / FIRST for s in (0.5, 0.7, 0.9)]
    assert any(f > s + 0.02 or f < s - 0.02 for f, s in zip(free, (0.5, 0.7, 0.9)))
    assert all(c <= s + 0.01 for c, s in zip(capped, (0.5, 0.7, 0.9)))


@pytest.mark.parametrize("how", ["vote", "mean_abs", "forecast", "intersect", "literal"])
@pytest.mark.parametrize("max_rate", [0.5, 0.75, 0.99])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_soups_keep_it_too(how, max_rate, seed):
    """Candidates that agree on emptying a tensor: the count is still met, the tensor still keeps its share."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(4, 9, generator=generator) / 1e3, "b": torch.randn(5, 8, generator=generator)}
    keeps = {n: torch.rand(w.shape, generator=generator) > 0.2 for n, w in weights.items()}
    gone = sum(int((~k).sum()) for k in keeps.values())
    zeros = max(gone, int(76 * 0.6))
    pool = Pool(total={n: torch.zeros_like(w) for n, w in weights.items()})
    for _ in range(3):
        other = {n: w.abs() + 1e-4 * torch.rand(w.shape, generator=generator) for n, w in weights.items()}
        pool.masks.append(MaskSet(global_magnitude(other, keeps, zeros, 1.0)))  # candidates that know no limit
        for n in weights:
            pool.total[n] += other[n]
    mean = {n: total / 3 for n, total in pool.total.items()}
    found = denoise(how, pool, weights, keeps, zeros, max_rate=max_rate, mean=mean)
    for n, k in keeps.items():
        already = int((~k).sum())
        fair = -(-zeros * k.numel() // 76)
        assert found[n].zeros <= max(int(max_rate * k.numel()), fair, already)
    assert found.zeros == zeros


def test_gradual_in_other_peoples_loops():
    model = uneven()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    for max_rate, expected in ((1.0, FIRST), (0.99, int(0.99 * FIRST)), (0.75, 90)):
        twin = network(batch_norm=False)
        twin.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(twin.parameters(), 0.0)
        attached = attach(twin, optimizer, Gradual(0.7, end=4, every=1, max_rate=max_rate))
        for _ in range(5):
            twin(torch.randn(3, 10)).sum().backward()
            optimizer.step()
        assert attached.zeros == round(0.7 * attached.numel)
        assert int((~attached.keeps["0.weight"]).sum()) == expected


def test_a_share_outside_0_to_1_is_refused():
    for wrong in (0.0, 1.01, -1.0, float("nan")):
        with pytest.raises(InputError, match="max_rate"):
            Gradual(0.5, end=3, max_rate=wrong)
        with pytest.raises(ValueError, match="max_rate"):
            METHODS["isp"].settings_class(max_rate=wrong)
        with pytest.raises(InputError, match="max_rate"):
            global_magnitude({"a": torch.ones(1, 4)}, {"a": torch.ones(1, 4) > 0}, 2, wrong)
